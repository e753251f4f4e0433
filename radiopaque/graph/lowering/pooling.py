"""Pools and reductions.

A maximum is no gate of its own: max(a, b) = b + ReLU(a - b). Windows are separable, so a pool runs
along the width first, then along the height, each as a tournament of ceil(log2 kernel) rounds; the
pairs of one round are one Relu gate, so that a round costs one layer. Averages are window sums
whose count goes into the scale. Source: docs/protocol.md, section 7.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np

from radiopaque.graph import plan as p
from radiopaque.graph.draft import Draft, Reals, Sum
from radiopaque.graph.ir import Node
from radiopaque.graph.lowering.context import Context, NotLowered
from radiopaque.graph.lowering.windows import UNIT, Window, windows
from radiopaque.graph.validate import MAX_STEPS

MOST_POSITIONS = 1 << 22
"""Of a window along one axis, and of an average over a plane: beyond, a plan would not fit."""

FEW = 3
"""Windows of more elements that do not overlap are halved instead of sliced element by element."""


def max_pool(context: Context, node: Node) -> int:
    """MaxPool in one or two dimensions."""
    context.only_first_output(node, "the indices")
    x = context.value(node.input(0))
    spatial = _spatial(context, node)
    for window in spatial:
        _refuse_empty(window)
    draft = context.draft
    x = draft.settle(x)
    rank = len(draft.shape(x))
    for axis in reversed(range(2, rank)):
        x = _max_along(draft, x, axis, spatial[axis - 2])
    return x


def _spatial(context: Context, node: Node) -> list[Window]:
    shape = context.shape(node.input(0))
    if len(shape) not in (3, 4):
        raise NotLowered(
            f"pool of {len(shape) - 2} spatial dimensions",
            "one and two dimensions are supported; slice the volume",
        )
    kernel = node.integers("kernel_shape") or ()
    found = windows(node, shape[2:], context.shape(node.output)[2:], kernel)
    if max(max(window.count, window.kernel) for window in found) > MOST_POSITIONS:
        raise NotLowered("the pool is too large", "pool smaller windows of a smaller image")
    return found


def _refuse_empty(window: Window) -> None:
    """A window that holds padding only would be minus infinity."""
    if not _counts(window, included=False).all():
        raise NotLowered("a window lies in the padding altogether", "use less padding")


def _max_along(draft: Draft, x: int, axis: int, window: Window) -> int:
    if window.kernel == 1 and window.stride == 1 and window.begin == window.end == 0:
        return x
    rank = len(draft.shape(x))
    padded = window.covering()
    before = [padded.begin if i == axis else 0 for i in range(rank)]
    after = [padded.end if i == axis else 0 for i in range(rank)]
    x = draft.pad(x, before, after, None)
    if window.kernel == window.stride > FEW and window.dilation == 1:
        x = draft.slice_axis(x, axis, 0, window.reach)
        shape = draft.shape(x)
        blocks = (*shape[:axis], window.count, window.kernel, *shape[axis + 1 :])
        return draft.reshape(
            halve(draft, draft.reshape(x, blocks), axis + 1),
            (*shape[:axis], window.count, *shape[axis + 1 :]),
        )
    if window.kernel > MAX_STEPS:
        raise NotLowered(
            f"the maximum of {window.kernel} elements takes a step for each",
            "pool smaller windows, or windows that do not overlap",
        )
    candidates = [
        draft.slice_axis(x, axis, j * window.dilation, window.count, window.stride)
        for j in range(window.kernel)
    ]
    return _tournament(draft, candidates)


def _maximum(draft: Draft, a: int, b: int) -> int:
    excess = draft.relu(draft.combine([a, b], [1, -1]), exact=True)
    return draft.combine([b, excess], [1, 1], hull=(a, b))


def _tournament(draft: Draft, candidates: Sequence[int]) -> int:
    """Largest of several values of one shape; the pairs of a round share one gate."""
    while len(candidates) > 1:
        pairs = len(candidates) // 2
        left = draft.concatenate(candidates[0 : 2 * pairs : 2], 0)
        right = draft.concatenate(candidates[1 : 2 * pairs : 2], 0)
        winners = _maximum(draft, left, right)
        size = draft.shape(candidates[0])[0]
        candidates = [
            *(draft.slice_axis(winners, 0, i * size, size) for i in range(pairs)),
            *candidates[2 * pairs :],
        ]
    return candidates[0]


def halve(draft: Draft, x: int, axis: int) -> int:
    """Largest element along an axis of values with few fraction bits; the axis keeps extent 1."""
    while (size := draft.shape(x)[axis]) > 1:
        half = size // 2
        left = draft.slice_axis(x, axis, 0, half)
        right = draft.slice_axis(x, axis, half, half)
        winners = _maximum(draft, left, right)
        rest = [draft.slice_axis(x, axis, 2 * half, 1)] if size % 2 else []
        x = draft.concatenate([winners, *rest], axis)
    return x


def average_pool(context: Context, node: Node) -> int:
    """AveragePool; windows that count fewer elements at the border get their own factor."""
    draft = context.draft
    x = context.value(node.input(0))
    spatial = _spatial(context, node)
    shape = draft.shape(x)
    if len(shape) == 3:
        spatial.insert(0, UNIT)
        x = draft.reshape(x, (shape[0], shape[1], 1, shape[2]))
    included = node.integer("count_include_pad", 0) == 1
    if prod(window.count for window in spatial) > MOST_POSITIONS:
        raise NotLowered("the pool is too large", "pool smaller windows of a smaller image")
    counts = np.outer(*(_counts(window, included) for window in spatial))
    if not counts.all():
        raise NotLowered("a window lies in the padding altogether", "use less padding")
    height, width = (window.covering() for window in spatial)
    gate = p.WindowSum(
        kernel=(height.kernel, width.kernel),
        strides=(height.stride, width.stride),
        pads=(height.begin, width.begin, height.end, width.end),
        dilations=(height.dilation, width.dilation),
    )
    uniform = bool((counts == counts[0, 0]).all())
    divisor = int(counts[0, 0]) if uniform else height.kernel * width.kernel
    y = draft.add(Sum(gate, divisor), [x], (*shape[:2], height.count, width.count))
    if not uniform:
        y = draft.multiply(y, divisor / counts)
    return draft.reshape(y, context.shape(node.output))


def _counts(window: Window, included: bool) -> Reals:
    """Elements that each window along one axis counts: real ones, or explicit padding too."""
    low, high = (-window.begin, window.size + window.end) if included else (0, window.size)
    starts = np.arange(window.count) * window.stride - window.begin
    # of the elements starts + j * dilation, those from j = first on and before j = last are inside
    first, last = (
        np.clip(-((starts - bound) // window.dilation), 0, window.kernel) for bound in (low, high)
    )
    return np.asarray(np.maximum(last - first, 0), np.float64)


def global_average_pool(context: Context, node: Node) -> int:
    """Mean over all spatial axes."""
    return _reduce(context, node, tuple(range(2, len(context.shape(node.input(0))))), "mean")


def global_max_pool(context: Context, node: Node) -> int:
    """Maximum over all spatial axes."""
    return _reduce(context, node, tuple(range(2, len(context.shape(node.input(0))))), "max")


def reduce_mean(context: Context, node: Node) -> int:
    """ReduceMean over static axes."""
    return _reduce_axes(context, node, "mean")


def reduce_sum(context: Context, node: Node) -> int:
    """ReduceSum over static axes."""
    return _reduce_axes(context, node, "sum")


def reduce_max(context: Context, node: Node) -> int:
    """ReduceMax over static axes."""
    return _reduce_axes(context, node, "max")


def _reduce_axes(context: Context, node: Node, how: str) -> int:
    rank = len(context.shape(node.input(0)))
    axes = context.axes(node, 1, rank)
    if not axes:
        if node.integer("noop_with_empty_axes", 0):
            return context.value(node.input(0))
        axes = tuple(range(rank))
    return _reduce(context, node, axes, how)


def _reduce(context: Context, node: Node, axes: Sequence[int], how: str) -> int:
    draft = context.draft
    x = context.value(node.input(0))
    shape = draft.shape(x)
    count = prod(shape[axis] for axis in axes)
    kept = [axis for axis in range(len(shape)) if axis not in axes]
    if count > 1:
        x = draft.transpose(x, (*kept, *sorted(axes)))
        x = draft.reshape(x, (prod(shape[axis] for axis in kept), count))
        if how == "max":
            x = halve(draft, draft.settle(x), 1)
        else:
            gate = p.WindowSum((1, count))
            kind = Sum(gate, count if how == "mean" else 1)
            x = draft.add(kind, [x], (draft.shape(x)[0], 1))
    return draft.reshape(x, context.shape(node.output))
