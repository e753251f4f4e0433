"""Metrics against values computed by hand and against slow definitions."""

from __future__ import annotations

import numpy as np
import pytest

from training.metrics import (
    METRICS,
    accuracy,
    balanced_accuracy,
    binary_auc,
    bootstrap_intervals,
    confusion_matrix,
    macro_auc,
    matthews,
    softmax,
)

# Truth 0 0 0 1 1 2, top class 0 0 1 1 2 2.
LABELS = np.array([0, 0, 0, 1, 1, 2])
SCORES = np.eye(3)[[0, 0, 1, 1, 2, 2]]


def test_confusion_matrix_has_the_truth_in_rows() -> None:
    assert confusion_matrix(SCORES, LABELS).tolist() == [[2, 1, 0], [0, 1, 1], [0, 0, 1]]


def test_accuracy_and_balanced_accuracy() -> None:
    assert accuracy(SCORES, LABELS) == pytest.approx(4 / 6)
    assert balanced_accuracy(SCORES, LABELS) == pytest.approx((2 / 3 + 1 / 2 + 1) / 3)


def test_balanced_accuracy_leaves_absent_classes_out() -> None:
    assert balanced_accuracy(SCORES[:5], LABELS[:5]) == pytest.approx((2 / 3 + 1 / 2) / 2)


def test_matthews_for_three_classes() -> None:
    # c = 4, s = 6, t = (3, 2, 1), p = (2, 2, 2): (24 - 12) / sqrt((36 - 12) (36 - 14)).
    assert matthews(SCORES, LABELS) == pytest.approx(12 / np.sqrt(24 * 22))


def test_matthews_for_two_classes_is_the_usual_one() -> None:
    # tp = 3, tn = 2, fp = 1, fn = 2.
    labels = np.array([1, 1, 1, 1, 1, 0, 0, 0])
    scores = np.eye(2)[[1, 1, 1, 0, 0, 0, 0, 1]]
    assert matthews(scores, labels) == pytest.approx((3 * 2 - 1 * 2) / np.sqrt(4 * 5 * 3 * 4))


def test_matthews_is_zero_for_a_constant_answer() -> None:
    assert matthews(np.eye(3)[[1] * 6], LABELS) == 0.0


def test_auc_of_a_small_example() -> None:
    # Positives 0.9, 0.4; negatives 0.5, 0.4, 0.1: pairs won 3 + 1.5 of 6.
    scores = np.array([0.9, 0.4, 0.5, 0.4, 0.1])
    assert binary_auc(scores, np.array([1, 1, 0, 0, 0], dtype=bool)) == pytest.approx(4.5 / 6)


def test_auc_matches_the_definition_over_all_pairs() -> None:
    generator = np.random.default_rng(5)
    scores = generator.integers(0, 12, 80) / 12.0
    positive = generator.random(80) < 0.3
    pairs = scores[positive][:, None] - scores[~positive][None, :]
    expected = ((pairs > 0) + 0.5 * (pairs == 0)).mean()
    assert binary_auc(scores, positive) == pytest.approx(expected, abs=1e-12)


def test_auc_without_positives_is_nan() -> None:
    assert np.isnan(binary_auc(np.array([0.1, 0.2]), np.array([False, False])))


def test_macro_auc_is_the_mean_over_classes() -> None:
    generator = np.random.default_rng(6)
    scores = softmax(generator.normal(size=(60, 3)))
    labels = generator.integers(0, 3, 60)
    expected = [binary_auc(scores[:, label], labels == label) for label in range(3)]
    assert macro_auc(scores, labels) == pytest.approx(sum(expected) / 3)
    assert len(set(expected)) == 3


def test_softmax_survives_large_logits() -> None:
    probabilities = softmax(np.array([[1000.0, 1000.0 + np.log(3.0), -1000.0]]))
    assert probabilities == pytest.approx(np.array([[0.25, 0.75, 0.0]]))


def test_bootstrap_intervals_hold_the_value_and_repeat() -> None:
    generator = np.random.default_rng(7)
    labels = generator.integers(0, 3, 150)
    scores = softmax(2.0 * np.eye(3)[labels] + generator.normal(size=(150, 3)))
    patients = np.array([f"p{number // 2}" for number in range(150)])
    intervals = bootstrap_intervals(scores, labels, patients, rounds=200)
    assert intervals == bootstrap_intervals(scores, labels, patients, rounds=200)
    for name, metric in METRICS.items():
        low, high = intervals[name]
        assert low < metric(scores, labels) < high
        assert high - low < 0.3


def test_images_of_one_patient_are_drawn_together() -> None:
    # With each image doubled under its patient, the interval is that of the single images.
    generator = np.random.default_rng(8)
    labels = generator.integers(0, 3, 100)
    scores = softmax(np.eye(3)[labels] + generator.normal(size=(100, 3)))
    patients = np.array([f"p{number:03d}" for number in range(100)])
    single = bootstrap_intervals(scores, labels, patients, rounds=200)
    doubled = bootstrap_intervals(
        np.repeat(scores, 2, axis=0), np.repeat(labels, 2), np.repeat(patients, 2), rounds=200
    )
    for name in METRICS:
        assert doubled[name] == pytest.approx(single[name], abs=1e-12)
