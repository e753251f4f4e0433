"""The coordinator's rounds with hospitals behind a wire of function calls: drop-outs, repeats."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("opacus")
pytest.importorskip("flwr")

from tests.unit.training.hospitals import NAMES, Hospitals, build  # noqa: E402
from training.accounting import Steps, rdp_epsilon  # noqa: E402
from training.checkpoint import Progress, RoundRecord  # noqa: E402
from training.errors import (  # noqa: E402
    CheckpointError,
    DivergedError,
    RefusedMessageError,
    SettingsError,
    SiteLostError,
    TooFewSitesError,
)
from training.federated import (  # noqa: E402
    Outcome,
    build_network,
    build_site,
    keeping,
    run_rounds,
)
from training.flower import coordinate, join  # noqa: E402
from training.flower.coordinate import Request, Rounds, Session  # noqa: E402
from training.flower.figures import check_figures  # noqa: E402
from training.flower.finish import finish, with_privacy  # noqa: E402
from training.flower.join import Host  # noqa: E402
from training.flower.replies import END, Status  # noqa: E402
from training.flower.settings import (  # noqa: E402
    agreement,
    load_run,
    load_site,
    settings_of,
    threshold_of,
)
from training.flower.superlink import Reply  # noqa: E402
from training.journal import Journal  # noqa: E402
from training.member import Terms  # noqa: E402
from training.rounds import RoundResult, RoundRunner  # noqa: E402
from training.secagg.context import Kind  # noqa: E402
from training.site import Site, flatten, shared_names, weights_of  # noqa: E402

torch.set_num_threads(1)


@pytest.fixture
def hospitals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hospitals:
    monkeypatch.setattr(coordinate.time, "sleep", lambda seconds: None)
    return build(tmp_path, 9443)


def site_of(hospitals: Hospitals, name: str) -> Site:
    site = load_site(hospitals.site(name))
    settings = settings_of(site, load_run(site.run, hospitals.members))
    return build_site(name, join._images(site, settings, lambda line: None, watch), settings)


def watch(what: str, done: int, total: int) -> None:
    pass


class Wire:
    """Stands for the SuperLink: asks hosts by calling them. `drop` loses messages, once each."""

    def __init__(self, hospitals: Hospitals) -> None:
        self.hospitals = hospitals
        self.lines: dict[str, list[str]] = {name: [] for name in NAMES}
        self.hosts = {name: self.host(name) for name in NAMES}
        self.drop: set[tuple[str, Kind]] = set()
        self.say: dict[str, bytes] = {}
        self.present = set(NAMES)
        self.asked: list[tuple[str, int]] = []

    def host(self, name: str, change: Callable[[Site], Site] = lambda site: site) -> Host:
        members = self.hospitals.members
        site = load_site(self.hospitals.site(name))
        settings = settings_of(site, load_run(site.run, members))
        agreed = agreement(members, settings)
        return Host(
            join._Reporting(
                change(site_of(self.hospitals, name)), settings, self.lines[name].append
            ),
            build_network(settings),
            join._own_keys(site, members)[0],
            Terms(members.pins(), threshold_of(settings), settings.training.rounds, agreed),
            Journal(site.state / "journal.json"),
            settings,
            self.lines[name].append,
        )

    def online(self) -> set[str]:
        return self.present

    def ask(self, questions: Mapping[str, bytes], longest: int, seconds: float) -> Iterator[Reply]:
        for name, question in questions.items():
            self.asked.append((name, question[0]))
            key = (name, Kind(question[0]))
            if key in self.drop:
                self.drop.remove(key)
                yield Reply(name, None, "lost its connection")
                continue
            reply = self.say.pop(name, None) or self.hosts[name].reply(question)
            assert len(reply) <= longest
            yield Reply(name, reply)


class Run:
    """A coordinator on a wire."""

    def __init__(self, hospitals: Hospitals, wire: Wire, **options: Any) -> None:
        members = hospitals.members
        self.settings = load_run(hospitals.run, members)
        self.agreed = agreement(members, self.settings)
        self.model = build_network(self.settings)
        self.output = hospitals.root / "output"
        self.session = Session(self.output / "session.json", self.agreed, False)
        self.lines: list[str] = []
        request = Request(
            hospitals.run,
            hospitals.members_file,
            hospitals.coordinator_keys,
            self.output,
            **options,
        )
        self.rounds = Rounds(
            wire,  # type: ignore[arg-type]
            members,
            self.settings,
            self.agreed,
            self.session,
            self.model,
            request,
            self.lines.append,
        )
        self.weights = weights_of(self.model)

    def play(self, number: int, names: tuple[str, ...] = NAMES) -> RoundResult:
        result = self.rounds.play(number, names, self.weights)
        self.weights = dict(result.weights)
        return result

    def flat(self) -> np.ndarray:
        return flatten(self.weights, shared_names(self.model))


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


# -- privacy ----------------------------------------------------------------------------------


@pytest.fixture
def private(hospitals: Hospitals) -> Hospitals:
    hospitals.write_run(rounds=4, options=', normalisation = "standardised"')
    hospitals.write_privacy("elm", noise=1.0)
    hospitals.write_privacy("oak", noise=3.0)
    # Two rounds are four steps; the third would make six.
    hospitals.write_privacy("yew", noise=1.0, epsilon=rdp_epsilon((Steps(1.0, 0.3, 5),), 1e-5))
    return hospitals


def test_a_spent_budget_takes_a_site_out_and_the_others_go_on(private: Hospitals) -> None:
    wire = Wire(private)
    run = Run(private, wire)
    results = [run.play(0), run.play(1), run.play(2), run.play(3, ("elm", "oak"))]
    assert [result.sites for result in results] == [NAMES, NAMES, ("elm", "oak"), ("elm", "oak")]
    assert [result.spent for result in results] == [(), (), ("yew",), ()]
    kept = json.loads((private.root / "yew" / "budgets" / "yew.json").read_text())
    assert [steps["count"] for steps in kept["steps"]] == [4]
    assert any(line.startswith("BudgetSpentError") for line in wire.lines["yew"])


def test_too_many_spent_budgets_end_the_run(private: Hospitals) -> None:
    private.write_privacy("oak", epsilon=rdp_epsilon((Steps(1.0, 0.3, 5),), 1e-5))
    run = Run(private, Wire(private))
    run.play(0)
    run.play(1)
    with pytest.raises(TooFewSitesError) as error:
        run.play(2)
    assert set(error.value.spent) == {"oak", "yew"}


def test_a_repeated_round_spends_no_budget_twice(private: Hospitals) -> None:
    wire = Wire(private)
    run = Run(private, wire)
    wire.drop = {("oak", Kind.SURVIVORS), ("yew", Kind.SURVIVORS)}
    assert run.play(0).sites == NAMES
    assert run.session.attempt == 1
    for name in NAMES:
        kept = json.loads((private.root / name / "budgets" / f"{name}.json").read_text())
        assert [steps["count"] for steps in kept["steps"]] == [2]


def test_a_site_that_was_restarted_in_between_records_what_it_spends_again(
    private: Hospitals,
) -> None:
    wire = Wire(private)
    run = Run(private, wire)
    wire.drop = {("oak", Kind.SURVIVORS), ("yew", Kind.SURVIVORS)}
    original = wire.hosts["elm"].reply

    def restarting(question: bytes) -> bytes:
        if question[0] == Kind.KEYS and run.session.attempt == 1:
            wire.hosts["elm"] = wire.host("elm")
            return wire.hosts["elm"].reply(question)
        return original(question)

    wire.hosts["elm"].reply = restarting  # type: ignore[method-assign]
    assert run.play(0).sites == NAMES
    kept = json.loads((private.root / "elm" / "budgets" / "elm.json").read_text())
    assert [steps["count"] for steps in kept["steps"]] == [4]


def test_the_coordinator_sees_epsilons_and_no_losses(private: Hospitals) -> None:
    wire = Wire(private)
    run = Run(private, wire)
    metrics = run.play(0).metrics
    assert set(metrics) == set(NAMES)
    assert metrics["oak"]["noise_multiplier"] == 3.0
    assert metrics["oak"]["epsilon_rdp"] < metrics["elm"]["epsilon_rdp"]
    assert not any("loss" in name for figures in metrics.values() for name in figures)
    plain = Wire(private)
    private.site("elm").write_text(private.site("elm").read_text().split("[privacy]")[0])
    plain.hosts["elm"] = plain.host("elm")
    assert plain.hosts["elm"]._shared({"loss": 1.0, "learning_rate": 0.1}) == {}


ALL_FIGURES = {
    "epsilon_prv": 1.0,
    "epsilon_rdp": 1.25,
    "private_steps": 2.0,
    "noise_multiplier": 1.0,
    "clip_norm": 1.0,
    "sample_rate": 0.3,
    "epsilon": 8.0,
    "delta": 1e-5,
    "accountant": 1.0,
}


@pytest.mark.parametrize(
    "figures",
    [
        {"epsilon_prv": 1.0},
        {"loss": 1.7e308},
        {"loss": 0.5},
        {**ALL_FIGURES, "loss": 0.5},
        {**ALL_FIGURES, "epsilon_prv": -1.0},
        {**ALL_FIGURES, "epsilon_rdp": 1e300},
        {**ALL_FIGURES, "private_steps": 2.5},
        {**ALL_FIGURES, "private_steps": 0.0},
        {**ALL_FIGURES, "accountant": 0.5},
        {**ALL_FIGURES, "delta": 1.0},
        {**ALL_FIGURES, "sample_rate": 2.0},
        {**ALL_FIGURES, "clip_norm": 1e300},
    ],
)
def test_figures_that_are_not_those_of_privacy_lose_a_site_its_round(
    figures: dict[str, float], hospitals: Hospitals
) -> None:
    """The log, the line and the card are written from what passes."""
    wire = Wire(hospitals)
    wire.hosts["oak"]._member._shared = lambda metrics: figures
    run = Run(hospitals, wire)
    progress = Progress(run.weights, run.weights)
    lines: list[str] = []
    with keeping(run.settings, progress, run.output, "print", lines.append) as kept:
        run_rounds(run.settings, progress, run.rounds.play, NAMES, run.model, None, kept)
    assert [kept.sites for kept in progress.records] == [["elm", "yew"]] * 2
    assert [kept.metrics for kept in progress.records] == [{"elm": {}, "yew": {}}] * 2
    assert all("lost oak" in line for line in lines)
    with pytest.raises(RefusedMessageError, match=r"'oak'.*not those of privacy"):
        check_figures("oak", figures)


def test_figures_that_a_site_makes_are_taken(private: Hospitals) -> None:
    check_figures("oak", {})
    check_figures("oak", ALL_FIGURES)
    assert Run(private, Wire(private)).play(0).sites == NAMES


def record(metrics: dict[str, dict[str, float]], sites: list[str]) -> RoundRecord:
    return RoundRecord(1, None, None, None, 9, 1.0, sites, [], [], metrics)


def test_the_card_promises_privacy_if_every_site_that_trained_does(private: Hospitals) -> None:
    run = Run(private, Wire(private))
    metrics = run.play(0).metrics
    stated = with_privacy(run.settings, [record(metrics, list(NAMES))])
    assert stated.privacy is not None
    assert stated.privacy.of("oak").noise_multiplier == 3.0
    assert stated.privacy.of("elm").noise_multiplier == 1.0
    assert stated.privacy.of("yew").epsilon < 8.0
    for left_out in ("epsilon_prv", "clip_norm", "accountant", "delta"):
        partial = {**metrics, "oak": {k: v for k, v in metrics["oak"].items() if k != left_out}}
        assert with_privacy(run.settings, [record(partial, list(NAMES))]).privacy is None
    for wrong in ({"accountant": 2.0}, {"accountant": 0.5}, {"delta": 7.0}, {"epsilon": -1.0}):
        forged = {**metrics, "oak": {**metrics["oak"], **wrong}}
        assert with_privacy(run.settings, [record(forged, list(NAMES))]).privacy is None
    only_two = {name: metrics[name] for name in ("elm", "oak")}
    assert with_privacy(run.settings, [record(only_two, ["elm", "oak"])]).privacy is not None
    assert with_privacy(run.settings, [record(only_two, list(NAMES))]).privacy is None
    assert with_privacy(run.settings, []).privacy is None


def test_the_card_promises_privacy_if_every_site_reports_it_in_all_its_rounds(
    hospitals: Hospitals,
) -> None:
    settings = load_run(hospitals.run, hospitals.members)
    first = dict.fromkeys(NAMES, ALL_FIGURES)
    second = {name: {**ALL_FIGURES, "private_steps": 4.0} for name in NAMES}

    def stated(*rounds: dict[str, dict[str, float]]) -> Any:
        return with_privacy(settings, [record(each, list(each)) for each in rounds]).privacy

    assert stated(first, second) is not None
    assert stated({**first, "oak": {}}, second) is None
    assert stated(first, {**second, "oak": {}}) is None
    absent = {name: figures for name, figures in first.items() if name != "oak"}
    assert stated(absent, second) is not None
    # A budget that begins anew, or allows something else, does not cover the rounds before.
    assert stated(first, {**second, "oak": ALL_FIGURES}) is None
    for change in ({"delta": 1e-6}, {"epsilon": 9.0}, {"accountant": 0.0}):
        assert stated(first, {**second, "oak": {**second["oak"], **change}}) is None
    # Other settings on the same budget: the weakest of each, whichever came first.
    strong = {"noise_multiplier": 3.0, "sample_rate": 0.1, "clip_norm": 0.5}
    for rounds in (
        (first, {**second, "oak": {**second["oak"], **strong}}),
        ({**first, "oak": {**ALL_FIGURES, **strong}}, second),
    ):
        own = stated(*rounds).of("oak")
        assert (own.noise_multiplier, own.sample_rate, own.clip_norm) == (1.0, 0.3, 1.0)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"noise_multiplier": 3.0}, "oak changed the settings of privacy between rounds"),
        ({"delta": 1e-6}, "the card promises no privacy"),
        (None, "the card promises no privacy"),
    ],
)
def test_what_becomes_of_privacy_that_changes_is_said(
    change: dict[str, float] | None, line: str, hospitals: Hospitals
) -> None:
    settings = load_run(hospitals.run, hospitals.members)
    model = build_network(settings)
    first = dict.fromkeys(NAMES, ALL_FIGURES)
    if change is None:
        first["oak"] = {}
    second = {name: {**ALL_FIGURES, "private_steps": 4.0} for name in NAMES}
    second["oak"] |= change or {}
    rounds = [record(each, list(NAMES)) for each in (first, second)]
    progress = Progress(weights_of(model), weights_of(model), 2, records=rounds)
    lines: list[str] = []
    outcome = Outcome(model.eval(), progress, "all rounds done")
    result = finish(settings, outcome, None, hospitals.root, lines.append)
    assert result["private"] is (change is not None and "delta" not in change)
    assert any(line in said for said in lines)


# -- a whole run ------------------------------------------------------------------------------


def test_without_images_to_validate_on_the_last_round_is_published(private: Hospitals) -> None:
    run = Run(private, Wire(private))
    progress = Progress(run.weights, run.weights)
    lines: list[str] = []
    with keeping(run.settings, progress, run.output, "print", lines.append) as kept:
        stopped = run_rounds(run.settings, progress, run.rounds.play, NAMES, run.model, None, kept)
    assert stopped == "all rounds done" or stopped.startswith("the privacy budget")
    assert all("validation" not in line for line in lines)
    outcome = Outcome(run.model, progress, stopped)
    result = finish(run.settings, outcome, None, run.output, lines.append)
    assert result["best_round"] == len(progress.records) == result["rounds"]
    assert result["best_validation_auc"] is None
    assert result["private"] is True
    manifest = json.loads((run.output / "manifest.json").read_text())
    assert manifest["training"]["placement"] == "several machines"
    assert manifest["training"]["chosen_by"] == "last round"
    stated = {site["name"]: site["privacy"] for site in manifest["training"]["sites"]}
    assert stated["oak"]["noise_multiplier"] == 3.0
    log = json.loads((run.output / "log.json").read_text())
    assert log["best_validation_auc"] is None
    assert "budgets" not in json.dumps([manifest, log])
    for name in ("model.onnx", "card.md", "curves.png"):
        assert (run.output / name).stat().st_size > 0


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
