"""Constant factors and summands go into the weights beside them; batch norm is just such a pair.

A factor on the channels that a linear gate gives goes into its weights, and so does one on the
channels that it takes. What cannot be folded (batch norm after a concatenation, as in DenseNet)
stays a Multiply and an AddConstant.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from radiopaque.graph import plan as p
from radiopaque.graph.draft import (
    Constant,
    Linear,
    Op,
    Reals,
    consumers,
    is_move,
    linear_of,
)
from radiopaque.graph.plan import Shape


def fold(ops: Sequence[Op]) -> list[Op]:
    """All foldings; the result holds no op that the output does not need."""
    return prune(_fold_forwards(prune(_Backwards(ops).run())))


def prune(ops: Sequence[Op]) -> list[Op]:
    """Drop the ops that the last one does not depend on. The image stays, it is step 0."""
    needed = {0, len(ops) - 1}
    for number in reversed(range(len(ops))):
        if number in needed:
            needed.update(ops[number].inputs)
    places = {number: place for place, number in enumerate(sorted(needed))}
    return [ops[number].renumbered(places) for number in sorted(needed)]


def _is_multiply(op: Op) -> bool:
    return isinstance(op.kind, Linear) and isinstance(op.kind.gate, p.Multiply)


def along_axis(values: Reals, shape: Shape, axis: int) -> Reals | None:
    """A broadcast constant as one number for each position along ``axis``; None if it has more."""
    full = values.reshape((1,) * (len(shape) - values.ndim) + values.shape)
    if any(size != 1 for i, size in enumerate(full.shape) if i != axis):
        return None
    return np.broadcast_to(full.reshape(-1), (shape[axis],))


def _across_reshape(values: Reals, outer: Shape, inner: Shape) -> Reals | None:
    """A constant beyond a reshape, before it; None where the reshape does more than unit axes."""
    if [s for s in outer if s != 1] != [s for s in inner if s != 1]:
        return None
    full = values.reshape((1,) * (len(outer) - values.ndim) + values.shape)
    sizes = iter([size for size, whole in zip(full.shape, outer, strict=True) if whole != 1])
    return full.reshape(tuple(1 if whole == 1 else next(sizes) for whole in inner))


@dataclass
class _Backwards:
    """Folds factors and summands into the op that they are applied to."""

    old: Sequence[Op]
    ops: list[Op] = field(default_factory=list)
    single: list[bool] = field(default_factory=list)

    def run(self) -> list[Op]:
        readers = consumers(self.old)
        places: list[int] = []
        for number, op in enumerate(self.old):
            moved = op.renumbered(places)
            place: int | None = None
            if _is_multiply(op):
                place = self._scale(moved.inputs[0], linear_of(op).weights, moved)
            elif isinstance(op.kind, Constant):
                place = self._shift(moved.inputs[0], op.kind.values, moved)
            if place is None:
                place = self._add(moved)
            self.single[place] = len(readers[number]) == 1
            places.append(place)
        return self.ops

    def _add(self, op: Op) -> int:
        self.ops.append(op)
        self.single.append(True)
        return len(self.ops) - 1

    def _scale(self, value: int, factor: Reals, result: Op) -> int | None:
        """``value * factor`` without a gate of its own, None where that cannot be."""
        if not self.single[value]:
            return None
        op = self.ops[value]
        if isinstance(op.kind, Linear):
            weights = _scaled_output(op.kind, factor, op.shape)
            if weights is None:
                return None
            return self._add(
                replace(
                    result,
                    kind=Linear(_with_shape(op.kind.gate, weights), weights),
                    inputs=op.inputs,
                    shape=op.shape,
                )
            )
        if isinstance(op.kind, Constant):
            inner = self._scale(op.inputs[0], factor, replace(result, tensor="", shape=op.shape))
            if inner is None:
                return None
            values = op.kind.values * factor
            return self._add(replace(result, kind=Constant(values), inputs=(inner,)))
        if is_move(op, p.Reshape):
            before = self.ops[op.inputs[0]].shape
            moved = _across_reshape(factor, op.shape, before)
            if moved is None:
                return None
            unnamed = replace(result, tensor="", shape=before)
            inner = self._scale(op.inputs[0], moved, unnamed)
            return None if inner is None else self._reshaped(op, inner, result)
        return None

    def _shift(self, value: int, summand: Reals, result: Op) -> int | None:
        """``value + summand`` merged with the constant that ``value`` ends with, if it does."""
        if not self.single[value]:
            return None
        op = self.ops[value]
        if isinstance(op.kind, Constant):
            values = op.kind.values + summand
            return self._add(replace(result, kind=Constant(values), inputs=op.inputs))
        if is_move(op, p.Reshape):
            before = self.ops[op.inputs[0]].shape
            moved = _across_reshape(summand, op.shape, before)
            if moved is None:
                return None
            unnamed = replace(result, kind=Constant(moved), tensor="", shape=before)
            inner = self._shift(op.inputs[0], moved, unnamed)
            if inner is None and isinstance(self.ops[op.inputs[0]].kind, Linear):
                inner = self._add(replace(unnamed, inputs=op.inputs))
            return None if inner is None else self._reshaped(op, inner, result)
        return None

    def _reshaped(self, op: Op, inner: int, result: Op) -> int:
        # Only the name decides which calibrated range holds: inside, too.
        self.ops[inner] = replace(self.ops[inner], tensor=result.tensor)
        return self._add(replace(result, kind=op.kind, inputs=(inner,), shape=op.shape))


def _with_shape(gate: p.Linear, weights: Reals) -> p.Linear:
    return p.Multiply(weights.shape) if isinstance(gate, p.Multiply) else gate


def _scaled_output(linear: Linear, factor: Reals, shape: Shape) -> Reals | None:
    """Weights of ``linear`` followed by a factor on what it gives."""
    if isinstance(linear.gate, p.Multiply):
        return np.asarray(linear.weights * factor)
    axis = 1 if isinstance(linear.gate, p.Convolution) else len(shape) - 1
    channels = along_axis(factor, shape, axis)
    if channels is None:
        return None
    if isinstance(linear.gate, p.Convolution):
        return np.asarray(linear.weights * channels[:, np.newaxis, np.newaxis, np.newaxis])
    return np.asarray(linear.weights * channels)


def _scaled_input(linear: Linear, factor: Reals, shape: Shape) -> Reals | None:
    """Weights of ``linear`` after a factor on what it takes, of this shape."""
    gate = linear.gate
    if isinstance(gate, p.Multiply):
        return None
    channels = along_axis(factor, shape, 1 if isinstance(gate, p.Convolution) else len(shape) - 1)
    if channels is None:
        return None
    if isinstance(gate, p.MatrixProduct):
        return np.asarray(linear.weights * channels[:, np.newaxis])
    grouped = channels.reshape(gate.groups, 1, -1)
    repeated = np.repeat(grouped, gate.out_channels // gate.groups, axis=1)
    return np.asarray(
        linear.weights * repeated.reshape(gate.out_channels, -1)[:, :, np.newaxis, np.newaxis]
    )


def _fold_forwards(ops: Sequence[Op]) -> list[Op]:
    """Fold ``x * f`` and ``x * f + b`` into the weights of the linear gates that read them.

    The second becomes ``(x + b / f) * f``, so that zero padding still pads what it did.
    """
    result = list(ops)
    readers = consumers(ops)
    for number, op in enumerate(ops):
        if not _is_multiply(op):
            continue
        factor = linear_of(op).weights
        if not factor.all():
            continue
        constant = None
        targets = readers[number]
        if len(targets) == 1 and isinstance(ops[targets[0]].kind, Constant):
            constant = targets[0]
            targets = readers[constant]
        weights = [
            _scaled_input(linear_of(ops[t]), factor, op.shape)
            if isinstance(ops[t].kind, Linear)
            else None
            for t in targets
        ]
        if not targets or any(w is None for w in weights):
            continue
        source = op.inputs[0]
        if constant is not None:
            shifted = result[constant]
            kind = shifted.kind
            if isinstance(kind, Constant):
                result[constant] = replace(
                    shifted, kind=Constant(kind.values / factor), inputs=(source,), tensor=""
                )
            source = constant
        for target, scaled in zip(targets, weights, strict=True):
            if scaled is not None:
                gate = linear_of(result[target]).gate
                result[target] = replace(
                    result[target], kind=Linear(gate, scaled), inputs=(source,)
                )
    return result
