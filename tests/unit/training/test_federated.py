"""Training as several sites: the same result with and without secure aggregation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("opacus")

import torch

from tests.unit.training.pictures import read, settings_of
from training import federated
from training.config import TrainingSettings
from training.rounds import RoundRunner
from training.site import (
    flatten,
    shared_names,
    weights_of,
)
from training.validator import Validator

torch.set_num_threads(1)


def one_round(folder: Path, settings: TrainingSettings) -> tuple[Any, np.ndarray, np.ndarray]:
    model = federated.build_network(settings)
    sites = federated.build_sites(settings, read(folder, settings).training)
    before = weights_of(model)
    runner = RoundRunner(
        settings.federation_or_default(), [site.name for site in sites], settings.training.rounds
    )
    result = runner.run(0, sites, model, before)
    names = shared_names(model)
    return result, flatten(before, names), flatten(result.weights, names)


@pytest.mark.parametrize("split", ["class", "size"])
def test_secure_aggregation_changes_no_weight(folder: Path, split: str) -> None:
    plain, before, without = one_round(
        folder, settings_of(federation={"split": split, "secure_aggregation": False})
    )
    secure, _, with_masks = one_round(folder, settings_of(federation={"split": split}))
    assert np.abs(without - before).max() > 1e-3
    assert np.abs(with_masks - without).max() <= 1e-4
    # Rounding to 2^-24 explains what is left, not the tolerance of the acceptance.
    assert np.abs(with_masks - without).max() <= 2.0**-23 + 1e-6 * np.abs(without).max()
    assert secure.samples == plain.samples
    assert secure.sites == plain.sites == ("site-1", "site-2", "site-3")


def test_the_mean_is_weighted_by_samples(folder: Path) -> None:
    settings = settings_of(federation={"split": "size", "secure_aggregation": False})
    result, before, after = one_round(folder, settings)
    sites = federated.build_sites(settings, read(folder, settings).training)
    model = federated.build_network(settings)
    initial = weights_of(model)
    weighted = 0.0
    for site in sites:
        site.begin(0, 3)
        update = site.step(model, initial)
        weighted = weighted + update.delta.astype(float) * len(site._images)  # type: ignore[attr-defined]
    assert len({site.samples for site in sites}) == 3
    assert np.abs(before + weighted / result.samples - after).max() <= 1e-6


def test_the_sites_learn_and_the_best_round_is_kept(folder: Path, tmp_path: Path) -> None:
    settings = settings_of(training={"rounds": 6, "local_steps": 8})
    intake = read(folder, settings)
    lines: list[str] = []
    outcome = federated.run(settings, intake, tmp_path, report=lines.append)
    areas = [record.validation_auc or 0.0 for record in outcome.progress.records]
    assert outcome.progress.best_auc == max(areas) >= 0.95
    assert outcome.progress.best_round == areas.index(max(areas)) + 1
    validator = Validator(intake.validation, outcome.model, settings)
    assert validator.score(outcome.model)[1] == max(areas)
    assert len(lines) == 6
    log = json.loads((tmp_path / federated.LOG_FILE).read_text())
    assert len(log["rounds"]) == 6
    assert log["best_validation_auc"] == outcome.progress.best_auc


def test_patience(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    areas = iter([0.6, 0.7, 0.7, 0.65, 0.9])
    monkeypatch.setattr(Validator, "score", lambda *arguments: (1.0, next(areas)))
    settings = settings_of(training={"rounds": 5, "patience": 2, "local_steps": 1})
    outcome = federated.run(settings, read(folder, settings), tmp_path, report=lambda line: None)
    assert outcome.stopped == "no better validation AUC for 2 rounds"
    assert outcome.progress.best_round == 2
    assert len(outcome.progress.records) == 4
