"""How much of a submission is in memory at a time."""

from __future__ import annotations

import tracemalloc
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image as PillowImage

from data_owner import submission
from data_owner.journal import Image, Journal, Result
from data_owner.sessions import Answer
from data_owner.submission import Done, Failure, Submission, Wish
from radiopaque.errors import ImageError, NotAnImageError
from radiopaque.graph.plan import Preprocessing

ARTEFACT = bytes(16)
SPEC = Preprocessing(1, 4, 4, "stretch", "bilinear", (0.5,), (0.5,))
PLAN = SimpleNamespace(batch=1, preprocessing=SPEC, intended_use=None, name="stub")
MODEL: Any = SimpleNamespace(
    offer=SimpleNamespace(id=SimpleNamespace(artefact=ARTEFACT), plan=PLAN)
)


class NoSessions:
    """Everything is in the journal."""

    @contextmanager
    def reserve(self, model: object, count: int, preparing: object) -> Any:
        assert not count
        yield []


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    found = [tmp_path / f"chest-{number}.png" for number in range(3 * submission._GROUP)]
    for number, path in enumerate(found):
        PillowImage.fromarray(np.full((4, 4), number, np.uint8)).save(path)
    return found


def submitted(journal: Journal, paths: list[Path], **wish: Any) -> Any:
    for number, path in enumerate(paths):
        answer = Answer(bytes([number] * 16), np.array([[float(number)]]), 0.1, 0.1, 1, {})
        journal.add(Image.of(path), ARTEFACT, Result(answer, 0, "2026-11-21T12:00:00+00:00"))
    run = Submission(NoSessions(), lambda: MODEL, Wish(journal, **wish))  # type: ignore[arg-type]
    return run.run(paths)


def test_pictures_with_results_are_read_a_group_at_a_time(
    paths: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder of thousands that goes on where it stopped took memory for all of them."""
    read: list[Path] = []
    original = submission.read_picture

    def counted(path: Path, *rest: Any) -> submission.Picture:
        read.append(path)
        return original(path, *rest)

    monkeypatch.setattr(submission, "read_picture", counted)
    with Journal(tmp_path / "journal.jsonl") as journal:
        groups = 0
        for groups, (_, outcomes) in enumerate(submitted(journal, paths), 1):
            assert read == paths[: groups * submission._GROUP]
            names = [outcome.picture.name for outcome in outcomes]
            assert names == [path.name for path in read[-submission._GROUP :]]
            sessions = [outcome.result.answer.session[0] for outcome in outcomes]
            first = (groups - 1) * submission._GROUP
            assert sessions == list(range(first, first + submission._GROUP))
        assert groups == 3


def test_a_known_result_without_its_picture_is_a_failure_of_this_image_alone(
    paths: list[Path], tmp_path: Path
) -> None:
    paths[1].write_bytes(b"no picture any more")
    with Journal(tmp_path / "journal.jsonl") as journal:
        (_, outcomes), *_ = submitted(journal, paths, lenient=True)
        kinds = [Failure if number == 1 else Done for number in range(submission._GROUP)]
        assert [type(outcome) for outcome in outcomes] == kinds
    with Journal(tmp_path / "another.jsonl") as journal, pytest.raises(NotAnImageError):
        list(submitted(journal, paths))


@pytest.mark.parametrize("gone", [False, True])
def test_a_file_that_becomes_another_one_gets_no_result(
    gone: bool, paths: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A result would stand in the journal under the digest of another picture."""
    original = submission.read_picture

    def replaced(path: Path, *rest: Any) -> submission.Picture:
        if path == paths[1]:
            path.write_bytes(paths[2].read_bytes())
        picture = original(path, *rest)
        if path == paths[1] and gone:
            path.unlink()
        return picture

    monkeypatch.setattr(submission, "read_picture", replaced)
    with Journal(tmp_path / "journal.jsonl") as journal:
        _, outcomes = next(submitted(journal, paths, lenient=True))
        failed = [outcome for outcome in outcomes if isinstance(outcome, Failure)]
        assert [failure.image for failure in failed] == [paths[1]]
        assert isinstance(failed[0].error, ImageError)
        assert "changed while it was being read" in str(failed[0].error)
        assert len(outcomes) == submission._GROUP


def test_a_batch_is_filled_up_without_objects_for_it() -> None:
    """The list of its images took sixty times as much."""
    image = np.ones((1, 1, 1), np.float32)
    tracemalloc.start()
    try:
        batch = submission._batch([image, image], 1 << 16)
        assert tracemalloc.get_traced_memory()[1] < 2 * batch.nbytes
    finally:
        tracemalloc.stop()
    assert batch.dtype == np.float32
    assert batch.ravel()[:3].tolist() == [1, 1, 0]
    assert batch.sum() == 2
