"""Reading a folder and cutting it into sites: what is refused, skipped and kept together."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("opacus")

import torch

from tests.unit.training.pictures import read, settings_of
from training import federated
from training.errors import (
    SettingsError,
)
from training.local import LocalSite
from training.partition import sites_of

torch.set_num_threads(1)


@pytest.mark.parametrize("split", ["iid", "class", "size"])
def test_no_patient_is_in_two_sites_and_no_image_is_lost(folder: Path, split: str) -> None:
    settings = settings_of(federation={"split": split})
    samples = read(folder, settings).training.samples
    parts = sites_of(settings, samples)
    assert sorted(s.path for part in parts.values() for s in part) == sorted(
        s.path for s in samples
    )
    patients = [{s.patient for s in part} for part in parts.values()]
    assert not patients[0] & patients[1]
    assert not patients[0] & patients[2]
    assert not patients[1] & patients[2]


def test_skews(folder: Path) -> None:
    settings = settings_of(federation={"split": "class", "skew": 1.0})
    samples = read(folder, settings).training.samples
    by_class = sites_of(settings, samples)
    assert [{s.label for s in part} for part in by_class.values()] == [{0}, {1}, {2}]
    by_size = sites_of(settings_of(federation={"split": "size", "skew": 1.0}), samples)
    sizes = [len(part) for part in by_size.values()]
    assert sizes[0] > 1.3 * sizes[1] > 1.3 * sizes[2]
    even = sites_of(settings_of(federation={"split": "class", "skew": 0.0}), samples)
    assert max(map(len, even.values())) - min(map(len, even.values())) <= 2


def test_a_site_without_images_is_explained(folder: Path) -> None:
    settings = settings_of(federation={"split": "class", "skew": 1.0, "sites": 4})
    with pytest.raises(SettingsError, match="no images for site-4"):
        federated.build_sites(settings, read(folder, settings).training)
    with pytest.raises(SettingsError, match="'lonely' has 0 images"):
        LocalSite("lonely", np.empty((0, 1, 8, 8), np.uint8), np.empty(0, np.int64), 3, settings)


def copy_of(folder: Path, target: Path) -> Path:
    for path in folder.rglob("*.png"):
        copied = target / path.relative_to(folder)
        copied.parent.mkdir(parents=True, exist_ok=True)
        copied.write_bytes(path.read_bytes())
    return target


def test_unreadable_images_are_named_and_skipped_or_refused(folder: Path, tmp_path: Path) -> None:
    root = copy_of(folder, tmp_path / "chest_xray")
    (root / "train/NORMAL/IM-0003-0001.png").write_bytes(b"")
    whole = root / "train/PNEUMONIA/person7_bacteria_1.png"
    whole.write_bytes(whole.read_bytes()[:200])
    settings = settings_of()
    intake = read(tmp_path, settings)
    assert len(intake.skipped) == 2
    assert "IM-0003-0001.png" in intake.skipped[0]
    assert "person7_bacteria_1.png" in intake.skipped[1]
    assert len(intake.training.samples) + len(intake.validation.samples) == 88
    with pytest.raises(SettingsError, match=r"IM-0003-0001\.png.*skip"):
        read(tmp_path, settings_of(data={"unreadable": "refuse"}))


def test_missing_folders_and_empty_classes_are_explained(folder: Path, tmp_path: Path) -> None:
    settings = settings_of()
    with pytest.raises(SettingsError, match="holds train/NORMAL"):
        read(tmp_path, settings)
    root = copy_of(folder, tmp_path / "copy")
    for path in root.rglob("*virus*"):
        path.unlink()
    with pytest.raises(SettingsError, match="no image of class viral pneumonia to train on"):
        read(root, settings)
    for path in root.rglob("*bacteria*"):
        path.unlink()
    with pytest.raises(SettingsError, match="PNEUMONIA holds no"):
        read(root, settings)
