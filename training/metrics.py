"""Figures of merit of a classifier, and their bootstrap intervals. NumPy only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.floating]
Labels = NDArray[np.integer]

CALIBRATION_BINS = 15
"""Of equal width, as in table 1 of Guo et al. (2017)."""


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
    recall = recalls(scores, labels)
    return float(recall[~np.isnan(recall)].mean())


def recalls(scores: Scores, labels: Labels) -> NDArray[np.float64]:
    """Share of the images of each class that are recognised, float64 [classes]; nan without any."""
    matrix = confusion_matrix(scores, labels)
    counts = matrix.sum(axis=1)
    found = np.full(len(matrix), np.nan)
    np.divide(matrix.diagonal(), counts, out=found, where=counts > 0)
    return found


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


def class_aucs(scores: Scores, labels: Labels) -> NDArray[np.float64]:
    """One-versus-rest AUC of each class, float64 [classes]; nan where it is undefined."""
    areas = [binary_auc(scores[:, label], labels == label) for label in range(scores.shape[1])]
    return np.array(areas)


def macro_auc(scores: Scores, labels: Labels) -> float:
    """Unweighted mean of the one-versus-rest AUC of every class; `scores` are probabilities."""
    return float(class_aucs(scores, labels).mean())


@dataclass(frozen=True, slots=True)
class Reliability:
    """Images by confidence, the probability of the top class, in bins of equal width.

    Bin m of M has the confidences in ((m - 1) / M, m / M]. `images` is int64 [M]; their mean
    `confidence` and their `accuracy` are float64 [M], nan in an empty bin.
    """

    images: NDArray[np.int64]
    confidence: NDArray[np.float64]
    accuracy: NDArray[np.float64]

    @property
    def error(self) -> float:
        """Expected calibration error: mean distance of accuracy and confidence over all images."""
        filled = self.images > 0
        gaps = np.abs(self.accuracy[filled] - self.confidence[filled])
        return float(gaps @ self.images[filled] / self.images.sum())


def reliability(probabilities: Scores, labels: Labels, bins: int = CALIBRATION_BINS) -> Reliability:
    """Sort images into bins by their top probability.

    Source: Guo, Pleiss, Sun, Weinberger, "On Calibration of Modern Neural Networks", ICML 2017,
    equation 3.
    """
    top = probabilities.max(axis=1).astype(np.float64)
    right = (probabilities.argmax(axis=1) == labels).astype(np.float64)
    place = np.clip(np.ceil(top * bins).astype(np.int64) - 1, 0, bins - 1)
    images = np.bincount(place, minlength=bins)
    confidence, accuracy = np.full(bins, np.nan), np.full(bins, np.nan)
    filled = images > 0
    np.divide(np.bincount(place, top, bins), images, out=confidence, where=filled)
    np.divide(np.bincount(place, right, bins), images, out=accuracy, where=filled)
    return Reliability(images, confidence, accuracy)


def roc_curve(
    scores: Scores, positive: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """False and true positive rates, float64 [points], from (0, 0) to (1, 1).

    One point for each score that occurs: the images from that score on count as positive. Both
    groups must have images. `scores` and `positive` are [n].
    """
    order = np.argsort(-scores, kind="stable")
    last = np.append(np.diff(scores[order]) != 0, True)
    hits = np.cumsum(positive[order])[last]
    alarms = np.cumsum(~positive[order])[last]
    return np.append(0.0, alarms / alarms[-1]), np.append(0.0, hits / hits[-1])


def mean_curve(
    curves: list[tuple[NDArray[np.float64], NDArray[np.float64]]],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean true positive rate of ROC curves at every false positive rate; its area is theirs.

    Source: Fawcett, "An introduction to ROC analysis", Pattern Recognition Letters 27 (2006),
    vertical averaging. Every rate occurs twice: before and after the steps that stand there.
    """
    rates = np.unique(np.concatenate([alarms for alarms, _ in curves]))
    before, after = [], []
    for alarms, hits in curves:
        first, last = np.searchsorted(alarms, rates), np.searchsorted(alarms, rates, "right") - 1
        between = np.interp(rates, alarms, hits)
        occurs = alarms[first] == rates
        before.append(np.where(occurs, hits[first], between))
        after.append(np.where(occurs, hits[last], between))
    steps = np.stack([np.mean(before, axis=0), np.mean(after, axis=0)], axis=1)
    return np.repeat(rates, 2), steps.reshape(-1)


SCALARS = ("accuracy", "balanced_accuracy", "mcc", "macro_auc", "ece")
BY_CLASS = ("recall", "auc")


def figures(probabilities: Scores, labels: Labels) -> dict[str, NDArray[np.float64]]:
    """All figures, by name: SCALARS as float64 [1], BY_CLASS as float64 [classes].

    What is undefined, for a class that does not occur, is nan.
    """
    areas = class_aucs(probabilities, labels)
    values: Mapping[str, float] = {
        "accuracy": accuracy(probabilities, labels),
        "balanced_accuracy": balanced_accuracy(probabilities, labels),
        "mcc": matthews(probabilities, labels),
        "macro_auc": float(areas.mean()),
        "ece": reliability(probabilities, labels).error,
    }
    arrays = {name: np.array([values[name]]) for name in SCALARS}
    return {**arrays, "recall": recalls(probabilities, labels), "auc": areas}


def bootstrap_intervals(
    probabilities: Scores,
    labels: Labels,
    groups: NDArray[np.str_],
    rounds: int = 2000,
    seed: int = 0,
) -> dict[str, NDArray[np.float64]]:
    """95 % percentile intervals of `figures`, float64 [2, 1] or [2, classes]: low, then high.

    Whole `groups` (patients), str [n], are drawn again: images of one patient resemble each other,
    so single images would give too narrow intervals. Resamples in which a figure is undefined are
    left out of its interval; it is nan where none is left.
    """
    generator = np.random.default_rng(seed)
    _, codes = np.unique(groups, return_inverse=True)
    members = [np.flatnonzero(codes == code) for code in range(codes.max() + 1)]
    drawn: dict[str, list[NDArray[np.float64]]] = {name: [] for name in (*SCALARS, *BY_CLASS)}
    for _ in range(rounds):
        groups_drawn = generator.integers(0, len(members), len(members))
        chosen = np.concatenate([members[group] for group in groups_drawn])
        for name, values in figures(probabilities[chosen], labels[chosen]).items():
            drawn[name].append(values)
    return {name: _percentiles(np.stack(values)) for name, values in drawn.items()}


def _percentiles(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """2.5 % and 97.5 % of each column of [rounds, k], float64 [2, k], undefined values left out."""
    bounds = np.full((2, values.shape[1]), np.nan)
    for column, one in enumerate(values.T):
        defined = one[~np.isnan(one)]
        if len(defined):
            bounds[:, column] = np.percentile(defined, [2.5, 97.5])
    return bounds
