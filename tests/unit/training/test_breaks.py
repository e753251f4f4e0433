"""Runs that are interrupted, lose sites or diverge: what is done is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("opacus")

import torch

from tests.unit.training.pictures import read, settings_of
from training import checkpoint, federated
from training.config import TrainingSettings
from training.errors import (
    BudgetSpentError,
    CheckpointError,
    DivergedError,
    SettingsError,
    SiteLostError,
    TooFewSitesError,
)
from training.site import (
    Site,
)

torch.set_num_threads(1)


class Breaking:
    """A site that fails in one round in a way of its own."""

    def __init__(self, site: Site, number: int, error: BaseException) -> None:
        self._site, self._number, self._error, self._now = site, number, error, 0
        self.name, self.samples = site.name, site.samples

    def begin(self, number: int, rounds: int) -> None:
        self._now = number
        self._site.begin(number, rounds)

    def step(self, model: Any, weights: Any) -> Any:
        if self._now == self._number:
            raise self._error
        return self._site.step(model, weights)


def broken_run(
    folder: Path,
    output: Path,
    settings: TrainingSettings,
    breaks: dict[int, tuple[int, BaseException]],
    **options: Any,
) -> federated.Outcome:
    intake = read(folder, settings)
    sites = federated.build_sites(settings, intake.training)
    for place, (number, error) in breaks.items():
        sites[place] = Breaking(sites[place], number, error)
    options.setdefault("report", lambda line: None)
    return federated.run(settings, intake, output, sites=sites, **options)


@pytest.mark.parametrize("secure", [False, True])
def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(
    folder: Path, tmp_path: Path, secure: bool
) -> None:
    settings = settings_of(
        training={"rounds": 4}, federation={"secure_aggregation": secure}, augmentation={"mixup": 1}
    )
    whole = broken_run(folder, tmp_path / "whole", settings, {})
    with pytest.raises(KeyboardInterrupt):
        broken_run(folder, tmp_path / "broken", settings, {1: (2, KeyboardInterrupt())})
    saved = checkpoint.load(
        tmp_path / "broken", f"{settings.digest()}/{read(folder, settings).fingerprint()}"
    )
    assert len(saved.records) == 2
    lines: list[str] = []
    resumed = broken_run(
        folder, tmp_path / "broken", settings, {}, resume=True, report=lines.append
    )
    assert lines[0] == "resumed after round 2"
    assert len(resumed.progress.records) == 4
    assert resumed.progress.best_round == whole.progress.best_round
    for name, tensor in whole.progress.weights.items():
        assert torch.equal(resumed.progress.weights[name], tensor)


def test_a_run_is_not_overwritten_and_not_mixed_up(folder: Path, tmp_path: Path) -> None:
    settings = settings_of(training={"rounds": 1})
    broken_run(folder, tmp_path, settings, {})
    with pytest.raises(SettingsError, match="--resume"):
        broken_run(folder, tmp_path, settings, {})
    with pytest.raises(CheckpointError, match="another configuration"):
        broken_run(folder, tmp_path, settings_of(seed=6), {}, resume=True)
    with pytest.raises(CheckpointError, match="no checkpoint"):
        broken_run(folder, tmp_path / "elsewhere", settings, {}, resume=True)
    content = (tmp_path / checkpoint.FILE).read_bytes()
    for broken in (b"", content[:-100], b"PK" + content[2:200], b"\x80\x04c__main__\nx\n."):
        (tmp_path / checkpoint.FILE).write_bytes(broken)
        with pytest.raises(CheckpointError, match="is not a checkpoint"):
            broken_run(folder, tmp_path, settings, {}, resume=True)


def test_a_checkpoint_cannot_run_code(tmp_path: Path) -> None:
    torch.save({"version": 1, "fingerprint": "f", "weights": print}, tmp_path / checkpoint.FILE)
    with pytest.raises(CheckpointError, match="is not a checkpoint"):
        checkpoint.load(tmp_path, "f")


def test_a_site_lost_in_mid_round_is_left_out(folder: Path, tmp_path: Path) -> None:
    settings = settings_of(federation={"sites": 4, "split": "iid"})
    lines: list[str] = []
    outcome = broken_run(
        folder, tmp_path, settings, {2: (1, SiteLostError("gone"))}, report=lines.append
    )
    records = outcome.progress.records
    assert [record.lost for record in records] == [[], ["site-3"], []]
    assert records[1].sites == ["site-1", "site-2", "site-4"]
    assert records[1].samples < records[0].samples == records[2].samples
    assert "lost site-3" in lines[1]


@pytest.mark.parametrize("secure", [False, True])
def test_too_many_lost_sites_lose_the_round_only(
    folder: Path, tmp_path: Path, secure: bool
) -> None:
    settings = settings_of(federation={"secure_aggregation": secure, "split": "iid"})
    with pytest.raises(TooFewSitesError, match=r"site-2 was lost.*resume"):
        broken_run(folder, tmp_path, settings, {1: (1, SiteLostError("gone"))})
    outcome = broken_run(folder, tmp_path, settings, {}, resume=True)
    assert [record.number for record in outcome.progress.records] == [1, 2, 3]


def test_a_spent_budget_ends_training_with_what_there_is(folder: Path, tmp_path: Path) -> None:
    settings = settings_of(federation={"split": "iid"})
    outcome = broken_run(folder, tmp_path, settings, {0: (2, BudgetSpentError("spent"))})
    assert outcome.stopped == "the privacy budget of site-1 is spent"
    assert len(outcome.progress.records) == 2


def test_a_site_with_a_spent_budget_stays_out(folder: Path, tmp_path: Path) -> None:
    settings = settings_of(federation={"sites": 4, "split": "iid"})
    outcome = broken_run(folder, tmp_path, settings, {0: (1, BudgetSpentError("spent"))})
    used = [record.sites for record in outcome.progress.records]
    assert used[0] == ["site-1", "site-2", "site-3", "site-4"]
    assert used[1] == used[2] == ["site-2", "site-3", "site-4"]


def test_a_loss_that_is_not_a_number_stops_and_keeps_the_checkpoint(
    folder: Path, tmp_path: Path
) -> None:
    settings = settings_of(training={"learning_rate": 1e30, "warm_up": 0.0, "rounds": 2})
    with pytest.raises(DivergedError, match=r"site-1|not finite"):
        broken_run(folder, tmp_path, settings, {})
    good = settings_of(federation={"split": "iid"})
    late = broken_run(folder, tmp_path / "late", good, {1: (2, DivergedError("nan"))})
    assert str(late.failed) == "nan"
    assert late.stopped == "training diverged after round 2"
    assert len(late.progress.records) == 2
    assert 1 <= late.progress.best_round <= 2
    assert len(broken_run(folder, tmp_path / "late", good, {}, resume=True).progress.records) == 3
