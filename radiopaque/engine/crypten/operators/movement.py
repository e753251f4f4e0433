"""Operators that move elements."""

from __future__ import annotations

from radiopaque.engine.crypten.builder import Builder
from radiopaque.graph.ir import Node
from radiopaque.graph.lowering.context import NotLowered


def shaped(builder: Builder, node: Node) -> list[int]:
    """Reshape, Flatten, Squeeze, Unsqueeze: only the inferred shape matters."""
    return [builder.reshape(builder.value(node.input(0)), builder.context.shape(node.output))]


def transpose(builder: Builder, node: Node) -> list[int]:
    """Transpose; without a permutation the axes are reversed."""
    x = builder.value(node.input(0))
    rank = len(builder.shape(x))
    return [builder.transpose(x, node.integers("perm") or tuple(reversed(range(rank))))]


def concat(builder: Builder, node: Node) -> list[int]:
    """Concat, of constants too."""
    values = [builder.value(name) for name in node.inputs]
    shape = builder.context.shape(node.output)
    return [builder.add("concat", values, shape, (node.integer("axis", 0) % len(shape),))]


def expand(builder: Builder, node: Node) -> list[int]:
    """Expand to a static shape."""
    x, shape = builder.value(node.input(0)), builder.context.shape(node.output)
    return [x if builder.shape(x) == shape else builder.add("expand", (x,), shape)]


def _sliced(builder: Builder, x: int, axis: int, start: int, count: int, step: int = 1) -> int:
    shape = builder.shape(x)
    narrowed = (*shape[:axis], count, *shape[axis + 1 :])
    return builder.add("slice", (x,), narrowed, (axis, start, step))


def slice_(builder: Builder, node: Node) -> list[int]:
    """Slice with constant starts, ends and steps."""
    context = builder.context
    x = builder.value(node.input(0))
    shape = builder.shape(x)
    starts = context.integers(node.input(1), "starts")
    ends = context.integers(node.input(2), "ends")
    axes = context.integers(node.input(3), "axes") if node.input(3) else tuple(range(len(starts)))
    steps = context.integers(node.input(4), "steps") if node.input(4) else (1,) * len(starts)
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        chosen = range(shape[axis])[start:end:step]
        if not chosen:
            raise NotLowered(f"nothing is left of axis {axis}", "repair starts and ends")
        place = axis % len(shape)
        if step < 0:
            taken = (*builder.shape(x)[:place], len(chosen), *builder.shape(x)[place + 1 :])
            x = builder.add("take", (x,), taken, (place, *chosen))
        else:
            x = _sliced(builder, x, place, chosen.start, len(chosen), step)
    return [x]


def split(builder: Builder, node: Node) -> list[int]:
    """Split: the sizes are those of the inferred outputs."""
    x = builder.value(node.input(0))
    axis = node.integer("axis", 0) % len(builder.shape(x))
    pieces, start = [], 0
    for name in node.outputs:
        count = builder.context.shape(name)[axis]
        pieces.append(_sliced(builder, x, axis, start, count))
        start += count
    return pieces


def gather(builder: Builder, node: Node) -> list[int]:
    """Gather with constant indices."""
    x = builder.value(node.input(0))
    shape = builder.shape(x)
    axis = node.integer("axis", 0) % len(shape)
    indices = [i % shape[axis] for i in builder.context.integers(node.input(1), "indices")]
    taken = (*shape[:axis], len(indices), *shape[axis + 1 :])
    y = builder.add("take", (x,), taken, (axis, *indices))
    return [builder.reshape(y, builder.context.shape(node.output))]


def pad(builder: Builder, node: Node) -> list[int]:
    """Pad with a public constant."""
    if node.text("mode", "constant") != "constant":
        raise NotLowered(f"padding mode {node.text('mode', '')!r}", "pad with a constant")
    context = builder.context
    x = builder.value(node.input(0))
    rank = len(builder.shape(x))
    amounts = context.integers(node.input(1), "pads")
    axes = context.axes(node, 3, rank) or tuple(range(rank))
    if min(amounts) < 0:
        raise NotLowered("negative pads", "crop with Slice instead")
    filling = builder.graph.reals(node.input(2)) if node.input(2) else None
    before, after = [0] * rank, [0] * rank
    for position, axis in enumerate(axes):
        before[axis], after[axis] = amounts[position], amounts[position + len(axes)]
    value = 0.0 if filling is None else float(filling.reshape(-1)[0])
    return [builder.add("pad", (x,), context.shape(node.output), (*before, *after), (value,))]
