"""Convolutions, pools and reductions."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from radiopaque.engine.crypten.builder import Builder, Translator
from radiopaque.graph.ir import Node
from radiopaque.graph.lowering.context import NotLowered
from radiopaque.graph.lowering.windows import UNIT, Window, windows


def conv(builder: Builder, node: Node) -> list[int]:
    """Convolution; one-dimensional ones get a height of 1, bias and uneven padding come apart."""
    x, weights = builder.value(node.input(0)), builder.value(node.input(1))
    shape, kernel = builder.shape(x), builder.shape(weights)
    if len(shape) not in (3, 4):
        raise NotLowered(f"{len(shape) - 2} spatial dimensions", "CrypTen convolves one or two")
    out = builder.context.shape(node.output)
    places = windows(node, shape[2:], out[2:], kernel[2:])
    if len(shape) == 3:
        places.insert(0, UNIT)
        x = builder.reshape(x, (*shape[:2], 1, shape[2]))
        weights = builder.reshape(weights, (*kernel[:2], 1, kernel[2]))
    x, places = _even(builder, x, places, 0.0)
    numbers = [
        *(w.stride for w in places),
        *(w.begin for w in places),
        *(w.dilation for w in places),
        node.integer("group", 1),
    ]
    wide = (*out[:2], *(w.count for w in places))
    y = builder.add("conv", (x, weights), wide, numbers)
    if node.input(2):
        bias = builder.reshape(builder.value(node.input(2)), (1, out[1], 1, 1))
        y = builder.pair("add", y, bias)
    return [builder.reshape(y, out)]


def _even(
    builder: Builder, x: int, places: Sequence[Window], filling: float
) -> tuple[int, list[Window]]:
    """CrypTen pads alike on both sides; what is beyond is padded apart."""
    extra = [(max(w.begin - w.end, 0), max(w.end - w.begin, 0)) for w in places]
    if any(before or after for before, after in extra):
        shape = builder.shape(x)
        before = [0, 0, *(pair[0] for pair in extra)]
        after = [0, 0, *(pair[1] for pair in extra)]
        padded = tuple(a + s + b for a, s, b in zip(before, shape, after, strict=True))
        x = builder.add("pad", (x,), padded, (*before, *after), (filling,))
    inner = [min(w.begin, w.end) for w in places]
    return x, [
        Window(w.size + sum(pair), w.kernel, w.stride, w.dilation, pad, pad, w.count)
        for w, pair, pad in zip(places, extra, inner, strict=True)
    ]


def _places(builder: Builder, node: Node) -> tuple[int, list[Window]]:
    """The input of a pool with two spatial axes, and its windows."""
    if any(builder.graph.uses()[name] for name in node.outputs[1:] if name):
        raise NotLowered("the indices are used", "use the first output only")
    x = builder.value(node.input(0))
    shape = builder.shape(x)
    if len(shape) not in (3, 4):
        raise NotLowered(f"{len(shape) - 2} spatial dimensions", "CrypTen pools two")
    out = builder.context.shape(node.output)
    places = windows(node, shape[2:], out[2:], node.integers("kernel_shape") or ())
    if node.integer("ceil_mode", 0) and any(w.reach > w.size + w.begin + w.end for w in places):
        raise NotLowered("ceil_mode adds a window", "state larger pads and leave ceil_mode out")
    if len(shape) == 3:
        places.insert(0, UNIT)
        x = builder.reshape(x, (*shape[:2], 1, shape[2]))
    return x, places


def max_pool(builder: Builder, node: Node) -> list[int]:
    """MaxPool; CrypTen pads with -512 a party."""
    x, places = _places(builder, node)
    if any(w.begin != w.end for w in places):
        raise NotLowered("uneven padding of a maximum", "pad alike on both sides")
    if places[0].begin != places[1].begin:
        raise NotLowered(
            "CrypTen confuses height and width where the padding of a maximum differs",
            "pad both alike",
        )
    numbers = [
        *(w.kernel for w in places),
        *(w.stride for w in places),
        *(w.begin for w in places),
        *(w.dilation for w in places),
    ]
    wide = (*builder.shape(x)[:2], *(w.count for w in places))
    y = builder.add("max_pool", (x,), wide, numbers)
    return [builder.reshape(y, builder.context.shape(node.output))]


def average_pool(builder: Builder, node: Node) -> list[int]:
    """AveragePool where every window counts as many elements."""
    x, places = _places(builder, node)
    padded = any(w.begin or w.end for w in places)
    if padded and not node.integer("count_include_pad", 0):
        raise NotLowered(
            "CrypTen counts the padding in every average", "set count_include_pad or pad nothing"
        )
    if any(w.dilation != 1 for w in places):
        raise NotLowered("CrypTen has no dilated averages", "use a Conv")
    x, places = _even(builder, x, places, 0.0)
    numbers = [
        *(w.kernel for w in places),
        *(w.stride for w in places),
        *(w.begin for w in places),
    ]
    wide = (*builder.shape(x)[:2], *(w.count for w in places))
    y = builder.add("average_pool", (x,), wide, numbers)
    return [builder.reshape(y, builder.context.shape(node.output))]


def _reduced(builder: Builder, x: int, axes: Sequence[int], operation: str) -> int:
    """Sum, mean or maximum over some axes; the shape that is left has none of them."""
    shape = builder.shape(x)
    kept = [axis for axis in range(len(shape)) if axis not in axes]
    x = builder.transpose(x, [*kept, *axes])
    rows = tuple(shape[axis] for axis in kept)
    x = builder.reshape(x, (*rows, prod(shape[axis] for axis in axes)))
    return builder.add(operation, (x,), rows)


def reduction(operation: str) -> Translator:
    """ReduceMax, ReduceMean, ReduceSum over static axes."""

    def reduce(builder: Builder, node: Node) -> list[int]:
        x = builder.value(node.input(0))
        rank = len(builder.shape(x))
        axes = builder.context.axes(node, 1, rank)
        if not axes:
            if node.integer("noop_with_empty_axes", 0):
                return [x]
            axes = tuple(range(rank))
        y = _reduced(builder, x, sorted(axes), operation)
        return [builder.reshape(y, builder.context.shape(node.output))]

    return reduce


def over_space(operation: str) -> Translator:
    """The global pools."""

    def pool(builder: Builder, node: Node) -> list[int]:
        x = builder.value(node.input(0))
        y = _reduced(builder, x, range(2, len(builder.shape(x))), operation)
        return [builder.reshape(y, builder.context.shape(node.output))]

    return pool
