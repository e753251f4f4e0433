"""From the draft to the plan's steps: scales are fixed, weights are rounded, requests answered.

Forwards through the draft, each value gets its scale within the targets of
:mod:`radiopaque.graph.scales`; a Settle becomes a Truncate, a Remask or nothing; summands are
brought to one scale by public integer factors. Every value's stored integers are bounded on the
way, so that each gate's window is checked in exact arithmetic.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from math import ceil, floor, lcm

import numpy as np
from numpy.typing import NDArray

from radiopaque.errors import ModelRangeError
from radiopaque.graph import plan as p
from radiopaque.graph.divisors import Divisors
from radiopaque.graph.draft import (
    Combine,
    Constant,
    Flag,
    Linear,
    Move,
    Op,
    Pad,
    Relu,
    Result,
    Settle,
    Source,
    Sum,
    Units,
)
from radiopaque.graph.intervals import Bounds, linear_interval
from radiopaque.graph.rounding import round_weights
from radiopaque.graph.scales import (
    WINDOWS,
    Policy,
    Target,
    magnitude,
    power_below,
    range_message,
    weight_magnitude,
)
from radiopaque.graph.weights import Weights
from radiopaque.ring import ring_dtype

Span = tuple[int, int]

SUM_ERROR = 1e-6
"""Bound on the relative error of a sum of weights in double precision."""


@dataclass(frozen=True)
class Emitted:
    """Steps and weights, and for each step the draft op that it came from."""

    steps: tuple[p.Step, ...]
    weights: Weights
    sources: tuple[int, ...]


def emit(
    ops: Sequence[Op],
    bounds: Bounds,
    divisors: Divisors,
    targets: Sequence[Target],
    policy: Policy,
    output_bits: int,
) -> Emitted:
    """Steps for a draft. Raises ModelRangeError for what does not fit the ring."""
    return _Emitter(ops, bounds, divisors, targets, policy, output_bits).run()


@dataclass
class _Emitter:
    ops: Sequence[Op]
    bounds: Bounds
    divisors: Divisors
    targets: Sequence[Target]
    policy: Policy
    output_bits: int
    steps: list[p.Step] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)
    known: list[bool] = field(default_factory=list)
    sources: list[int] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    linear: dict[int, NDArray[np.unsignedinteger]] = field(default_factory=dict)
    constants: dict[int, NDArray[np.unsignedinteger]] = field(default_factory=dict)
    current: int = 0

    def run(self) -> Emitted:
        for number, op in enumerate(self.ops):
            self.current = number
            self.places.append(self._op(op, [self.places[v] for v in op.inputs]))
        weights = Weights(self.linear, self.constants)
        return Emitted(tuple(self.steps), weights, tuple(self.sources))

    def _op(self, op: Op, inputs: list[int]) -> int:
        kind = op.kind
        target = self.targets[self.current]
        if isinstance(kind, Source):
            return self._source(op, target)
        if isinstance(kind, Linear):
            return self._linear(op, kind, inputs[0], target)
        if isinstance(kind, Constant):
            return self._constant(op, kind, inputs[0])
        if isinstance(kind, Combine):
            return self._combine(op, kind, inputs, target)
        if isinstance(kind, Move):
            return self._move(op, kind, inputs, target)
        if isinstance(kind, Pad):
            return self._pad(op, kind, inputs[0])
        if isinstance(kind, Sum):
            return self._sum(op, kind, inputs[0])
        if isinstance(kind, Relu):
            return self._relu(op, kind, inputs[0], target)
        if isinstance(kind, Settle):
            return self._settle(kind, inputs[0], target)
        if isinstance(kind, Units):
            return self._units(op, kind, inputs[0])
        if isinstance(kind, Flag):
            return self._add(p.Combine((1,)), inputs, op.shape, Fraction(1), (0, 1))
        return self._result(op, kind, inputs[0])

    def _add(
        self, gate: p.Gate, inputs: Sequence[int], shape: p.Shape, scale: Fraction, span: Span
    ) -> int:
        divisor, bits = _split(scale, self.ops[self.current])
        known = isinstance(gate, p.FRESH_GATES) or (
            not isinstance(gate, p.LINEAR_GATES) and all(self.known[v] for v in inputs)
        )
        limit = max(abs(span[0]), abs(span[1]), 1)
        if limit >= 1 << (self.policy.ring_bits - 1):
            raise ModelRangeError(self._message(float(limit / scale)))
        self.steps.append(p.Step(gate, tuple(inputs), shape, bits, divisor, limit))
        self.spans.append(span)
        self.known.append(known)
        self.sources.append(self.current)
        return len(self.steps) - 1

    def _message(self, room: float) -> str:
        return range_message(self.ops[self.current], room, self.policy.ring_bits)

    def _meet(self, span: Span, scale: Fraction, slack: int) -> Span:
        """What integer arithmetic allows and what the current value promises by itself.

        ``slack`` is by how many units the rounding of its inputs may move the value.
        """
        own = self.bounds.own[self.current]
        if own is None:
            return span
        low = max(floor(Fraction(own[0]) * scale) - slack, span[0])
        high = min(ceil(Fraction(own[1]) * scale) + slack, span[1])
        return (low, high) if low <= high else span

    def _room(self) -> float:
        """Largest absolute value of the current op, for messages."""
        return max(abs(end) for end in self.bounds.allowed[self.current])

    def _power(self, scale: float) -> Fraction:
        """The largest scale up to this one: a power of two, or that times the chosen divisor."""
        divisor = self.divisors.chosen.get(self.current, 1)
        bits = power_below(scale / divisor)
        if bits < 0:
            raise ModelRangeError(self._message(self._room()))
        return Fraction(divisor << bits)

    def _source(self, op: Op, target: Target) -> int:
        scale = self._power(target.want)
        low, high = self.bounds.allowed[self.current]
        span = floor(Fraction(low) * scale), ceil(Fraction(high) * scale)
        return self._add(p.Input(), (), op.shape, scale, span)

    def _linear(self, op: Op, kind: Linear, x: int, target: Target) -> int:
        before = self.steps[x].scale
        largest = weight_magnitude(kind)
        # rounding takes a weight to one of the integers beside it
        most = float(before) * (2.0**self.policy.most_weight_bits - 1) / largest
        hard = target.hard * self._share(kind, x)
        scale = self._power(min(target.want, hard, most))
        ratio = scale / before
        if float(ratio) * largest < 2.0 ** (self.policy.least_weight_bits / 2):
            raise ModelRangeError(
                f"tensor {op.origin!r}: its range and its input's leave "
                f"{float(ratio) * largest:.3g} units for the largest weight; "
                + self._message(self._room())
            )
        stored = round_weights(kind.gate, kind.weights * float(ratio))
        low, high = linear_interval(kind.gate, stored, self.spans[x])
        # Sums of floats: their rounding is far below one in a million.
        wider = ceil(max(abs(low), abs(high)) * SUM_ERROR) + 1
        span = self._meet((floor(low) - wider, ceil(high) + wider), scale, 0)
        number = self._add(kind.gate, [x], op.shape, scale, span)
        self.linear[number] = self._words(stored)
        return number

    def _share(self, kind: Linear, x: int) -> float:
        """How much of its scale a value keeps because rounding made its input's interval wider."""
        before = float(self.steps[x].scale)
        inside = self.spans[x][0] / before, self.spans[x][1] / before
        actual = magnitude(linear_interval(kind.gate, kind.weights, inside))
        own = self.bounds.own[self.current]
        if own is not None:
            actual = min(actual, magnitude(own))
        return min(1.0, magnitude(self.bounds.allowed[self.current]) / actual)

    def _ring(self, values: NDArray[np.float64], scale: Fraction) -> NDArray[np.unsignedinteger]:
        return self._words(np.rint(values * float(scale)))

    def _words(self, stored: NDArray[np.float64]) -> NDArray[np.unsignedinteger]:
        """Integer-valued reals as two's complement ring words."""
        if not (np.abs(stored) < 2.0 ** (self.policy.ring_bits - 1)).all():
            raise ModelRangeError(self._message(self._room()))
        words = stored.astype(np.int64).astype(np.uint64)
        return words.astype(ring_dtype(self.policy.ring_bits))

    def _constant(self, op: Op, kind: Constant, x: int) -> int:
        scale = self.steps[x].scale
        low, high = self.spans[x]
        least = floor(float(kind.values.min()) * scale)
        most = ceil(float(kind.values.max()) * scale)
        span = self._meet((low + least, high + most), scale, 1)
        gate = p.AddConstant(kind.values.shape)
        number = self._add(gate, [x], op.shape, scale, span)
        self.constants[number] = self._ring(kind.values, scale)
        return number

    def _fine_enough(self, scale: Fraction, target: Target) -> bool:
        """Whether the readers can take a scale, and lose few weight bits by it."""
        most = min(target.hard, target.want * 2.0**self.policy.spare_bits)
        return float(scale) <= most * (1 + 1e-9)

    def _aligned(self, values: Sequence[int], target: Target) -> tuple[list[int], Fraction]:
        """The coarsest scale that all values can be brought to by integer factors.

        Where divisors make it too fine, those values are multiplied by 1 over their divisor.
        """
        common = _common([self.steps[v].scale for v in values])
        if self._fine_enough(common, target):
            return list(values), common
        powers = [
            v if self.steps[v].divisor == 1 else self._multiplied_out(v, target) for v in values
        ]
        return powers, _common([self.steps[v].scale for v in powers])

    def _multiplied_out(self, x: int, target: Target) -> int:
        """The same value at a power of two: a product with 1 over its divisor.

        Where the crypto provider knew the mask, readers may count on it, and it knows the new one.
        """
        step, known = self.steps[x], self.known[x]
        excess = power_below(float(step.scale)) - self.policy.fraction_bits
        if excess > self.policy.spare_bits and step.fraction_bits > 0:
            x = self._truncated(x, min(excess, step.fraction_bits))
        elif not self.known[x]:
            x = self._add(p.Remask(), [x], step.shape, step.scale, self.spans[x])
        step = self.steps[x]
        room = self.policy.ring_bits - 3 - step.limit.bit_length()
        gain = min(self.policy.fraction_bits, room)
        if gain < 1:
            raise ModelRangeError(self._message(float(step.limit / step.scale)))
        scale = Fraction(1 << power_below(float(step.scale)))
        ratio = scale * (1 << gain) / step.scale
        low, high = self.spans[x]
        span = floor(low * ratio) - abs(low), ceil(high * ratio) + abs(high)
        gate = p.Multiply(())
        number = self._add(gate, [x], step.shape, scale * (1 << gain), span)
        self.linear[number] = self._ring(np.array(1.0), ratio)
        if not self._fine_enough(scale * (1 << gain), target):
            return self._truncated(number, gain)
        if known:
            return self._add(p.Remask(), [number], step.shape, scale * (1 << gain), span)
        return number

    def _truncated(self, x: int, shift: int) -> int:
        step = self.steps[x]
        low, high = self.spans[x]
        opened = max((step.limit - 1).bit_length() + 2, shift + 3)
        if shift == 0 or opened > self.policy.ring_bits:
            raise ModelRangeError(self._message(float(step.limit / step.scale)))
        span = ((low >> shift), (high >> shift) + 1)
        gate = p.Truncate(opened, shift)
        return self._add(gate, [x], step.shape, step.scale / (1 << shift), span)

    def _combine(self, op: Op, kind: Combine, values: Sequence[int], target: Target) -> int:
        operands, scale = self._aligned(values, target)
        factors = [
            c * int(scale / self.steps[v].scale)
            for c, v in zip(kind.coefficients, operands, strict=True)
        ]
        ends = [
            sorted((f * self.spans[v][0], f * self.spans[v][1]))
            for f, v in zip(factors, operands, strict=True)
        ]
        span = sum(a for a, _ in ends), sum(b for _, b in ends)
        if kind.hull:
            places = [self.places[v] for v in kind.hull]
            ratios = [scale / self.steps[v].scale for v in places]
            bounds = [
                (floor(self.spans[v][0] * r), ceil(self.spans[v][1] * r))
                for v, r in zip(places, ratios, strict=True)
            ]
            span = min(a for a, _ in bounds), max(b for _, b in bounds)
        span = self._meet(span, scale, sum(abs(f) for f in factors))
        return self._add(p.Combine(tuple(factors)), operands, op.shape, scale, span)

    def _move(self, op: Op, kind: Move, values: Sequence[int], target: Target) -> int:
        operands, scale = self._aligned(values, target)
        operands = [self._finer(v, scale) for v in operands]
        span = self._meet(_hull([self.spans[v] for v in operands]), scale, 1)
        return self._add(kind.gate, operands, op.shape, scale, span)

    def _finer(self, x: int, scale: Fraction) -> int:
        step = self.steps[x]
        if step.scale == scale:
            return x
        factor = int(scale / step.scale)
        low, high = self.spans[x]
        gate = p.Combine((factor,))
        return self._add(gate, [x], step.shape, scale, (low * factor, high * factor))

    def _pad(self, op: Op, kind: Pad, x: int) -> int:
        scale = self.steps[x].scale
        low, high = self.spans[x]
        value = low if kind.value is None else round(Fraction(kind.value) * scale)
        gate = p.Pad(kind.before, kind.after, value)
        return self._add(gate, [x], op.shape, scale, (min(low, value), max(high, value)))

    def _sum(self, op: Op, kind: Sum, x: int) -> int:
        scale = self.steps[x].scale * kind.count
        terms = kind.gate.kernel[0] * kind.gate.kernel[1]
        low, high = self.spans[x]
        if any(kind.gate.pads):
            low, high = min(low, 0), max(high, 0)
        span = self._meet((low * terms, high * terms), scale, terms)
        return self._add(kind.gate, [x], op.shape, scale, span)

    def _relu(self, op: Op, kind: Relu, x: int, target: Target) -> int:
        scale = self.steps[x].scale
        low, high = self.spans[x]
        limit = max(-low, high)
        shift = 0 if kind.exact else self._shift(scale, target.want)
        for bits in WINDOWS:
            fits = limit <= (1 << (bits + shift)) - (1 << shift)
            if bits >= target.compared_bits and fits and bits + 1 + shift <= self.policy.ring_bits:
                break
        else:
            raise ModelRangeError(self._message(float(limit / scale)))
        span = self._meet((0, (max(high, 0) >> shift) + (shift > 0)), scale / (1 << shift), 1)
        gate = p.Relu(bits + 1 + shift, shift)
        return self._add(gate, [x], op.shape, scale / (1 << shift), (max(span[0], 0), span[1]))

    def _shift(self, scale: Fraction, want: float) -> int:
        """Bits to drop so that the scale is at most ``want``, as far as there are fraction bits."""
        shift = 0
        while float(scale) > want * (1 + 1e-9) and scale.numerator % 2 == 0:
            scale /= 2
            shift += 1
        return shift

    def _settle(self, kind: Settle, x: int, target: Target) -> int:
        step = self.steps[x]
        if not self._fine_enough(step.scale, target):
            return self._truncated(x, self._shift(step.scale, target.want))
        if kind.known and not self.known[x]:
            return self._add(p.Remask(), [x], step.shape, step.scale, self.spans[x])
        return x

    def _units(self, op: Op, kind: Units, x: int) -> int:
        low, high = self.spans[x]
        span = low + min(kind.values), high + max(kind.values)
        gate = p.AddConstant((len(kind.values),))
        number = self._add(gate, [x], op.shape, self.steps[x].scale, span)
        self.constants[number] = self._words(np.array(kind.values, np.float64))
        return number

    def _result(self, op: Op, kind: Result, x: int) -> int:
        step = self.steps[x]
        # The result is up to half a unit off and must not reach the sign bit.
        position, bits = 0, min(self.output_bits, step.limit.bit_length() + 1)
        while step.limit > (1 << (bits + position - 1)) - 1 - (1 << position >> 1):
            position += 1
        if bits + position > self.policy.ring_bits:
            raise ModelRangeError(self._message(float(step.limit / step.scale)))
        gate = p.Output(bits, position)
        return self._add(gate, [x], op.shape, step.scale, self.spans[x])


def _hull(spans: Sequence[Span]) -> Span:
    return min(a for a, _ in spans), max(b for _, b in spans)


def _split(scale: Fraction, op: Op) -> tuple[int, int]:
    """A scale as odd divisor and fraction bits."""
    if scale.denominator != 1:
        raise ModelRangeError(
            f"tensor {op.origin!r}: no fraction bits are left; use --ring 64, "
            "or normalise the layer"
        )
    bits = (scale.numerator & -scale.numerator).bit_length() - 1
    return scale.numerator >> bits, bits


def _common(scales: Sequence[Fraction]) -> Fraction:
    return Fraction(lcm(*(s.numerator for s in scales)))
