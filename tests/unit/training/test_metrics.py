"""Metrics against values computed by hand and against slow definitions."""

from __future__ import annotations

import numpy as np
import pytest

from training.metrics import (
    BY_CLASS,
    SCALARS,
    accuracy,
    balanced_accuracy,
    binary_auc,
    bootstrap_intervals,
    class_aucs,
    confusion_matrix,
    figures,
    macro_auc,
    matthews,
    mean_curve,
    recalls,
    reliability,
    roc_curve,
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


def test_recall_of_each_class() -> None:
    assert recalls(SCORES, LABELS) == pytest.approx([2 / 3, 1 / 2, 1.0])
    assert np.isnan(recalls(SCORES[:5], LABELS[:5])[2])


def test_auc_is_the_statistic_of_mann_and_whitney() -> None:
    stats = pytest.importorskip("scipy.stats")
    generator = np.random.default_rng(9)
    scores = softmax(generator.normal(size=(90, 3)).round(1))  # rounded, so that there are ties
    labels = generator.integers(0, 3, 90)
    for label, area in enumerate(class_aucs(scores, labels)):
        positive = scores[labels == label, label]
        negative = scores[labels != label, label]
        pairs = stats.mannwhitneyu(positive, negative).statistic
        assert area == pytest.approx(pairs / (len(positive) * len(negative)), abs=1e-12)


def test_matthews_of_two_classes_is_the_correlation_of_truth_and_answer() -> None:
    generator = np.random.default_rng(10)
    labels = generator.integers(0, 2, 70)
    answers = np.where(generator.random(70) < 0.7, labels, 1 - labels)
    expected = np.corrcoef(labels, answers)[0, 1]
    assert matthews(np.eye(2)[answers], labels) == pytest.approx(expected, abs=1e-12)


def test_calibration_error_by_hand() -> None:
    # Five bins. (0.4, 0.6]: 0.5 right, 0.6 wrong; (0.6, 0.8]: 0.8 right; (0.8, 1]: 0.9 right.
    top = np.array([0.5, 0.6, 0.8, 0.9])
    probabilities = np.stack([top, 1.0 - top], axis=1)
    labels = np.array([0, 1, 0, 0])
    found = reliability(probabilities, labels, bins=5)
    assert found.images.tolist() == [0, 0, 2, 1, 1]
    assert found.confidence[2:] == pytest.approx([0.55, 0.8, 0.9])
    assert found.accuracy[2:] == pytest.approx([0.5, 1.0, 1.0])
    assert np.isnan(found.accuracy[:2]).all()
    expected = (2 * abs(0.5 - 0.55) + abs(1.0 - 0.8) + abs(1.0 - 0.9)) / 4
    assert found.error == pytest.approx(expected)


def test_calibration_error_is_small_for_honest_probabilities() -> None:
    generator = np.random.default_rng(11)
    probabilities = softmax(2.0 * generator.normal(size=(20_000, 3)))
    labels = np.array([generator.choice(3, p=row) for row in probabilities])
    assert reliability(probabilities, labels).error < 0.015
    sharpened = softmax(4.0 * np.log(probabilities))
    assert reliability(sharpened, labels).error > 0.1


def test_certain_answers_are_in_the_last_bin() -> None:
    found = reliability(np.eye(3), np.array([0, 1, 0]))
    assert found.images.tolist() == [0] * 14 + [3]
    assert found.error == pytest.approx(1 / 3)


def test_the_roc_curve_of_a_small_example() -> None:
    scores = np.array([0.9, 0.4, 0.5, 0.4, 0.1])
    alarms, hits = roc_curve(scores, np.array([1, 1, 0, 0, 0], dtype=bool))
    assert alarms == pytest.approx([0, 0, 1 / 3, 2 / 3, 1])
    assert hits == pytest.approx([0, 1 / 2, 1 / 2, 1, 1])


def test_areas_under_the_curves_are_the_aucs() -> None:
    generator = np.random.default_rng(12)
    labels = generator.integers(0, 3, 200)
    scores = softmax((np.eye(3)[labels] + generator.normal(size=(200, 3))).round(1))
    curves = [roc_curve(scores[:, label], labels == label) for label in range(3)]
    areas = [np.trapezoid(hits, alarms) for alarms, hits in curves]
    assert areas == pytest.approx(class_aucs(scores, labels), abs=1e-12)
    alarms, hits = mean_curve(curves)
    assert np.trapezoid(hits, alarms) == pytest.approx(macro_auc(scores, labels), abs=1e-12)
    assert (np.diff(hits) >= 0).all()


def test_bootstrap_intervals_hold_the_value_and_repeat() -> None:
    generator = np.random.default_rng(7)
    labels = generator.integers(0, 3, 150)
    scores = softmax(2.0 * np.eye(3)[labels] + generator.normal(size=(150, 3)))
    patients = np.array([f"p{number // 2}" for number in range(150)])
    intervals = bootstrap_intervals(scores, labels, patients, rounds=200)
    again = bootstrap_intervals(scores, labels, patients, rounds=200)
    values = figures(scores, labels)
    assert set(values) == {*SCALARS, *BY_CLASS}
    for name, bounds in intervals.items():
        assert np.array_equal(bounds, again[name])
        assert (bounds[1] - bounds[0] < 0.4).all()
        if name != "ece":  # which resampling makes larger
            assert (bounds[0] < values[name]).all()
        assert (values[name] < bounds[1]).all()


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
    for name, bounds in doubled.items():
        assert bounds == pytest.approx(single[name], abs=1e-12)


def test_a_class_that_does_not_occur_leaves_its_figures_undefined() -> None:
    labels = np.array([0, 0, 1, 1])
    scores = softmax(np.random.default_rng(13).normal(size=(4, 3)))
    intervals = bootstrap_intervals(scores, labels, np.array(list("abcd")), rounds=50)
    values = figures(scores, labels)
    for name in BY_CLASS:
        assert np.isnan(values[name][2])
        assert np.isnan(intervals[name][:, 2]).all()
    assert np.isnan(values["macro_auc"]).all()
    assert np.isfinite(intervals["accuracy"]).all()
