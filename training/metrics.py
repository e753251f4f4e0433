"""Figures of merit of a classifier, and their bootstrap intervals. NumPy only."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.floating]
Labels = NDArray[np.integer]


def softmax(logits: Scores) -> NDArray[np.float64]:
    """Probabilities, float64 [n, classes], of logits [n, classes]."""
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    probabilities: NDArray[np.float64] = shifted / shifted.sum(axis=1, keepdims=True)
    return probabilities


def confusion_matrix(scores: Scores, labels: Labels) -> NDArray[np.int64]:
    """Counts, int64 [classes, classes]: row is the true class, column the class of top score."""
    classes = scores.shape[1]
    cells = labels * classes + scores.argmax(axis=1)
    return np.bincount(cells, minlength=classes * classes).reshape(classes, classes)


def accuracy(scores: Scores, labels: Labels) -> float:
    """Share of images whose top class is the true one."""
    return float((scores.argmax(axis=1) == labels).mean())


def balanced_accuracy(scores: Scores, labels: Labels) -> float:
    """Mean recall over the classes that occur."""
    matrix = confusion_matrix(scores, labels)
    present = matrix.sum(axis=1) > 0
    recall = matrix.diagonal()[present] / matrix.sum(axis=1)[present]
    return float(recall.mean())


def matthews(scores: Scores, labels: Labels) -> float:
    """Matthews correlation coefficient for several classes; 0 where it is undefined.

    Source: Gorodkin, "Comparing two K-category assignments by a K-category correlation
    coefficient", 2004, equation 8.
    """
    matrix = confusion_matrix(scores, labels).astype(np.float64)
    truth, guess, total = matrix.sum(axis=1), matrix.sum(axis=0), matrix.sum()
    covariance = matrix.trace() * total - truth @ guess
    scale = np.sqrt((total**2 - guess @ guess) * (total**2 - truth @ truth))
    return float(covariance / scale) if scale > 0 else 0.0


def binary_auc(scores: Scores, positive: NDArray[np.bool_]) -> float:
    """Area under the ROC curve: the chance that a positive scores above a negative, ties half.

    Returns nan where one of the two groups is empty. `scores` and `positive` are [n].
    """
    positives = int(positive.sum())
    negatives = len(positive) - positives
    if positives == 0 or negatives == 0:
        return float("nan")
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    mean_ranks = np.cumsum(counts) - (counts - 1) / 2.0
    rank_sum = mean_ranks[inverse][positive].sum()
    return float((rank_sum - positives * (positives + 1) / 2.0) / (positives * negatives))


def macro_auc(scores: Scores, labels: Labels) -> float:
    """Unweighted mean of the one-versus-rest AUC of every class; `scores` are probabilities."""
    areas = [binary_auc(scores[:, label], labels == label) for label in range(scores.shape[1])]
    return float(np.mean(areas))


METRICS: Mapping[str, Callable[[Scores, Labels], float]] = {
    "accuracy": accuracy,
    "balanced_accuracy": balanced_accuracy,
    "mcc": matthews,
    "macro_auc": macro_auc,
}


def bootstrap_intervals(
    scores: Scores,
    labels: Labels,
    groups: NDArray[np.str_],
    rounds: int = 2000,
    seed: int = 0,
) -> dict[str, tuple[float, float]]:
    """95 % percentile intervals of METRICS, resampling whole `groups` (patients), str [n].

    Images of one patient resemble each other, so single images would give too narrow intervals.
    Resamples in which a class does not occur are left out of the AUC's interval.
    """
    generator = np.random.default_rng(seed)
    _, codes = np.unique(groups, return_inverse=True)
    members = [np.flatnonzero(codes == code) for code in range(codes.max() + 1)]
    values: dict[str, list[float]] = {name: [] for name in METRICS}
    for _ in range(rounds):
        drawn = generator.integers(0, len(members), len(members))
        chosen = np.concatenate([members[group] for group in drawn])
        for name, metric in METRICS.items():
            values[name].append(metric(scores[chosen], labels[chosen]))
    intervals: dict[str, tuple[float, float]] = {}
    for name, drawn_values in values.items():
        low, high = np.nanpercentile(drawn_values, [2.5, 97.5])
        intervals[name] = (float(low), float(high))
    return intervals
