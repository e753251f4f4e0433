"""The lower bound of the audit against exact fractions, and on guesses of known privacy."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest

pytest.importorskip("scipy")

from training.attack.bound import epsilon_lower_bound, p_value
from training.errors import SettingsError


def exact_p_value(m: int, r: int, v: int, right: Fraction, delta: Fraction) -> Fraction:
    """The formula of the paper in whole numbers; `right` is e^eps / (1 + e^eps)."""

    def mass(k: int) -> Fraction:
        return math.comb(r, k) * right**k * (1 - right) ** (r - k)

    tail = sum((mass(k) for k in range(v, r + 1)), Fraction(0))
    shares = [sum((mass(k) for k in range(v - i, v)), Fraction(0)) / i for i in range(1, v + 1)]
    return min(Fraction(1), tail + 2 * m * delta * max(shares, default=Fraction(0)))


@pytest.mark.parametrize(
    ("m", "r", "v"), [(1, 1, 1), (20, 8, 8), (20, 8, 6), (40, 40, 31), (50, 30, 0), (9, 0, 0)]
)
@pytest.mark.parametrize("odds", [1, 3, 20])
@pytest.mark.parametrize("delta", [Fraction(0), Fraction(1, 10**5), Fraction(1, 100)])
def test_the_p_value_is_the_formula(m: int, r: int, v: int, odds: int, delta: Fraction) -> None:
    exact = exact_p_value(m, r, v, Fraction(odds, odds + 1), delta)
    assert p_value(m, r, v, math.log(odds), float(delta)) == pytest.approx(float(exact), rel=1e-9)


def test_the_bound_is_where_the_p_value_crosses_the_tolerance() -> None:
    bound = epsilon_lower_bound(1000, 200, 190, 1e-5)
    assert 2.0 < bound < 3.0
    assert p_value(1000, 200, 190, bound - 1e-6, 1e-5) < 0.05
    assert p_value(1000, 200, 190, bound + 1e-6, 1e-5) > 0.05


def test_all_guesses_right_has_a_closed_form_without_delta() -> None:
    """P[all right] = q^r = 0.05, so e^eps = q / (1 - q)."""
    right = 0.05 ** (1 / 500)
    expected = math.log(right / (1 - right))
    assert epsilon_lower_bound(500, 500, 500, 0.0) == pytest.approx(expected, abs=1e-9)


def test_delta_and_confidence_weaken_the_bound() -> None:
    bounds = [epsilon_lower_bound(1000, 200, 190, delta) for delta in (0.0, 1e-5, 1e-4)]
    assert bounds == sorted(bounds, reverse=True)
    assert len(set(bounds)) == 3
    assert epsilon_lower_bound(1000, 200, 190, 1e-5, confidence=0.999) < bounds[1]


def test_chance_proves_nothing() -> None:
    assert epsilon_lower_bound(1000, 200, 100, 1e-5) == 0.0
    assert epsilon_lower_bound(1000, 0, 0, 1e-5) == 0.0


@pytest.mark.parametrize("epsilon", [0.5, 2.0])
def test_randomised_response_is_bounded_as_often_as_promised(epsilon: float) -> None:
    """Randomised response is exactly epsilon-private: the bound exceeds it 1 time in 20."""
    runs, guesses = 4000, 300
    right = 1 / (1 + math.exp(-epsilon))
    correct = np.random.default_rng(7).binomial(guesses, right, runs)
    distinct = {v: epsilon_lower_bound(guesses, guesses, int(v), 0.0) for v in np.unique(correct)}
    bounds = np.array([distinct[v] for v in correct])
    assert 0.02 < (bounds > epsilon).mean() < 0.06
    assert np.median(bounds) > 0.6 * epsilon


def test_impossible_counts_are_refused() -> None:
    for counts in ((10, 5, 6), (10, 11, 5), (10, 5, -1)):
        with pytest.raises(SettingsError, match="cannot be"):
            p_value(*counts, 1.0, 1e-5)
    with pytest.raises(SettingsError, match="out of range"):
        p_value(10, 5, 5, -1.0, 1e-5)
    with pytest.raises(SettingsError, match="out of range"):
        p_value(10, 5, 5, 1.0, 1.5)
