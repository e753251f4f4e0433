"""Secure outputs against plaintext ones: agreement, logit errors, accuracy, AUC."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from radiopaque.errors import ConfigError
from radiopaque.graph.plan import Task

Logits = NDArray[np.float64]


def plaintext_session(onnx: Path, threads: int = 1) -> Callable[[NDArray[np.float32]], Logits]:
    """The model under onnxruntime: a function from a tensor to its first output, float64."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(onnx), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def run(tensor: NDArray[np.float32]) -> Logits:
        return np.asarray(session.run(None, {name: tensor})[0], np.float64)

    return run


@dataclass(frozen=True)
class Labels:
    """True class numbers by file, from a CSV or from class folders."""

    root: Path
    table: dict[Path, int] | None
    classes: tuple[str, ...]

    @classmethod
    def read(cls, root: Path, table: Path | None, classes: Sequence[str]) -> Labels:
        """Raises ConfigError for a CSV without the columns ``path`` and ``label``."""
        if table is None:
            return cls(root, None, tuple(classes))
        with table.open(newline="") as file:
            rows = csv.DictReader(file)
            if not {"path", "label"} <= set(rows.fieldnames or ()):
                raise ConfigError(f"{table} needs the columns path,label")
            try:
                known = {(root / row["path"]).resolve(): int(row["label"]) for row in rows}
            except ValueError:
                raise ConfigError(f"{table}: a label is not a class number") from None
        return cls(root, known, tuple(classes))

    def of(self, files: Sequence[Path]) -> list[int | None]:
        """The class number of every file, None where unknown."""
        return [self._one(file) for file in files]

    def _one(self, file: Path) -> int | None:
        if self.table is not None:
            return self.table.get(file.resolve())
        folder, name = file.parent.name.lower(), file.name.lower()
        wanted = folder
        if folder == "pneumonia":
            wanted = "bacteria" if "bacteria" in name else "vir" if "virus" in name else folder
        matches = [i for i, c in enumerate(self.classes) if c.lower().startswith(wanted[:8])]
        return matches[0] if len(matches) == 1 else None


def summarise(
    secure: Logits, plain: Logits, truth: Sequence[int | None], task: Task
) -> dict[str, Any]:
    """Figures over images [n, classes]. Accuracy and AUC are of labelled images alone."""
    error = np.abs(secure - plain)
    labelled = [i for i, label in enumerate(truth) if label is not None]
    classes = np.array([truth[i] for i in labelled], np.int64)
    scored = bool(labelled) and task != "multilabel"
    return {
        "images": len(secure),
        "labelled": len(labelled),
        "agreement": agreement(secure, plain, task),
        "max_abs_logit_error": float(error.max()),
        "mean_abs_logit_error": float(error.mean()),
        "accuracy": accuracy(secure[labelled], classes) if scored else None,
        "macro_auc": macro_auc(secure[labelled], classes) if scored else None,
        "plaintext_accuracy": accuracy(plain[labelled], classes) if scored else None,
        "plaintext_macro_auc": macro_auc(plain[labelled], classes) if scored else None,
    }


def agreement(secure: Logits, plain: Logits, task: Task) -> float:
    """Fraction of images with the same top class, or all labels on the same side of 0."""
    if task == "multilabel":
        return float(((secure > 0) == (plain > 0)).all(axis=1).mean())
    return float((secure.argmax(axis=1) == plain.argmax(axis=1)).mean())


def accuracy(logits: Logits, classes: NDArray[np.int64]) -> float:
    """Fraction of images whose top class is the true one."""
    return float((logits.argmax(axis=1) == classes).mean())


def macro_auc(logits: Logits, classes: NDArray[np.int64]) -> float | None:
    """Mean one-against-rest area under the ROC curve of the softmax probabilities.

    Rank statistic of Mann and Whitney, ties counted half. None where a class has no image.
    """
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    scores = shifted / shifted.sum(axis=1, keepdims=True)
    areas = []
    for number in range(logits.shape[1]):
        positive = scores[classes == number, number]
        negative = scores[classes != number, number]
        if not len(positive) or not len(negative):
            return None
        wins = (positive[:, None] > negative[None, :]).sum()
        ties = (positive[:, None] == negative[None, :]).sum()
        areas.append((wins + ties / 2) / (len(positive) * len(negative)))
    return float(np.mean(areas))
