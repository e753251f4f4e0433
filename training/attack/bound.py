"""A lower bound on epsilon from the guesses of a one-run audit.

Source: Steinke, Nasr, Jagielski, "Privacy Auditing with One (1) Training Run", NeurIPS 2023,
theorem 5.2 (approximate differential privacy, in the form of its appendix D).
"""

from __future__ import annotations

import math

import numpy as np
from scipy.stats import binom  # type: ignore[import-untyped]

from training.errors import SettingsError

# Beyond any bound that a feasible number of canaries can support.
_LARGEST_EPSILON = 64.0
_BISECTIONS = 60


def p_value(canaries: int, guesses: int, correct: int, epsilon: float, delta: float) -> float:
    """The chance of so many correct guesses, at most, if training is (epsilon, delta)-private.

    Each of `canaries` was put in or left out by a fair coin; about `guesses` of them the auditor
    has said which, and was right `correct` times. With W binomial(guesses, e^eps / (1 + e^eps))
    the chance is at most P[W >= v] + 2 m delta max_i P[v - i <= W < v] / i.

    Raises:
        SettingsError: the counts contradict each other, or epsilon or delta is out of range.
    """
    if not 0 <= correct <= guesses <= canaries:
        raise SettingsError(
            f"{correct} correct of {guesses} guesses about {canaries} canaries cannot be; "
            "expected 0 <= correct <= guesses <= canaries"
        )
    if epsilon < 0.0 or not 0.0 <= delta <= 1.0:
        raise SettingsError(f"epsilon {epsilon} or delta {delta} is out of range")
    right = 1.0 / (1.0 + math.exp(-epsilon))
    chance = float(binom.sf(correct - 1, guesses, right))
    if correct and delta:
        just_below = binom.pmf(np.arange(correct - 1, -1, -1), guesses, right)
        share = float((np.cumsum(just_below) / np.arange(1, correct + 1)).max())
        chance += 2.0 * canaries * delta * share
    return min(chance, 1.0)


def epsilon_lower_bound(
    canaries: int, guesses: int, correct: int, delta: float, confidence: float = 0.95
) -> float:
    """The largest epsilon that so many correct guesses refute, 0 if they refute none.

    If training is (epsilon, delta)-private, the result exceeds epsilon with probability at most
    1 - `confidence`. `guesses` must have been chosen before the scores were seen.
    """
    tolerated = 1.0 - confidence
    if p_value(canaries, guesses, correct, 0.0, delta) > tolerated:
        return 0.0
    low, high = 0.0, _LARGEST_EPSILON
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2.0
        if p_value(canaries, guesses, correct, middle, delta) <= tolerated:
            low = middle
        else:
            high = middle
    return low
