"""Figures of a model on labelled images, with onnxruntime: what users will run.

python -m training.evaluate models/pneumonia-resnet18 chest_xray/test
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from training.data import CLASSES, DataError, Sample, index_folder, labels_of, load_images
from training.metrics import (
    BY_CLASS,
    CALIBRATION_BINS,
    SCALARS,
    bootstrap_intervals,
    confusion_matrix,
    figures,
    reliability,
    softmax,
)

if TYPE_CHECKING:
    import onnx

TITLES = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "mcc": "Matthews correlation coefficient",
    "macro_auc": "macro AUC, one versus rest",
    "ece": "expected calibration error",
    "recall": "recall",
    "auc": "AUC",
}
DEFINITIONS = {
    "intervals": "95 % percentile bootstrap over patients, 2000 resamples",
    "balanced_accuracy": "mean of the recalls of the classes that occur",
    "mcc": "Gorodkin, 2004, for several classes",
    "macro_auc": "unweighted mean of the one-versus-rest AUC of every class",
    "ece": (
        f"mean distance between top probability and accuracy over {CALIBRATION_BINS} bins of equal "
        "width, weighted by images; Guo et al., ICML 2017, equation 3. Few images make it too "
        "large, and its interval more so"
    ),
}
BATCH = 32


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One model on one set of images: logits, float32 [n, classes], labels, int64 [n], figures.

    `values` and `intervals` are as `training.metrics` has them; intervals are over patients.
    """

    logits: NDArray[np.float32]
    labels: NDArray[np.int64]
    patients: int
    values: dict[str, NDArray[np.float64]]
    intervals: dict[str, NDArray[np.float64]]

    @property
    def probabilities(self) -> NDArray[np.float64]:
        """Float64 [n, classes]."""
        return softmax(self.logits)

    @property
    def images(self) -> int:
        """How many images."""
        return len(self.labels)

    def as_dict(self) -> dict[str, Any]:
        """The figures as JSON-ready values, rounded to six digits; undefined ones are None."""
        content: dict[str, Any] = {"images": self.images, "patients": self.patients}
        for name in SCALARS:
            content[name] = _rounded(self.values[name][0])
            content[f"{name}_interval95"] = [_rounded(v) for v in self.intervals[name][:, 0]]
        for name in BY_CLASS:
            pairs = list(zip(CLASSES, self.values[name], self.intervals[name].T, strict=True))
            content[f"{name}_by_class"] = {title: _rounded(value) for title, value, _ in pairs}
            content[f"{name}_by_class_interval95"] = {
                title: [_rounded(bound) for bound in bounds] for title, _, bounds in pairs
            }
        content["confusion"] = confusion_matrix(self.probabilities, self.labels).tolist()
        content["max_abs_logit"] = _rounded(np.abs(self.logits).max())
        return content

    def reliability_bins(self) -> list[dict[str, Any]]:
        """What the reliability diagram shows: a JSON-ready entry for each bin with images."""
        found = reliability(self.probabilities, self.labels)
        return [
            {
                "confidence_up_to": _rounded((number + 1) / len(found.images)),
                "images": int(count),
                "mean_confidence": _rounded(found.confidence[number]),
                "accuracy": _rounded(found.accuracy[number]),
            }
            for number, count in enumerate(found.images)
            if count
        ]


def _rounded(value: float) -> float | None:
    return None if math.isnan(value) else round(float(value), 6)


def evaluate_logits(logits: NDArray[np.float32], samples: Sequence[Sample]) -> Evaluation:
    """Score logits, float32 [n, classes], of `samples`, of which there is at least one."""
    probabilities, labels = softmax(logits), labels_of(samples)
    patients = np.array([sample.patient for sample in samples])
    return Evaluation(
        logits,
        labels,
        len(np.unique(patients)),
        figures(probabilities, labels),
        bootstrap_intervals(probabilities, labels, patients),
    )


def normalise(images: NDArray[np.uint8], mean: float, std: float) -> NDArray[np.float32]:
    """Return float32 [n, 1, h, w]: pixels scaled to 0..1, minus mean, over standard deviation."""
    return ((images.astype(np.float32) / 255.0 - mean) / std).astype(np.float32)


def run_on(
    model: onnx.ModelProto | Path, images: NDArray[np.uint8], mean: float, std: float
) -> NDArray[np.float32]:
    """Return onnxruntime's logits, float32 [n, classes], of images, uint8 [n, 1, h, w]."""
    # onnx and onnxruntime are loaded here so that the figures above need NumPy alone.
    from training.export import run, session_of

    session = session_of(model)
    starts = range(0, len(images), BATCH)
    parts = [run(session, normalise(images[start : start + BATCH], mean, std)) for start in starts]
    return np.concatenate(parts)


def logits_of(model_folder: Path, samples: Sequence[Sample]) -> NDArray[np.float32]:
    """Run the model of a folder, prepared as its manifest says, on `samples`."""
    manifest = json.loads((model_folder / "manifest.json").read_text(encoding="utf-8"))
    preprocessing = manifest["preprocessing"]
    images = load_images(samples, preprocessing["height"])
    mean, std = preprocessing["mean"][0], preprocessing["std"][0]
    return run_on(model_folder / manifest["onnx"], images, mean, std)


def main() -> None:
    """Print the figures of a model folder on a class folder as JSON."""
    parser = argparse.ArgumentParser(prog="python -m training.evaluate", description=main.__doc__)
    parser.add_argument("model", type=Path, help="folder with manifest.json and the ONNX file")
    parser.add_argument("data", type=Path, help="folder with NORMAL and PNEUMONIA below it")
    arguments = parser.parse_args()
    try:
        samples = index_folder(arguments.data)
        evaluation = evaluate_logits(logits_of(arguments.model, samples), samples)
    except (DataError, OSError) as error:
        parser.exit(2, f"error: {error}\n")
    print(json.dumps(evaluation.as_dict(), indent=2))


if __name__ == "__main__":
    main()
