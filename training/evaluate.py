"""Evaluation of a shipped model folder on a class folder, with onnxruntime: what users will run.

python -m training.evaluate models/pneumonia-resnet18 chest_xray/test
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.data import CLASSES, Sample, index_folder, labels_of, load_images
from training.metrics import (
    METRICS,
    binary_auc,
    bootstrap_intervals,
    confusion_matrix,
    softmax,
)


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Figures of one model on `images` images; intervals are 95 %, bootstrapped over patients."""

    images: int
    patients: int
    values: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    class_auc: dict[str, float]
    confusion: list[list[int]]

    def as_dict(self) -> dict[str, Any]:
        """Return the figures as JSON-ready values, rounded to four digits."""
        figures: dict[str, Any] = {"images": self.images, "patients": self.patients}
        for name, value in self.values.items():
            figures[name] = round(value, 4)
            figures[f"{name}_interval95"] = [round(bound, 4) for bound in self.intervals[name]]
        figures["auc_by_class"] = {name: round(area, 4) for name, area in self.class_auc.items()}
        figures["confusion"] = self.confusion
        return figures


def evaluate_logits(logits: NDArray[np.float32], samples: Sequence[Sample]) -> Evaluation:
    """Score logits, float32 [n, classes], of `samples`."""
    probabilities = softmax(logits)
    labels = labels_of(samples)
    patients = np.array([sample.patient for sample in samples])
    return Evaluation(
        images=len(samples),
        patients=len(np.unique(patients)),
        values={name: metric(probabilities, labels) for name, metric in METRICS.items()},
        intervals=bootstrap_intervals(probabilities, labels, patients),
        class_auc={
            name: binary_auc(probabilities[:, label], labels == label)
            for label, name in enumerate(CLASSES)
        },
        confusion=confusion_matrix(probabilities, labels).tolist(),
    )


def normalise(images: NDArray[np.uint8], mean: float, std: float) -> NDArray[np.float32]:
    """Return float32 [n, 1, h, w]: pixels scaled to 0..1, minus mean, over standard deviation."""
    return ((images.astype(np.float32) / 255.0 - mean) / std).astype(np.float32)


def logits_of(model_folder: Path, samples: Sequence[Sample]) -> NDArray[np.float32]:
    """Run the model of a folder, prepared as its manifest says, on `samples`."""
    # onnx and onnxruntime are loaded here so that the figures above need NumPy alone.
    from training.export import run

    manifest = json.loads((model_folder / "manifest.json").read_text(encoding="utf-8"))
    preprocessing = manifest["preprocessing"]
    images = load_images(samples, preprocessing["height"])
    pixels = normalise(images, preprocessing["mean"][0], preprocessing["std"][0])
    return run(model_folder / manifest["onnx"], pixels)


def main() -> None:
    """Print the figures of a model folder on a class folder as JSON."""
    parser = argparse.ArgumentParser(prog="python -m training.evaluate", description=main.__doc__)
    parser.add_argument("model", type=Path, help="folder with manifest.json and the ONNX file")
    parser.add_argument("data", type=Path, help="folder with NORMAL and PNEUMONIA below it")
    arguments = parser.parse_args()
    samples = index_folder(arguments.data)
    evaluation = evaluate_logits(logits_of(arguments.model, samples), samples)
    print(json.dumps(evaluation.as_dict(), indent=2))


if __name__ == "__main__":
    main()
