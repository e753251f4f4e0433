"""Sums, differences, and the operators that are made of ReLU: Clip, LeakyRelu, PRelu, Max, Min."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from radiopaque.graph.draft import Reals
from radiopaque.graph.ir import Node
from radiopaque.graph.lowering.context import Context, NotLowered

UNBOUNDED = 1e30
"""Clip bounds from here on mean that there is none (exporters write the largest float)."""


def relu(context: Context, node: Node) -> int:
    """max(x, 0)."""
    return context.draft.relu(context.value(node.input(0)))


def negation(context: Context, node: Node) -> int:
    """-x."""
    return context.draft.combine([context.value(node.input(0))], [-1])


def total(context: Context, node: Node) -> int:
    """Add and Sum of tensors and constants."""
    return _signed_sum(context, node, [1] * len(node.inputs))


def difference(context: Context, node: Node) -> int:
    """Sub of tensors and constants."""
    return _signed_sum(context, node, [1, -1])


def _signed_sum(context: Context, node: Node, signs: Sequence[int]) -> int:
    draft, shape = context.draft, context.shape(node.output)
    pairs = list(zip(node.inputs, signs, strict=True))
    tensors = [(name, sign) for name, sign in pairs if not context.is_constant(name)]
    values = context.broadcast([name for name, _ in tensors], shape)
    y = values[0]
    if len(values) > 1 or tensors[0][1] != 1:
        y = draft.combine(values, [sign for _, sign in tensors])
    for name, sign in pairs:
        if context.is_constant(name):
            y = draft.add_constant(y, sign * context.constant(name, "the summand"))
    return y


def clip(context: Context, node: Node) -> int:
    """Clip to constant bounds: lo + ReLU(x - lo) - ReLU(x - hi), both in one layer."""
    draft = context.draft
    low, high = (_bound(context, node.input(position)) for position in (1, 2))
    x = context.value(node.input(0))
    if low is not None and high is not None:
        if low >= high:
            raise NotLowered(f"bounds {low} to {high} leave no range", "repair the bounds")
        above = draft.add_constant(x, np.array(-low))
        t, excess = _relu_pair(context, above, draft.add_constant(x, np.array(-high)))
        y = draft.combine([t, excess], [1, -1], bound=(0.0, high - low))
        return draft.add_constant(y, np.array(low))
    if low is not None:
        return _maximum_with(context, x, np.array(low))
    if high is not None:
        return _minimum_with(context, x, np.array(high))
    return x


def _bound(context: Context, name: str) -> float | None:
    if not name:
        return None
    values = context.graph.reals(name)
    if values is None or values.size != 1:
        raise NotLowered(f"the bound {name!r} is no constant scalar", "clip to constant bounds")
    value = float(values.reshape(-1)[0])
    return value if abs(value) < UNBOUNDED else None


def _relu_pair(context: Context, first: int, second: int) -> tuple[int, int]:
    """ReLU of two values of one shape in one gate layer, so that it costs no more round trips."""
    draft = context.draft
    shape = draft.shape(first)
    whole = shape or (1,)
    stacked = draft.concatenate([draft.reshape(first, whole), draft.reshape(second, whole)], 0)
    both = draft.relu(stacked)
    halves = (draft.slice_axis(both, 0, start, whole[0]) for start in (0, whole[0]))
    positive, negative = (draft.reshape(half, shape) for half in halves)
    return positive, negative


def leaky_relu(context: Context, node: Node) -> int:
    """ReLU(x) - slope ReLU(-x)."""
    return _sloped(context, node, np.array(node.real("alpha", 0.01)))


def prelu(context: Context, node: Node) -> int:
    """ReLU(x) - slope ReLU(-x) with a slope for each channel or element."""
    return _sloped(context, node, context.constant(node.input(1), "the slope"))


def _sloped(context: Context, node: Node, slope: Reals) -> int:
    draft = context.draft
    x = context.value(node.input(0))
    positive, negative = _relu_pair(context, x, draft.combine([x], [-1]))
    return draft.combine([positive, draft.multiply(negative, -slope)], [1, 1])


def maximum(context: Context, node: Node) -> int:
    """Max of tensors and constants."""
    return _extremum(context, node, largest=True)


def minimum(context: Context, node: Node) -> int:
    """Min of tensors and constants."""
    return _extremum(context, node, largest=False)


def _extremum(context: Context, node: Node, largest: bool) -> int:
    draft, shape = context.draft, context.shape(node.output)
    tensors = [name for name in node.inputs if not context.is_constant(name)]
    first, *others = context.broadcast(tensors, shape)
    y = first
    for other in others:
        # max(a, b) = b + ReLU(a - b), min(a, b) = b - ReLU(b - a)
        sign = 1 if largest else -1
        excess = draft.relu(draft.combine([y, other], [sign, -sign]))
        y = draft.combine([other, excess], [1, sign], hull=(y, other))
    for name in node.inputs:
        if context.is_constant(name):
            values = context.constant(name, "the bound")
            y = (_maximum_with if largest else _minimum_with)(context, y, values)
    return y


def _maximum_with(context: Context, x: int, values: Reals) -> int:
    draft = context.draft
    return draft.add_constant(draft.relu(draft.add_constant(x, -values)), values)


def _minimum_with(context: Context, x: int, values: Reals) -> int:
    draft = context.draft
    room = draft.add_constant(draft.combine([x], [-1]), values)
    return draft.add_constant(draft.combine([draft.relu(room)], [-1]), values)
