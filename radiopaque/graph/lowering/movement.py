"""Operators that move elements: reshapes, Transpose, Expand, Slice, Split, Gather, Pad, Concat."""

from __future__ import annotations

from collections.abc import Sequence

from radiopaque.graph.ir import Node
from radiopaque.graph.lowering.context import Context, NotLowered

MOST_PIECES = 64
"""Slices that one node may become."""


def reshape(context: Context, node: Node) -> int:
    """Reshape, Flatten, Squeeze and Unsqueeze: only the inferred shape matters."""
    return context.draft.reshape(context.value(node.input(0)), context.shape(node.output))


def transpose(context: Context, node: Node) -> int:
    """Transpose; without a permutation the axes are reversed."""
    x = context.value(node.input(0))
    rank = len(context.draft.shape(x))
    return context.draft.transpose(x, node.integers("perm") or tuple(reversed(range(rank))))


def expand(context: Context, node: Node) -> int:
    """Expand to a static shape."""
    return context.draft.expand(context.value(node.input(0)), context.shape(node.output))


def concatenate(context: Context, node: Node) -> int:
    """Concat of tensors that depend on the image."""
    values = [context.value(name) for name in node.inputs]
    rank = len(context.shape(node.output))
    return context.draft.concatenate(values, node.integer("axis", 0) % rank)


def slice_(context: Context, node: Node) -> int:
    """Slice with constant starts, ends and steps."""
    shape = context.shape(node.input(0))
    x = context.value(node.input(0))
    starts = context.integers(node.input(1), "starts")
    ends = context.integers(node.input(2), "ends")
    axes = tuple(range(len(starts)))
    if node.input(3):
        axes = tuple(a % len(shape) for a in context.integers(node.input(3), "axes"))
    steps = (1,) * len(starts)
    if node.input(4):
        steps = context.integers(node.input(4), "steps")
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        positions = range(shape[axis])[start:end:step]
        if not positions:
            raise NotLowered(f"nothing is left of axis {axis}", "repair starts and ends")
        x = _take(context, x, axis, positions)
    return x


def _take(context: Context, x: int, axis: int, indices: Sequence[int]) -> int:
    """Elements along an axis in any order, as slices with positive steps, one after the other."""
    pieces = []
    rest = list(indices)
    while rest:
        step = rest[1] - rest[0] if len(rest) > 1 and rest[1] > rest[0] else 1
        count = 1
        while count < len(rest) and rest[count] - rest[count - 1] == step:
            count += 1
        pieces.append((rest[0], count, step))
        rest = rest[count:]
    if len(pieces) > MOST_PIECES:
        raise NotLowered(
            f"{len(pieces)} pieces of axis {axis} out of order",
            f"take at most {MOST_PIECES}, or reorder the channels of the weights instead",
        )
    draft = context.draft
    return draft.concatenate([draft.slice_axis(x, axis, *piece) for piece in pieces], axis)


def split(context: Context, node: Node) -> Sequence[int]:
    """Split: the sizes are those of the inferred outputs."""
    x = context.value(node.input(0))
    axis = node.integer("axis", 0) % len(context.draft.shape(x))
    pieces, start = [], 0
    for name in node.outputs:
        size = context.shape(name)[axis]
        pieces.append(context.draft.slice_axis(x, axis, start, size))
        start += size
    return pieces


def gather(context: Context, node: Node) -> int:
    """Gather with constant indices."""
    shape = context.shape(node.input(0))
    x = context.value(node.input(0))
    axis = node.integer("axis", 0) % len(shape)
    indices = [i % shape[axis] for i in context.integers(node.input(1), "indices")]
    if not indices:
        raise NotLowered("no indices", "take at least one element")
    return context.draft.reshape(_take(context, x, axis, indices), context.shape(node.output))


def pad(context: Context, node: Node) -> int:
    """Pad with a constant; negative amounts crop."""
    draft = context.draft
    mode = node.text("mode", "constant")
    if mode != "constant":
        raise NotLowered(f"padding mode {mode!r}", "pad with a constant and retrain")
    x = context.value(node.input(0))
    shape = draft.shape(x)
    amounts = context.integers(node.input(1), "pads")
    axes = context.axes(node, 3, len(shape)) or tuple(range(len(shape)))
    filling = 0.0
    if node.input(2):
        filling = float(context.constant(node.input(2), "the padding").reshape(-1)[0])
    before, after = [0] * len(shape), [0] * len(shape)
    for position, axis in enumerate(axes):
        before[axis], after[axis] = amounts[position], amounts[position + len(axes)]
    starts = [max(0, -amount) for amount in before]
    counts = [
        size - start - max(0, -amount)
        for size, start, amount in zip(shape, starts, after, strict=True)
    ]
    if min(counts, default=1) < 1:
        raise NotLowered(f"pads {list(amounts)} leave nothing of {list(shape)}", "repair the pads")
    x = draft.slice(x, starts, counts, [1] * len(shape))
    return draft.pad(x, [max(0, a) for a in before], [max(0, a) for a in after], filling)
