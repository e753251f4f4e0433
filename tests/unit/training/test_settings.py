"""Configuration files: everything wrong or without effect is refused, and named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("opacus")

import torch

from tests.unit.training.pictures import PRIVACY, STILL
from training.config import TrainingSettings, load_settings
from training.errors import (
    SettingsError,
)

torch.set_num_threads(1)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("colour = 1", "colour: Extra inputs"),
        ("[training]\nrounds = 0", "training.rounds"),
        ("[training]\nrouns = 5", "training.rouns"),
        ("[federation]\nsites = 3", "no effect in mode"),
        ('mode = "federated"\n[federation]\nsites = 2', "at least 3 sites"),
        ('mode = "federated"\n[federation]\nthreshold = 4', "exceeds the 3 sites"),
        ('mode = "federated"\n[federation]\nsites = 5\nthreshold = 2', "more than half"),
        ("[training]\nlearning_rate = nan", "learning_rate"),
        ("rounds = ", "TOML"),
        ("[privacy]\nnoise_multiplier = 1.0", "privacy.sample_rate"),
    ],
)
def test_wrong_configurations_are_explained(text: str, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "wrong.toml"
    path.write_text(text)
    with pytest.raises(SettingsError, match=reason):
        load_settings(path)
    with pytest.raises(SettingsError, match="no file"):
        load_settings(tmp_path / "missing.toml")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (
            {"training": {"local_steps": 1, "class_weights": True, "batch_size": 8}},
            r"training\.batch_size, training\.class_weights: no effect",
        ),
        ({"augmentation": STILL}, "augmentation"),
        ({"training": {"local_steps": 0}}, "local_steps"),
        ({"privacy": {**PRIVACY, "sites": {"site-9": {}}}}, "site-9"),
    ],
)
def test_settings_without_effect_on_private_training_are_refused(
    changes: dict[str, Any], reason: str
) -> None:
    base = {"privacy": PRIVACY, "mode": "federated", "training": {"local_steps": 1}}
    assert TrainingSettings.model_validate(base).privacy is not None
    with pytest.raises(ValueError, match=reason):
        TrainingSettings.model_validate({**base, **changes})
