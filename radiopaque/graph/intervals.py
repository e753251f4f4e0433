"""Between which reals every value of a draft is promised to lie.

A tensor with a calibrated range is promised to stay within plus or minus margin times its largest
absolute value. Every other value, and a calibrated one too, within what its inputs allow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from radiopaque.errors import ModelRangeError
from radiopaque.graph import plan as p
from radiopaque.graph.draft import (
    Combine,
    Constant,
    Flag,
    Interval,
    Linear,
    Op,
    Pad,
    Reals,
    Relu,
    Source,
    Sum,
    consumers,
)

ASSUMED_LIMIT = 16_000.0
"""Largest absolute value, margin included, that is assumed of a model without calibration."""
LEAST_LIMIT = 2.0**-10
"""Promised at least, for tensors that calibration saw as zero."""
SHOWN = 5


@dataclass(frozen=True)
class Promise:
    """Calibrated ranges by ONNX tensor name and their margin; None: nothing is calibrated."""

    ranges: Mapping[str, Interval] | None
    margin: float

    def __post_init__(self) -> None:
        for name, (low, high) in (self.ranges or {}).items():
            if not -np.inf < low <= high < np.inf:
                raise ModelRangeError(
                    f"the range of tensor {name!r} is [{low:g}, {high:g}]: not finite, or not "
                    "smallest first; calibrate again"
                )

    def limit(self, tensor: str) -> float | None:
        """Largest absolute value that a tensor is promised to take; None: its range is unknown."""
        if self.ranges is None:
            return ASSUMED_LIMIT
        if tensor not in self.ranges:
            return None
        return max(self.margin * max(abs(v) for v in self.ranges[tensor]), LEAST_LIMIT)


@dataclass(frozen=True)
class Bounds:
    """For each value ``allowed``, the interval that it lies within, margin included, and ``own``,
    the part of that which does not follow from its inputs: calibrated, or known of the operator."""

    allowed: tuple[Interval, ...]
    own: tuple[Interval | None, ...]


def intervals(ops: Sequence[Op], promise: Promise) -> Bounds:
    """The bounds of every value. Raises ModelRangeError for missing ranges."""
    _check_complete(ops, promise)
    readers = consumers(ops)
    found: list[Interval] = []
    own: list[Interval | None] = []
    for number, op in enumerate(ops):
        low, high = _allowed(op, found)
        bounds = [b for b in (op.bound, _limit(ops, number, readers[number], promise)) if b]
        for bound in bounds:
            low, high = max(low, bound[0]), min(high, bound[1])
        found.append((low, max(low, high)))
        own.append(_meet(bounds) if bounds else None)
    return Bounds(tuple(found), tuple(own))


def _meet(bounds: Sequence[Interval]) -> Interval:
    return max(low for low, _ in bounds), min(high for _, high in bounds)


def _limit(
    ops: Sequence[Op], number: int, readers: Sequence[int], promise: Promise
) -> Interval | None:
    op = ops[number]
    limit = promise.limit(op.tensor)
    if limit is not None:
        return -limit, limit
    # A convolution's sum before its bias: what the range after the bias leaves.
    if isinstance(op.kind, Linear) and len(readers) == 1:
        after = ops[readers[0]]
        limit = promise.limit(after.tensor)
        if isinstance(after.kind, Constant) and limit is not None:
            values = after.kind.values
            return -limit - float(values.max()), limit - float(values.min())
    return None


def _check_complete(ops: Sequence[Op], promise: Promise) -> None:
    """Every value that linear gates compute needs a range; the others follow from those."""
    if promise.ranges is None:
        return
    missing = [
        op.tensor
        for op in ops
        if op.tensor
        and promise.limit(op.tensor) is None
        and (
            isinstance(op.kind, Source | Linear)
            or (isinstance(op.kind, Constant) and isinstance(ops[op.inputs[0]].kind, Linear))
        )
    ]
    if missing:
        shown = ", ".join(repr(name) for name in missing[:SHOWN])
        more = f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else ""
        raise ModelRangeError(
            f"no range is known for tensors {shown}{more}: the ranges belong to another model; "
            "calibrate again with images from training data"
        )


def _allowed(op: Op, found: Sequence[Interval]) -> Interval:
    """What a value may be, given its inputs."""
    kind = op.kind
    inputs = [found[v] for v in op.inputs]
    if isinstance(kind, Source):
        return -np.inf, np.inf
    low, high = inputs[0]
    if isinstance(kind, Linear):
        return linear_interval(kind.gate, kind.weights, inputs[0])
    if isinstance(kind, Constant):
        return low + float(kind.values.min()), high + float(kind.values.max())
    if isinstance(kind, Combine):
        if kind.hull:
            return _hull([found[v] for v in kind.hull])
        ends = [sorted((c * a, c * b)) for c, (a, b) in zip(kind.coefficients, inputs, strict=True)]
        return sum(a for a, _ in ends), sum(b for _, b in ends)
    if isinstance(kind, Pad) and kind.value is not None:
        return min(low, kind.value), max(high, kind.value)
    if isinstance(kind, Sum):
        if any(kind.gate.pads):
            low, high = min(low, 0.0), max(high, 0.0)
        terms = kind.gate.kernel[0] * kind.gate.kernel[1] / kind.count
        return terms * low, terms * high
    if isinstance(kind, Relu):
        return max(low, 0.0), max(high, 0.0)
    if isinstance(kind, Flag):
        return 0.0, 1.0
    return _hull(inputs)


def _hull(values: Sequence[Interval]) -> Interval:
    return min(a for a, _ in values), max(b for _, b in values)


def linear_interval(gate: p.Linear, weights: Reals, inside: Interval) -> Interval:
    """What a linear gate with these weights may give for inputs within an interval."""
    low, high = inside
    if isinstance(gate, p.Multiply):
        ends = np.stack([weights * low, weights * high])
        return float(ends.min()), float(ends.max())
    axes: tuple[int, ...] = (0,)
    if isinstance(gate, p.Convolution):
        axes = (1, 2, 3)
        if any(gate.pads):
            low, high = min(low, 0.0), max(high, 0.0)
    up = np.maximum(weights, 0).sum(axis=axes)
    down = np.minimum(weights, 0).sum(axis=axes)
    return float((up * low + down * high).min()), float((up * high + down * low).max())
