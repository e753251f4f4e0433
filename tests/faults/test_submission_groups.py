"""Groups of a submission: when servers hear of it, and reports that cannot be made or written."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from data_owner import Client, client, submission
from data_owner.submission import Failure, Wish
from radiopaque.cli.data_owner import _Run
from radiopaque.errors import InputError, StoreError
from radiopaque.files import write_atomically
from tests.e2e.networks import lungs
from tests.faults.inside import Inside
from tests.faults.test_submission import pictures_in

GROUP = submission._GROUP
COUNT = GROUP + 2


@pytest.fixture
def inside(tmp_path: Path) -> Iterator[Inside]:
    with Inside(tmp_path, lungs()) as inside:
        yield inside


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    """More than one group of them."""
    return sorted(pictures_in(tmp_path / "images", COUNT))


def noting(events: list[str], name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def noted(*arguments: Any) -> Any:
        events.append(name)
        return function(*arguments)

    return noted


def test_what_happens_when(
    inside: Inside, paths: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing between the first START of a group and its last result; docs/protocol.md, 10.6."""
    events: list[str] = []
    for method in ("Reserve", "Prepare", "Infer"):
        inside.lies[method] = noting(events, method, lambda honest, *rest: honest(*rest))
    for module, name in ((submission, "read_picture"), (client, "_report")):
        monkeypatch.setattr(module, name, noting(events, name, getattr(module, name)))
    with Client.from_config(inside.clinic()) as clinic:
        assert len(list(clinic.submit(paths, Wish()))) == COUNT
    expected: list[str] = []
    for images in (GROUP, 2):
        expected += ["Reserve", "Prepare"] * images
        for name in ("read_picture", "Infer", "_report"):
            expected += [name] * images
    assert events == expected


def submitted(inside: Inside, paths: list[Path], output: Path) -> _Run:
    run = _Run(output, as_json=True)
    with Client.from_config(inside.clinic()) as clinic, clinic.journal(output) as journal:
        run.collect(clinic, paths, journal, again=False, lenient=True, tell=lambda _: None)
    return run


def test_a_report_that_cannot_be_written_keeps_no_other_from_it(
    inside: Inside,
    paths: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = tmp_path / "reports"
    output.mkdir(0o700)

    def failing(path: Path, data: bytes) -> None:
        if path.name == "chest-1.json":
            raise StoreError("the disk does not like this one")
        write_atomically(path, data)

    with monkeypatch.context() as patched:
        patched.setattr("data_owner.report.write_atomically", failing)
        run = submitted(inside, paths, output)
    with pytest.raises(typer.Exit) as ended:
        run.finish()
    assert ended.value.exit_code == StoreError.exit_code
    said = capsys.readouterr()
    assert said.err == "StoreError: the disk does not like this one\n"
    answer = json.loads(said.out)
    assert [result["image"] for result in answer["results"]] == [path.name for path in paths]
    assert [failure["image"] for failure in answer["failures"]] == ["chest-1.png"]
    written = {path.stem for path in output.glob("*.html")}
    assert written == {path.stem for path in paths} - {"chest-1"}
    # the result is kept: the next run writes the report
    again = submitted(inside, paths, output)
    again.finish()
    assert again.results == run.results
    assert {path.stem for path in output.glob("*.html")} == written | {"chest-1"}


def test_a_report_that_cannot_be_made_keeps_no_other_from_it(
    inside: Inside, paths: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    make = client._report

    def failing(offer: Any, done: submission.Done) -> Any:
        if done.picture.path == paths[1]:
            raise InputError("not finite")
        return make(offer, done)

    monkeypatch.setattr(client, "_report", failing)
    with Client.from_config(inside.clinic()) as clinic:
        outcomes = list(clinic.submit(paths, Wish()))
    assert len(outcomes) == COUNT
    (failure,) = (outcome for outcome in outcomes if isinstance(outcome, Failure))
    assert (failure.image, type(failure.error)) == (paths[1], InputError)
