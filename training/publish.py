"""What a training ends in: a model folder that the product serves, with all that is to be said.

| file | content |
|---|---|
| `model.onnx` | the network, checked against torch |
| `manifest.json` | what the product reads: input, classes, figures, how it was trained |
| `card.md` | the same for people |
| `evaluation.json` | the figures, the bins of the reliability diagram |
| `roc.png`, `confusion.png`, `calibration.png` | the figures as pictures |

    python -m training.publish models/pneumonia-resnet18 chest_xray

measures a folder that is there already once more, and writes all but the network anew.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from training.card import render_card
from training.config import DataSettings, TrainingSettings
from training.data import CLASSES, DataError, index_folder
from training.errors import SettingsError, TrainingError
from training.evaluate import Evaluation, evaluate_logits, normalise, run_on
from training.files import sha256_of, write_atomically
from training.intake import Cohort, find_root, read_folder, read_images
from training.manifest import (
    MANIFEST_FILE,
    ONNX_FILE,
    build_manifest,
    manifest_bytes,
    metrics_of,
    read_manifest,
)
from training.pictures import CALIBRATION_FILE, CONFUSION_FILE, ROC_FILE, pictures
from training.provenance import Placement, Provenance

if TYPE_CHECKING:
    import onnx
    from torch import nn

CARD_FILE = "card.md"
EVALUATION_FILE = "evaluation.json"
CHECK_IMAGES = 32
"""Validation images that the exported network is compared with torch on."""


@dataclass(frozen=True, slots=True)
class Publication:
    """What was written: the manifest, and the figures by set of images."""

    folder: Path
    manifest: Mapping[str, Any]
    evaluations: Mapping[str, Evaluation]

    def lines(self) -> list[str]:
        """What a person wants to read of it."""
        lines = []
        for name, evaluation in self.evaluations.items():
            parts = [f"{name}: {evaluation.images} images"]
            for key, title in (
                ("macro_auc", "macro AUC"),
                ("accuracy", "accuracy"),
                ("mcc", "MCC"),
                ("ece", "calibration error"),
            ):
                value, (low, high) = evaluation.values[key][0], evaluation.intervals[key][:, 0]
                figure = f"{value:.3f} ({low:.3f} to {high:.3f})"
                parts.append(f"{title} {'undefined' if np.isnan(value) else figure}")
            lines.append("  ".join(parts))
        stored = self.manifest.get("training", {}).get("weights")
        if stored is not None:
            lines.append(f"weights are stored as {stored['stored_as']}: {stored['reason']}")
        return lines


def publish(
    network: nn.Module,
    provenance: Provenance,
    pixels: tuple[float, float],
    folder: Path,
    *,
    validation: Cohort | None = None,
    test: Cohort | None = None,
    patients: frozenset[str] | None = None,
) -> Publication:
    """Export a network that is ready for it, measure the ONNX file, and write the folder.

    `pixels` are mean and deviation of grey levels from 0 to 1. Without validation images nothing is
    measured on any, and weights stay float32. `patients` are those trained or validated on, where
    they may be told apart from those of the test images: not for private models. All is computed
    before anything is written; the manifest comes last, and its SHA-256 does not fit a folder of
    which only a part was written.

    Raises:
        ExportError: the exported network does not compute what torch does.
        SettingsError: the folder cannot be written.
    """
    from training.export import export

    size = provenance.settings.data.image_size
    images = np.empty((0, 1, size, size), np.uint8)
    if validation is not None and len(validation.samples):
        spread = np.linspace(0, len(validation.samples) - 1, CHECK_IMAGES).astype(np.int64)
        images = validation.images[np.unique(spread)]
    exported = export(network, normalise(images, *pixels), provenance.settings.output.weights)
    content = exported.model.SerializeToString()
    notes = _notes(provenance.chosen_by == "validation", provenance.placement)
    evaluations, metrics = _measure(exported.model, pixels, validation, test, notes)
    if "test" in metrics and test is not None and patients is not None and not provenance.private:
        metrics["test"]["unseen_numbers"] = _unseen(evaluations["test"], test, patients)
    manifest = build_manifest(
        exported, hashlib.sha256(content).hexdigest(), provenance, pixels, metrics
    )
    manifest["training_data"]["changes"] = _changes(
        provenance.settings, validation if provenance.placement == "one process" else None
    )
    return _write(folder, manifest, evaluations, content)


def publish_again(folder: Path, data: Path) -> Publication:
    """Measure a published model on the images of `data`, and write all but its network anew.

    The validation set is cut as its manifest says that training did.

    Raises:
        SettingsError: the folder is not complete, the images are not there, or the model was
            trained across machines, whose images are in no one folder.
    """
    manifest = read_manifest(folder)
    try:
        preprocessing, training = manifest["preprocessing"], manifest["training"]
        settings = DataSettings.model_validate(training["settings"]["data"])
        seed, chose = training["settings"]["seed"], training["chosen_by"] == "validation"
        private, onnx_file = training["private"], folder / manifest["onnx"]
        placement: Placement = training["placement"]
        pixels = preprocessing["mean"][0], preprocessing["std"][0]
        fits = sha256_of(onnx_file) == manifest["sha256"]
    except (KeyError, TypeError, ValueError, OSError) as error:
        raise SettingsError(
            f"{folder / MANIFEST_FILE} does not say how the model was trained ({error!r}); name a "
            "folder that training wrote"
        ) from error
    if not fits:
        raise SettingsError(
            f"{onnx_file} is not the file that its manifest describes; restore one of the two"
        )
    if placement != "one process":
        raise SettingsError(
            f"{folder} was trained across machines: the images that chose its round were the "
            "coordinator's, and are not cut from a training folder; its figures stay as they are"
        )
    intake = read_folder(data, settings, seed)
    test, reason = read_test(data, settings)
    if test is None:
        raise SettingsError(f"the model cannot be measured anew: {reason}")
    notes = _notes(chose, placement)
    evaluations, metrics = _measure(onnx_file, pixels, intake.validation, test, notes)
    if not private:
        patients = patients_of(intake.training, intake.validation)
        metrics["test"]["unseen_numbers"] = _unseen(evaluations["test"], test, patients)
    return _write(folder, {**manifest, "metrics": metrics}, evaluations, None)


def read_test(data: Path, settings: DataSettings) -> tuple[Cohort | None, str]:
    """The images of the test folder, or why there are none. It is read when all is chosen."""
    folder = find_root(data) / "test"
    if not folder.is_dir():
        return None, f"there is no folder {folder}"
    try:
        cohort, skipped = read_images(index_folder(folder), settings)
    except (DataError, SettingsError) as error:
        return None, str(error)
    if not cohort.samples:
        return None, f"no image in {folder} can be read"
    return cohort, f"{len(skipped)} unreadable test images skipped" if skipped else ""


def patients_of(*cohorts: Cohort) -> frozenset[str]:
    """The patients of some images."""
    return frozenset(sample.patient for cohort in cohorts for sample in cohort.samples)


def _notes(chose: bool, placement: Placement) -> dict[str, str]:
    """What each set of images is, and what it was used for."""
    cut = "cut from the training folder by patient"
    own = "the coordinator's own images, of no site"
    return {
        "validation": f"{cut if placement == 'one process' else own}; "
        + ("chose the round, so its figures flatter a little" if chose else "chose nothing"),
        "test": "the test folder; read when all was chosen, and chose nothing",
    }


def _measure(
    model: onnx.ModelProto | Path,
    pixels: tuple[float, float],
    validation: Cohort | None,
    test: Cohort | None,
    notes: Mapping[str, str],
) -> tuple[dict[str, Evaluation], dict[str, dict[str, Any]]]:
    cohorts = {"validation": validation, "test": test}
    evaluations = {
        name: evaluate_logits(run_on(model, cohort.images, *pixels), cohort.samples)
        for name, cohort in cohorts.items()
        if cohort is not None and cohort.samples
    }
    return evaluations, metrics_of(evaluations, notes)


def _changes(settings: TrainingSettings, validation: Cohort | None) -> str:
    """What was done to the images, as CC BY wants it said; looks at validation images alone."""
    sizes: set[tuple[int, int]] = set()
    for sample in () if validation is None else validation.samples:
        with Image.open(sample.path) as image:
            sizes.add(image.size)
    size = settings.data.image_size
    changes = ["read as grey levels"]
    if len(sizes) == 1:
        width, height = next(iter(sizes))
        changes = [f"stored with {width}x{height} pixels, whatever the original had", *changes]
    if sizes != {(size, size)}:
        changes.append(f"stretched to {size}x{size}")
    if settings.privacy is None and any(settings.augmentation.model_dump().values()):
        changes.append("randomly transformed during training")
    return ", ".join(changes)


def _unseen(evaluation: Evaluation, test: Cohort, patients: frozenset[str]) -> dict[str, Any]:
    """Figures on the test images whose patient number does not occur in the training folder."""
    fresh = [n for n, sample in enumerate(test.samples) if sample.patient not in patients]
    if not fresh:
        return {"images": 0}
    part = evaluate_logits(evaluation.logits[fresh], [test.samples[n] for n in fresh]).as_dict()
    kept = ("images", "patients", "accuracy", "macro_auc")
    return {k: v for k, v in part.items() if k.removesuffix("_interval95") in kept}


def _write(
    folder: Path,
    manifest: dict[str, Any],
    evaluations: Mapping[str, Evaluation],
    model: bytes | None,
) -> Publication:
    drawn = pictures(evaluations)
    manifest = _with_ranges(folder, manifest)
    card = render_card(manifest, tuple(drawn))
    measured = {
        "model": {key: manifest[key] for key in ("name", "version", "sha256")},
        "classes": list(CLASSES),
        **manifest["metrics"],
        "reliability": {name: e.reliability_bins() for name, e in evaluations.items()},
    }
    files: dict[str, bytes] = {} if model is None else {ONNX_FILE: model}
    files |= drawn
    files[EVALUATION_FILE] = (json.dumps(measured, indent=1, allow_nan=False) + "\n").encode()
    files[CARD_FILE] = card.encode()
    files[MANIFEST_FILE] = manifest_bytes(manifest)
    try:
        for name in {ROC_FILE, CONFUSION_FILE, CALIBRATION_FILE} - set(drawn):
            (folder / name).unlink(missing_ok=True)
        for name, content in files.items():
            write_atomically(folder / name, content)
    except OSError as error:
        raise SettingsError(
            f"{folder} cannot be written ({error.strerror}); free some space or fix its rights, "
            "then resume: the training is kept"
        ) from error
    return Publication(folder, manifest, evaluations)


def _with_ranges(folder: Path, manifest: dict[str, Any]) -> dict[str, Any]:
    """Keep the value ranges that were measured on the same ONNX file."""
    if not (folder / MANIFEST_FILE).exists() or "ranges" in manifest:
        return manifest
    try:
        before = read_manifest(folder)
    except SettingsError:
        return manifest
    same = before.get("sha256") == manifest["sha256"] and "ranges" in before
    return {**manifest, "ranges": before["ranges"]} if same else manifest


def main() -> int:
    """Measure a published model anew."""
    parser = argparse.ArgumentParser(prog="python -m training.publish", description=main.__doc__)
    parser.add_argument("model", type=Path, help="folder that training wrote")
    parser.add_argument("data", type=Path, help="folder with train/ and test/")
    arguments = parser.parse_args()
    try:
        publication = publish_again(arguments.model, arguments.data)
    except TrainingError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    for line in publication.lines():
        print(line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
