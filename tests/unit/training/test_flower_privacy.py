"""Budgets of hospitals, and what a whole run says of privacy, behind a wire of function calls."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("opacus")
pytest.importorskip("flwr")

from tests.unit.training.flower_wire import Run, Wire
from tests.unit.training.hospitals import NAMES, Hospitals, build
from training.accounting import Steps, rdp_epsilon
from training.checkpoint import Progress, RoundRecord
from training.errors import RefusedMessageError, TooFewSitesError
from training.federated import Outcome, build_network, keeping, run_rounds
from training.flower.figures import check_figures
from training.flower.finish import finish, with_privacy
from training.flower.settings import load_run
from training.secagg.context import Kind
from training.site import weights_of


@pytest.fixture
def hospitals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hospitals:
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    return build(tmp_path, 9443)


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
