"""A network as a list of gates over real numbers: the stage between ONNX operators and the plan.

Every :class:`Op` defines one value, numbered by its position. Weights are real, nothing has a scale
yet, and the two gates that only exist because of scales and masks are still one request: a
:class:`Settle` becomes a Truncate, a Remask or nothing (:mod:`radiopaque.graph.emit`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import cast

import numpy as np
from numpy.typing import NDArray

from radiopaque.graph import plan as p
from radiopaque.graph.plan import Shape

Reals = NDArray[np.float64]
Interval = tuple[float, float]


@dataclass(frozen=True)
class Source:
    """The image."""


@dataclass(frozen=True, eq=False)
class Linear:
    """A gate with secret real weights, in the shape that the gate takes."""

    gate: p.Linear
    weights: Reals = field(repr=False)


@dataclass(frozen=True, eq=False)
class Constant:
    """Adds a secret real constant."""

    values: Reals = field(repr=False)


@dataclass(frozen=True)
class Combine:
    """Integer combination. ``hull``: inputs between whose values the result is known to lie."""

    coefficients: tuple[int, ...]
    hull: tuple[int, ...] = ()


@dataclass(frozen=True)
class Move:
    """Data movement: the elements stay, their places change."""

    gate: p.Reshape | p.Transpose | p.Slice | p.Expand | p.Concatenate


@dataclass(frozen=True)
class Pad:
    """Surrounds with a public real; None: the lowest value that the input may take (max-pool)."""

    before: tuple[int, ...]
    after: tuple[int, ...]
    value: float | None


@dataclass(frozen=True)
class Sum:
    """Window sums divided by ``count``, which costs nothing: the scale absorbs it."""

    gate: p.WindowSum
    count: int = 1


@dataclass(frozen=True)
class Relu:
    """max(x, 0). ``exact``: without truncation, as the rounds of a max-pool need it."""

    exact: bool = False


@dataclass(frozen=True)
class Settle:
    """Asks for few fraction bits; ``known``: also for a mask that the crypto provider knows."""

    known: bool


@dataclass(frozen=True)
class Units:
    """Adds public integers, one a column, to the stored values, whatever their scale."""

    values: tuple[int, ...]


@dataclass(frozen=True)
class Flag:
    """A value whose stored integers are 0 and 1 by construction, as the numbers 0 and 1."""


@dataclass(frozen=True)
class Result:
    """The output."""


Kind = (
    Source | Linear | Constant | Combine | Move | Pad | Sum | Relu | Settle | Units | Flag | Result
)


@dataclass(frozen=True, eq=False)
class Op:
    """One value. ``tensor``: the ONNX tensor that it equals, empty for a value in between.

    ``origin`` is the ONNX tensor that it helps to compute; ``bound`` what its values are known to
    lie within, whatever the input.
    """

    kind: Kind
    inputs: tuple[int, ...]
    shape: Shape
    tensor: str = ""
    origin: str = ""
    bound: Interval | None = None

    def renumbered(self, places: Mapping[int, int] | Sequence[int]) -> Op:
        """The same op where value v has the number ``places[v]``."""
        kind = self.kind
        if isinstance(kind, Combine):
            kind = replace(kind, hull=tuple(places[v] for v in kind.hull))
        return replace(self, kind=kind, inputs=tuple(places[v] for v in self.inputs))


@dataclass
class Draft:
    """A growing list of ops. Methods append one and return its number."""

    ops: list[Op] = field(default_factory=list)
    origin: str = ""

    def add(
        self,
        kind: Kind,
        inputs: Sequence[int],
        shape: Shape,
        tensor: str = "",
        bound: Interval | None = None,
    ) -> int:
        """Append any op."""
        self.ops.append(Op(kind, tuple(inputs), shape, tensor, tensor or self.origin, bound))
        return len(self.ops) - 1

    def shape(self, value: int) -> Shape:
        """Shape of a value."""
        return self.ops[value].shape

    def linear(self, value: int, gate: p.Linear, weights: Reals, shape: Shape) -> int:
        """A gate with secret weights."""
        return self.add(Linear(gate, weights), [value], shape)

    def multiply(self, value: int, weights: Reals) -> int:
        """Elementwise product with a constant that broadcasts to the value's shape."""
        return self.linear(value, p.Multiply(weights.shape), weights, self.shape(value))

    def add_constant(self, value: int, values: Reals) -> int:
        """Sum with a constant that broadcasts to the value's shape; zeros are left out."""
        if not values.any():
            return value
        return self.add(Constant(values), [value], self.shape(value))

    def combine(
        self,
        values: Sequence[int],
        coefficients: Sequence[int],
        hull: Sequence[int] = (),
        bound: Interval | None = None,
    ) -> int:
        """Integer combination of values of one shape."""
        kind = Combine(tuple(coefficients), tuple(hull))
        return self.add(kind, values, self.shape(values[0]), bound=bound)

    def relu(self, value: int, exact: bool = False) -> int:
        """max(x, 0)."""
        return self.add(Relu(exact), [value], self.shape(value))

    def settle(self, value: int) -> int:
        """The same value with few fraction bits."""
        return self.add(Settle(known=False), [value], self.shape(value))

    def reshape(self, value: int, shape: Shape) -> int:
        """Row-major; nothing where the shape stays, one op for several in a row."""
        op = self.ops[value]
        if op.shape == shape:
            return value
        if isinstance(op.kind, Move) and isinstance(op.kind.gate, p.Reshape):
            return self.reshape(op.inputs[0], shape)
        return self.add(Move(p.Reshape()), [value], shape)

    def transpose(self, value: int, permutation: Sequence[int]) -> int:
        """Axis i of the result is axis permutation[i]; a reshape where only unit axes move."""
        shape = self.shape(value)
        turned = tuple(shape[axis] for axis in permutation)
        moving = [axis for axis in permutation if shape[axis] > 1]
        if moving == sorted(moving):
            return self.reshape(value, turned)
        return self.add(Move(p.Transpose(tuple(permutation))), [value], turned)

    def slice(
        self, value: int, starts: Sequence[int], counts: Sequence[int], strides: Sequence[int]
    ) -> int:
        """Element j along an axis is element start + j * stride."""
        if tuple(counts) == self.shape(value):
            return value
        return self.add(Move(p.Slice(tuple(starts), tuple(strides))), [value], tuple(counts))

    def slice_axis(self, value: int, axis: int, start: int, count: int, stride: int = 1) -> int:
        """A slice along one axis."""
        shape = self.shape(value)
        starts = [start if i == axis else 0 for i in range(len(shape))]
        strides = [stride if i == axis else 1 for i in range(len(shape))]
        counts = [count if i == axis else size for i, size in enumerate(shape)]
        return self.slice(value, starts, counts, strides)

    def concatenate(self, values: Sequence[int], axis: int) -> int:
        """Values one after the other along an axis."""
        if len(values) == 1:
            return values[0]
        shape = list(self.shape(values[0]))
        shape[axis] = sum(self.shape(value)[axis] for value in values)
        return self.add(Move(p.Concatenate(axis)), values, tuple(shape))

    def expand(self, value: int, shape: Shape) -> int:
        """Numpy broadcasting."""
        if self.shape(value) == shape:
            return value
        return self.add(Move(p.Expand()), [value], shape)

    def pad(
        self, value: int, before: Sequence[int], after: Sequence[int], filling: float | None
    ) -> int:
        """Surround with a public real, or the lowest possible value."""
        if not any(before) and not any(after):
            return value
        shape = tuple(
            b + size + a for b, size, a in zip(before, self.shape(value), after, strict=True)
        )
        return self.add(Pad(tuple(before), tuple(after), filling), [value], shape)

    def name(self, value: int, tensor: str) -> None:
        """Say that a value is an ONNX tensor; the first name stays."""
        op = self.ops[value]
        if not op.tensor:
            self.ops[value] = Op(op.kind, op.inputs, op.shape, tensor, tensor, op.bound)


def consumers(ops: Sequence[Op]) -> list[list[int]]:
    """For each value, the ops that read it."""
    readers: list[list[int]] = [[] for _ in ops]
    for number, op in enumerate(ops):
        for value in op.inputs:
            readers[value].append(number)
    return readers


def known_masks(ops: Sequence[Op]) -> list[bool]:
    """For each value, whether the crypto provider knows its mask; as Plan.dealer_knows."""
    known: list[bool] = []
    for op in ops:
        if isinstance(op.kind, Source | Relu) or (isinstance(op.kind, Settle) and op.kind.known):
            known.append(True)
        elif isinstance(op.kind, Linear):
            known.append(False)
        else:
            known.append(all(known[value] for value in op.inputs))
    return known


def is_move(op: Op, gate: type) -> bool:
    """Whether an op is a data movement of this kind."""
    return isinstance(op.kind, Move) and isinstance(op.kind.gate, gate)


def linear_of(op: Op) -> Linear:
    """The op's kind, which the caller knows to be linear."""
    return cast(Linear, op.kind)
