"""The coordinator's rounds with hospitals behind a wire of function calls: drop-outs, repeats."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("opacus")
pytest.importorskip("flwr")

from tests.unit.training.flower_wire import Run, Wire, site_of, watch
from tests.unit.training.hospitals import NAMES, Hospitals, build
from training.errors import (
    CheckpointError,
    DivergedError,
    SettingsError,
    SiteLostError,
    TooFewSitesError,
)
from training.federated import build_network
from training.flower import coordinate, join
from training.flower.coordinate import Request, Session
from training.flower.replies import END, Status
from training.flower.settings import load_run, load_site, settings_of
from training.rounds import RoundRunner
from training.secagg.context import Kind
from training.site import Site, flatten, shared_names, weights_of


@pytest.fixture
def hospitals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hospitals:
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    return build(tmp_path, 9443)


class Missing:
    """A site that is lost in the rounds that are given."""

    def __init__(self, site: Site, rounds: set[int]) -> None:
        self.name, self.samples, self._site, self._rounds = site.name, site.samples, site, rounds

    def begin(self, number: int, rounds: int) -> None:
        self._now = number
        self._site.begin(number, rounds)

    def step(self, model: Any, weights: Any) -> Any:
        if self._now in self._rounds:
            raise SiteLostError("gone")
        return self._site.step(model, weights)


def in_one_process(hospitals: Hospitals, rounds: int, missing: dict[str, set[int]]) -> np.ndarray:
    """The weights after some rounds of `RoundRunner` with the same sites."""
    settings = load_run(hospitals.run, hospitals.members)
    model = build_network(settings)
    sites = [Missing(site_of(hospitals, name), missing.get(name, set())) for name in NAMES]
    runner = RoundRunner(settings.federation_or_default(), NAMES, settings.training.rounds)
    weights = weights_of(model)
    for number in range(rounds):
        weights = dict(runner.run(number, sites, model, weights).weights)
    return flatten(weights, shared_names(model))


def test_rounds_are_those_of_one_process_to_the_bit(hospitals: Hospitals) -> None:
    run = Run(hospitals, Wire(hospitals))
    before = run.flat()
    results = [run.play(0), run.play(1)]
    assert [result.sites for result in results] == [NAMES, NAMES]
    assert [result.samples for result in results] == [90, 90]
    assert np.abs(run.flat() - before).max() > 1e-3
    assert np.array_equal(run.flat(), in_one_process(hospitals, 2, {}))


@pytest.mark.parametrize("kind", list(Kind))
def test_a_round_goes_on_without_a_lost_site(kind: Kind, hospitals: Hospitals) -> None:
    wire = Wire(hospitals)
    run = Run(hospitals, wire)
    wire.drop = {("oak", kind)}
    first, second = run.play(0), run.play(1)
    assert first.lost == ("oak",)
    assert first.sites == (NAMES if kind > Kind.MASKED else ("elm", "yew"))
    assert second.sites == NAMES
    absent = set() if kind > Kind.MASKED else {0}
    assert np.array_equal(run.flat(), in_one_process(hospitals, 2, {"oak": absent}))


def test_a_site_that_is_not_connected_is_not_asked(hospitals: Hospitals) -> None:
    wire = Wire(hospitals)
    wire.present = {"elm", "yew"}
    run = Run(hospitals, wire, wait=0.0)
    assert run.play(0).sites == ("elm", "yew")
    assert {name for name, _ in wire.asked} == {"elm", "yew"}
    wire.present = set(NAMES)
    assert run.play(1).sites == NAMES


def test_a_round_that_fell_through_is_played_again(hospitals: Hospitals) -> None:
    wire = Wire(hospitals)
    run = Run(hospitals, wire)
    wire.drop = {("oak", Kind.SHARES), ("elm", Kind.MASKED)}
    result = run.play(0)
    assert result.sites == NAMES
    assert run.session.attempt == 1
    assert any("fell through" in line and "oak lost its connection" in line for line in run.lines)
    assert np.array_equal(run.flat(), in_one_process(hospitals, 1, {}))
    for name in ("elm", "yew"):
        assert sum(": trained in" in line for line in wire.lines[name]) == 1


def test_a_round_that_was_opened_in_vain_counts_and_changes_nothing(hospitals: Hospitals) -> None:
    wire = Wire(hospitals)
    run = Run(hospitals, wire)
    before = run.flat()
    wire.drop = {("oak", Kind.UNMASK), ("elm", Kind.UNMASK)}
    lost = run.play(0)
    assert (lost.samples, lost.sites) == (0, ())
    assert np.array_equal(run.flat(), before)
    assert any("its sum did not come out" in line for line in run.lines)
    assert run.play(1).sites == NAMES
    # The sites would not have gone through it again.
    number = len(wire.asked)
    again = Run(hospitals, wire)
    assert again.session.session == run.session.session
    again.session.opening = -1
    with pytest.raises(TooFewSitesError):
        Run.play(_impatient(again), 0)
    assert {kind for _, kind in wire.asked[number:]} == {Kind.KEYS}
    assert any("RepeatedRoundError: round 1 has been opened" in line for line in wire.lines["yew"])


def _impatient(run: Run) -> Run:
    run.rounds._request = Request(Path(), Path(), Path(), run.output, give_up=-1.0)
    return run


def test_an_interrupted_coordinator_goes_on_in_its_session(hospitals: Hospitals) -> None:
    wire = Wire(hospitals)
    first = Run(hospitals, wire)
    first.play(0)
    second = Run(hospitals, wire)
    second.weights = first.weights
    assert second.session.attempt == 0
    assert second.play(1).sites == NAMES
    assert np.array_equal(second.flat(), in_one_process(hospitals, 2, {}))
    (hospitals.root / "output" / "session.json").unlink()
    stranger = _impatient(Run(hospitals, wire))
    with pytest.raises(TooFewSitesError, match=r"0 sites|not enough"):
        stranger.play(1)
    assert any("another session" in line for line in wire.lines["elm"])


def test_a_site_with_other_settings_stays_out_and_sees_why(hospitals: Hospitals) -> None:
    wire = Wire(hospitals)
    text = hospitals.run.read_text()
    hospitals.run.write_text(text.replace("learning_rate = 0.05", "learning_rate = 0.5"))
    wire.hosts["oak"] = wire.host("oak")
    hospitals.run.write_text(text)
    run = Run(hospitals, wire)
    result = run.play(0)
    assert result.sites == ("elm", "yew")
    assert result.lost == ("oak",)
    assert wire.lines["oak"][-1] == ("  run.training.learning_rate: here 0.5, coordinator 0.05")


@pytest.mark.parametrize("reply", [b"", b"\x07", b"\x01more", b"\xff", b"\x00"])
def test_malformed_replies_lose_a_site_its_round(reply: bytes, hospitals: Hospitals) -> None:
    wire = Wire(hospitals)
    wire.hosts["oak"].reply = lambda question: reply  # type: ignore[method-assign]
    result = Run(hospitals, wire).play(0)
    assert result.sites == ("elm", "yew")
    assert result.lost == ("oak",)


def test_every_refusal_has_a_reason_in_words(hospitals: Hospitals) -> None:
    for status in (Status.DISAGREES, Status.REPEATED, Status.REFUSED, Status.FAILED):
        wire = Wire(hospitals)
        wire.say = {"oak": bytes([status]), "elm": bytes([status])}
        run = _impatient(Run(hospitals, wire))
        with pytest.raises(TooFewSitesError, match="bring them back"):
            run.play(0)
        assert "screen" in run.lines[-1]
        (hospitals.root / "output" / "session.json").unlink()


def test_a_site_whose_training_diverges_is_left_out_and_too_many_end_the_run(
    hospitals: Hospitals,
) -> None:
    wire = Wire(hospitals)
    run = Run(hospitals, wire)
    wire.say = {"oak": bytes([Status.DIVERGED])}
    assert run.play(0).sites == ("elm", "yew")
    wire.say = {"oak": bytes([Status.DIVERGED]), "elm": bytes([Status.DIVERGED])}
    with pytest.raises(DivergedError, match=r"^elm, oak: .*lower training.learning_rate"):
        run.play(1)


def test_the_coordinator_waits_and_gives_up_when_told_to(hospitals: Hospitals) -> None:
    wire = Wire(hospitals)
    wire.present = {"elm"}
    run = _impatient(Run(hospitals, wire))
    with pytest.raises(TooFewSitesError, match="go on with --resume"):
        run.play(0)
    assert run.lines == ["1 of 3 sites are connected, 2 are needed; waiting for oak, yew"]
    assert wire.asked == []


def test_the_end_of_a_run_ends_the_sites(hospitals: Hospitals) -> None:
    wire = Wire(hospitals)
    host = wire.hosts["elm"]
    assert not host.finished
    assert host.reply(END) == bytes([Status.ANSWER])
    assert host.finished


@pytest.mark.parametrize(
    ("taken", "title"), [("bacteria", "bacterial pneumonia"), ("virus", "viral pneumonia")]
)
def test_every_class_is_needed_to_validate_on(
    taken: str, title: str, hospitals: Hospitals, tmp_path: Path
) -> None:
    for path in hospitals.validation.glob(f"PNEUMONIA/*{taken}*"):
        path.unlink()
    output = tmp_path / "output"
    request = Request(
        hospitals.run,
        hospitals.members_file,
        hospitals.coordinator_keys,
        output,
        validation=hospitals.validation,
    )
    with pytest.raises(SettingsError, match=f"no readable image of {title};.*--validation"):
        coordinate.coordinate(request, print, watch)
    assert not output.exists()


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"run": 1, "session": "zz"}'])
def test_a_damaged_session_is_refused(content: str, tmp_path: Path) -> None:
    path = tmp_path / "session.json"
    with pytest.raises(CheckpointError, match="is not a session"):
        Session(path, b"run", True)
    path.write_text(content)
    with pytest.raises(CheckpointError, match="is not a session"):
        Session(path, b"run", False)
    path.unlink()
    Session(path, b"run", False).begin()
    with pytest.raises(CheckpointError, match="another run"):
        Session(path, b"other", True)


def test_a_second_process_does_not_answer_for_a_site(tmp_path: Path) -> None:
    second = join._locked(tmp_path / "state")
    refused = pytest.raises(SettingsError, match="another radiopaque federation join")
    with join._locked(tmp_path / "state"), refused, second:
        pass
    with join._locked(tmp_path / "state"):
        pass


def test_a_site_checks_its_own_files_first(hospitals: Hospitals) -> None:
    site = load_site(hospitals.site("elm"))
    with pytest.raises(SettingsError, match="has no site 'ash'"):
        join._own_keys(site.model_copy(update={"name": "ash"}), hospitals.members)
    with pytest.raises(SettingsError, match="are not those"):
        join._own_keys(site.model_copy(update={"name": "oak"}), hospitals.members)
    broken = site.model_copy(update={"data": hospitals.root / "nowhere"})
    settings = settings_of(site, load_run(site.run, hospitals.members))
    with pytest.raises(SettingsError, match="there is no folder"):
        join._images(broken, settings, print, watch)
