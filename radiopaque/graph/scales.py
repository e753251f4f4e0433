"""Which scale every value may have and which it should have. Source: docs/protocol.md, section 8.

A comparison looks at n of the ring's k bits and one more, the rest is truncated. For a value that
is promised to stay within +-m this asks, of the scales before and after,

    m * scale_after <= 2**n - 1        and        scale_before <= scale_after * 2**(k - 1 - n),

and a truncation alone for m * scale_before <= 2**(k - 2). The weights of the linear gate before get
the bits that are left: scale_before / scale of its input. So this walks backwards from the output
and gives each value

* ``hard``, the largest scale that its readers can take, and
* ``want``, the scale that a gate which may choose should aim for.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from math import ceil, floor, inf, log2

import numpy as np

from radiopaque.errors import ModelRangeError
from radiopaque.graph.draft import Interval, Linear, Op, Relu, Result, Settle, Sum
from radiopaque.graph.intervals import LEAST_LIMIT

MOST_BITS = 62
"""Fraction bits that a plan may state."""
WINDOWS = (18, 24, 30)
"""Compared bits to choose from: 3, 4 or 5 look-ups."""
ROUNDING_SHARE = 2.0**-8
"""Of a value's limit, what the rounded weights and inputs that it is made of may add to it."""
ROUNDING_UNITS = 4
"""Window kept free for stochastic rounding and the sums of rounded values."""


@dataclass(frozen=True)
class Policy:
    """Choices for one ring size. Bits are binary digits of the scale.

    Activations get ``fraction_bits``, or ``relative_bits`` below their calibrated maximum where
    that is more (small activations), if the window allows; ``accepted_bits`` is where the next
    wider window is taken. A weight tensor's largest entry gets at least ``least_weight_bits``, for
    which activations give way, and at most ``most_weight_bits`` besides its sign: weights of the
    32-bit ring always fit 16 bits, and products of 16-bit halves tell nothing about them. A value
    that could be multiplied as it is loses bits first where it has ``spare_bits`` more than an
    activation should have.
    """

    ring_bits: int
    fraction_bits: int
    relative_bits: int
    accepted_bits: int
    least_weight_bits: int
    most_weight_bits: int
    spare_bits: int

    def preferred(self, interval: Interval, margin: float) -> float:
        """The scale that an activation should have."""
        maximum = magnitude(interval) / margin
        return 2.0 ** max(self.fraction_bits, self.relative_bits - ceil(log2(maximum)))


POLICIES = {
    32: Policy(32, 11, 13, 6, 5, 15, 2),
    64: Policy(64, 16, 18, 16, 16, 24, 32),
}


@dataclass(frozen=True)
class Target:
    """Scales for one value, see the module's text; ``compared_bits`` for a ReLU."""

    hard: float
    want: float
    compared_bits: int = 0


def magnitude(interval: Interval) -> float:
    """Largest absolute value in an interval, never smaller than what is promised at least."""
    return max(abs(interval[0]), abs(interval[1]), LEAST_LIMIT)


def targets(
    ops: Sequence[Op],
    found: Sequence[Interval],
    clashing: Collection[int],
    policy: Policy,
    margin: float,
    output_bits: int,
) -> list[Target]:
    """Targets for every value. Raises ModelRangeError where no scale fits.

    ``clashing`` values may have to be truncated and multiplied, besides what reads them.
    """
    hard = [inf] * len(ops)
    want = [inf] * len(ops)
    compared = [0] * len(ops)

    def ask(value: int, most: float, aim: float) -> None:
        hard[value] = min(hard[value], most)
        want[value] = min(want[value], aim, most)

    for number in reversed(range(len(ops))):
        op, kind = ops[number], ops[number].kind
        fits = (2.0 ** (policy.ring_bits - 1) - ROUNDING_UNITS) / reach(found[number])
        fits = min(fits, 2.0**MOST_BITS)
        if number in clashing:
            fits /= 2
        ask(number, fits, fits)
        if not op.inputs:
            preferred = policy.preferred(found[number], margin)
            want[number] = min(want[number], preferred)
            continue
        value = op.inputs[0]
        room = reach(found[value])
        if isinstance(kind, Relu | Settle):
            want[number] = min(want[number], policy.preferred(found[number], margin))
        if isinstance(kind, Result):
            # The result is up to half a unit of the last bit sent above the value.
            most = fits * (1 - 2.0**-output_bits)
            ask(value, most, most)
        elif isinstance(kind, Relu):
            bits, scale = _window(op, room, want[number], policy)
            compared[number] = bits
            want[number] = min(want[number], scale)
            most = want[number] * (1.0 if kind.exact else 2.0 ** (policy.ring_bits - 1 - bits))
            ask(value, most, most)
        elif isinstance(kind, Settle):
            most = (2.0 ** (policy.ring_bits - 2) - ROUNDING_UNITS) / room
            ask(value, most, most)
        elif isinstance(kind, Linear):
            largest = weight_magnitude(kind)
            most = hard[number] * largest / 2.0**policy.least_weight_bits
            # Below the next power of two: a sum of fresh values has a divisor besides.
            ask(value, most, 2 * policy.preferred(found[value], margin) - 1)
        elif isinstance(kind, Sum):
            ask(value, hard[number] / kind.count, want[number] / kind.count)
        else:
            for operand in op.inputs:
                ask(operand, hard[number], want[number])
    return [Target(*entry) for entry in zip(hard, want, compared, strict=True)]


def reach(interval: Interval) -> float:
    """As ``magnitude``, with room for what rounding adds on the way to this value."""
    return magnitude(interval) * (1 + ROUNDING_SHARE)


def weight_magnitude(linear: Linear) -> float:
    """Largest absolute weight; 1 for weights that are all zero."""
    return float(np.abs(linear.weights).max(initial=0.0)) or 1.0


def _window(op: Op, room: float, aim: float, policy: Policy) -> tuple[int, float]:
    """Compared bits, and the largest scale behind the gate that they allow."""
    for bits in WINDOWS:
        scale = (2.0**bits - ROUNDING_UNITS) / room
        if scale >= min(aim, 2.0**policy.accepted_bits):
            return bits, scale
    if scale < 1:
        largest = room / (1 + ROUNDING_SHARE)
        raise ModelRangeError(range_message(op, largest, policy.ring_bits))
    return bits, scale


def range_message(op: Op, room: float, ring_bits: int) -> str:
    """What does not fit, and what to do."""
    wider = "use --ring 64, " if ring_bits == 32 else ""
    return (
        f"tensor {op.origin!r} may reach {room:.4g}, margin included, which does not fit the "
        f"{ring_bits}-bit ring: {wider}normalise this layer (batch norm), or check that the "
        "calibration images are preprocessed as the model expects"
    )


def power_below(scale: float) -> int:
    """Largest e with 2**e <= scale."""
    return floor(log2(scale) + 1e-12)
