"""How much privacy the steps of a site have cost: epsilon at a given delta, by two accountants.

Mechanism: Poisson-sampled Gaussian, neighbours differ by one image more or less. Both results are
upper bounds. Renyi accounting (Mironov, Talwar, Zhang, "Renyi Differential Privacy of the Sampled
Gaussian Mechanism", 2019) is simple and somewhat loose; numerical composition of privacy loss
random variables (Gopi, Lee, Wutschitz, "Numerical Composition of Differential Privacy", NeurIPS
2021) is tight. Opacus computes both; the tests check them against the accountants of
`dp-accounting`, which share no code with it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from opacus.accountants import PRVAccountant  # type: ignore[import-untyped]
from opacus.accountants.analysis.rdp import compute_rdp  # type: ignore[import-untyped]

from training.errors import SettingsError

Accountant = Literal["prv", "rdp"]

# Small orders matter for large epsilons, large ones for small epsilons. Whole numbers only: there
# the moment is a finite sum; at fractional orders libraries differ in where they cut a series.
ORDERS: tuple[int, ...] = (*range(2, 65), 72, 96, 128, 192, 256, 384, 512, 768, 1024)
# Numerical composition needs memory that grows with epsilon; beyond this nobody asks for digits.
LARGEST_PRV = 60.0
_PRV_ERROR = 0.01
# Small epsilons get a mesh that is fine enough for two per cent.
_PRV_RELATIVE_ERROR = 0.005
_LARGEST_NOISE = 1e4


@dataclass(frozen=True, slots=True)
class Steps:
    """So many steps with one noise multiplier and one sampling rate."""

    noise_multiplier: float
    sample_rate: float
    count: int

    def __post_init__(self) -> None:
        """Refuse values that no accountant is right for.

        Raises:
            SettingsError: a value is out of its range.
        """
        if not (math.isfinite(self.noise_multiplier) and self.noise_multiplier >= 0.0):
            raise SettingsError(
                f"the noise multiplier is {self.noise_multiplier}; it must be 0 or more"
            )
        if not 0.0 < self.sample_rate <= 1.0:
            raise SettingsError(
                f"the sampling rate is {self.sample_rate}; it must lie above 0 and at most at 1"
            )
        if self.count < 0:
            raise SettingsError(f"{self.count} steps cannot be accounted for; use 0 or more")


History = Sequence[Steps]


def rdp_epsilon(history: History, delta: float) -> float:
    """Epsilon at `delta` by Renyi accounting; infinite where a step had no noise.

    Conversion: Canonne, Kamath, Steinke, "The Discrete Gaussian for Differential Privacy", NeurIPS
    2020, proposition 12.

    Raises:
        SettingsError: delta is not strictly between 0 and 1.
    """
    _check_delta(delta)
    taken = tuple(steps for steps in history if steps.count)
    if not taken:
        return 0.0
    if any(steps.noise_multiplier == 0.0 for steps in taken):
        return math.inf
    best = math.inf
    totals = [
        sum(values)
        for values in zip(
            *(_renyi(steps.noise_multiplier, steps.sample_rate, steps.count) for steps in taken),
            strict=True,
        )
    ]
    for order, total in zip(ORDERS, totals, strict=True):
        epsilon = total + math.log1p(-1.0 / order) - math.log(delta * order) / (order - 1.0)
        if total >= 0.0 and math.isfinite(epsilon):
            best = min(best, max(0.0, epsilon))
    return best


@lru_cache(maxsize=256)
def _renyi_of_one(noise_multiplier: float, sample_rate: float) -> tuple[float, ...]:
    orders = list(ORDERS)
    values = compute_rdp(q=sample_rate, noise_multiplier=noise_multiplier, steps=1, orders=orders)
    return tuple(float(value) for value in values)


def _renyi(noise_multiplier: float, sample_rate: float, count: int) -> tuple[float, ...]:
    return tuple(count * value for value in _renyi_of_one(noise_multiplier, sample_rate))


def prv_epsilon(history: History, delta: float) -> float:
    """Epsilon at `delta` by numerical composition: an upper bound, at most a per cent above.

    Where the Renyi bound exceeds LARGEST_PRV, that bound is returned.

    Raises:
        SettingsError: delta is not strictly between 0 and 1.
    """
    return _prv(tuple(steps for steps in history if steps.count), delta)


@lru_cache(maxsize=256)
def _prv(history: tuple[Steps, ...], delta: float) -> float:
    bound = rdp_epsilon(history, delta)
    if not 0.0 < bound <= LARGEST_PRV:
        return bound
    accountant = PRVAccountant()
    accountant.history = [
        (steps.noise_multiplier, _open_rate(steps.sample_rate), steps.count) for steps in history
    ]
    error = min(_PRV_ERROR, max(1e-4, _PRV_RELATIVE_ERROR * bound))
    epsilon = float(accountant.get_epsilon(delta, eps_error=error))
    # Two upper bounds: the smaller one holds. Numerical failure would show as not a number.
    return min(bound, epsilon) if math.isfinite(epsilon) else bound


def _open_rate(rate: float) -> float:
    """The rate for numerical composition, whose formula has a logarithm of 1 - rate."""
    return min(rate, 1.0 - 1e-12)


def epsilon_of(history: History, delta: float, accountant: Accountant) -> float:
    """Epsilon at `delta` by the accountant of that name."""
    return prv_epsilon(history, delta) if accountant == "prv" else rdp_epsilon(history, delta)


def noise_for(
    epsilon: float,
    delta: float,
    sample_rate: float,
    steps: int,
    accountant: Accountant = "prv",
) -> float:
    """Return the smallest noise multiplier, to one per mille, that keeps within `epsilon`.

    Raises:
        SettingsError: epsilon is not positive, there are no steps, or no noise is enough.
    """
    if not (math.isfinite(epsilon) and epsilon > 0.0) or steps < 1:
        raise SettingsError(
            f"no noise can be found for epsilon {epsilon} and {steps} steps; both must be positive"
        )

    def spent(noise: float) -> float:
        return epsilon_of((Steps(noise, sample_rate, steps),), delta, accountant)

    low, high = 0.05, 1.0
    while spent(high) > epsilon:
        low, high = high, 2.0 * high
        if high > _LARGEST_NOISE:
            raise SettingsError(
                f"no noise multiplier up to {_LARGEST_NOISE:g} keeps {steps} steps within "
                f"epsilon {epsilon}; allow more, or take fewer steps"
            )
    while high - low > 1e-3 * high:
        middle = 0.5 * (low + high)
        if spent(middle) > epsilon:
            low = middle
        else:
            high = middle
    return high


def _check_delta(delta: float) -> None:
    if not 0.0 < delta < 1.0:
        raise SettingsError(f"delta is {delta}; it must lie between 0 and 1, for instance 1e-5")
