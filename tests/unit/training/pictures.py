"""A folder of pictures that a tiny network learns at once, and settings to train on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from training.config import TrainingSettings
from training.intake import Intake, read_folder

SIZE = 32
STILL = dict.fromkeys(
    ("rotation", "zoom", "stretch", "shift", "contrast", "brightness", "gamma"), 0.0
)

PRIVACY = {"noise_multiplier": 1.0, "sample_rate": 0.2, "epsilon": 8.0, "budget_folder": "b"}
STANDARDISED = {"options": {"width": 2, "normalisation": "standardised"}}


def picture(label: int, number: int) -> np.ndarray:
    """Black, horizontal stripes or vertical stripes, with noise; uint8 [SIZE, SIZE]."""
    noise = np.random.default_rng([label, number]).integers(0, 60, (SIZE, SIZE))
    stripes = (np.arange(SIZE) // 4 % 2) * 180
    pattern = [np.zeros((SIZE, SIZE), int), stripes[:, None], stripes[None, :]][label]
    return (noise + pattern).astype(np.uint8)


def write_folder(root: Path) -> Path:
    """Write 30 patients of each class below `root`/train."""
    for number in range(30):
        for label, name in (
            (0, f"NORMAL/IM-{number:04d}-0001.png"),
            (1, f"PNEUMONIA/person{number}_bacteria_1.png"),
            (2, f"PNEUMONIA/person{number + 50}_virus_1.png"),
        ):
            path = root / "train" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture(label, number)).save(path)
    return root


def settings_of(**changes: Any) -> TrainingSettings:
    """Three sites, three short rounds; a section given changes single keys, None takes it out."""
    values: dict[str, Any] = {
        "mode": "federated",
        "seed": 5,
        "threads": 1,
        "data": {"image_size": SIZE, "validation_fraction": 0.2},
        "model": {"options": {"width": 2}},
        "training": {"rounds": 3, "local_steps": 3, "batch_size": 8, "learning_rate": 0.05},
        "augmentation": STILL,
        "federation": {"split": "class", "skew": 0.7},
    }
    for key, value in changes.items():
        values[key] = {**values.get(key, {}), **value} if isinstance(value, dict) else value
        if value is None:
            del values[key]
    return TrainingSettings.model_validate(values)


def private_settings(budgets: Path, **changes: Any) -> TrainingSettings:
    """Three private sites, three short rounds; a section given changes single keys."""
    values: dict[str, Any] = {
        "mode": "federated",
        "threads": 1,
        "data": {"image_size": SIZE, "validation_fraction": 0.2},
        "model": STANDARDISED,
        "training": {"rounds": 3, "local_steps": 2, "learning_rate": 0.1},
        "federation": {"sites": 3},
        "privacy": {**PRIVACY, "accountant": "rdp", "budget_folder": str(budgets)},
    }
    for key, value in changes.items():
        values[key] = {**values.get(key, {}), **value}
    return TrainingSettings.model_validate(values)


def read(folder: Path, settings: TrainingSettings) -> Intake:
    """Read the folder as the settings say."""
    return read_folder(folder, settings.data, settings.seed)
