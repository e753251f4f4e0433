"""What shape an operation gives, and how much memory it takes on the way, from its inputs' shapes.

A plan comes from somebody else, and CrypTen makes every result before anyone can look at its shape.
So a program is refused beforehand where a stated shape is not the one that the operation gives, or
where the operation would unfold its input into more than a program may hold.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import TYPE_CHECKING, Final

import numpy as np

from radiopaque.graph.plan import Shape

if TYPE_CHECKING:
    from radiopaque.engine.crypten.program import Operation

Shapes = Sequence[Shape]
Derived = tuple[Shape, int]
"""A result's shape, and most elements of any tensor that is made for it besides."""


def derive(operation: Operation, inputs: Shapes) -> Derived:
    """Of an operation whose numbers of inputs and parameters are right, on inputs of these shapes.

    Raises ValueError where the operation does not exist on them.
    """
    rule = _RULES.get(operation.name)
    if rule is not None:
        return rule(operation, inputs)
    shape = _SHAPES.get(operation.name, _same)(operation, inputs)
    return shape, 0


def _same(_: Operation, inputs: Shapes) -> Shape:
    return inputs[0]


def _paired(_: Operation, inputs: Shapes) -> Shape:
    return np.broadcast_shapes(*inputs)


def _softmax(operation: Operation, inputs: Shapes) -> Shape:
    _axis(operation.integers[0], inputs[0])
    return inputs[0]


def _without_last(_: Operation, inputs: Shapes) -> Shape:
    _require(len(inputs[0]) >= 1)
    return inputs[0][:-1]


def _reshape(operation: Operation, inputs: Shapes) -> Shape:
    _require(prod(inputs[0]) == operation.size)
    return operation.shape


def _transpose(operation: Operation, inputs: Shapes) -> Shape:
    _require(sorted(operation.integers) == list(range(len(inputs[0]))))
    return tuple(inputs[0][axis] for axis in operation.integers)


def _concat(operation: Operation, inputs: Shapes) -> Shape:
    axis = _axis(operation.integers[0], inputs[0])
    rest = {(*shape[:axis], *shape[axis + 1 :], len(shape)) for shape in inputs}
    _require(len(rest) == 1)
    return _replaced(inputs[0], axis, sum(shape[axis] for shape in inputs))


def _slice(operation: Operation, inputs: Shapes) -> Shape:
    axis, start, step = operation.integers
    axis = _axis(axis, inputs[0])
    _require(len(operation.shape) == len(inputs[0]))
    count = operation.shape[axis]
    _require(start >= 0 and step >= 1 and start + (count - 1) * step < inputs[0][axis])
    return _replaced(inputs[0], axis, count)


def _take(operation: Operation, inputs: Shapes) -> Shape:
    _require(len(operation.integers) >= 2)
    axis = _axis(operation.integers[0], inputs[0])
    indices = operation.integers[1:]
    _require(all(0 <= index < inputs[0][axis] for index in indices))
    return _replaced(inputs[0], axis, len(indices))


def _pad(operation: Operation, inputs: Shapes) -> Shape:
    rank = len(inputs[0])
    _require(len(operation.integers) == 2 * rank)
    before, after = operation.integers[:rank], operation.integers[rank:]
    return tuple(
        size + first + last for size, first, last in zip(inputs[0], before, after, strict=True)
    )


def _expand(operation: Operation, inputs: Shapes) -> Shape:
    _require(len(inputs[0]) <= len(operation.shape))
    _require(np.broadcast_shapes(inputs[0], operation.shape) == operation.shape)
    return operation.shape


def _matmul(_: Operation, inputs: Shapes) -> Derived:
    left, right = inputs
    _require(min(len(left), len(right)) >= 2 and left[-1] == right[-2])
    batch = np.broadcast_shapes(left[:-2], right[:-2])
    # torch copies both factors for every matrix of the batch
    copied = prod(batch) * (prod(left[-2:]) + prod(right[-2:]))
    return (*batch, left[-2], right[-1]), copied


def _conv(operation: Operation, inputs: Shapes) -> Derived:
    image, weights = inputs
    numbers = operation.integers
    groups = numbers[6]
    _require(len(image) == len(weights) == 4 and groups >= 1 and weights[0] % groups == 0)
    _require(image[1] == weights[1] * groups)
    window = _window(image, weights[2:], numbers[0:2], numbers[2:4], numbers[4:6])
    shape = (image[0], weights[0], *window)
    # a convolution of integers unfolds its input
    return shape, max(_padded(image, numbers[2:4]), image[0] * prod((*weights[1:], *window)))


def _max_pool(operation: Operation, inputs: Shapes) -> Derived:
    numbers = operation.integers
    window = _window(inputs[0], numbers[0:2], numbers[2:4], numbers[4:6], numbers[6:8])
    shape = (*inputs[0][:-2], *window)
    # CrypTen makes a row of every window
    return shape, max(_padded(inputs[0], numbers[4:6]), prod(shape) * prod(numbers[0:2]))


def _average_pool(operation: Operation, inputs: Shapes) -> Derived:
    numbers = operation.integers
    window = _window(inputs[0], numbers[0:2], numbers[2:4], numbers[4:6], (1, 1))
    return (*inputs[0][:-2], *window), _padded(inputs[0], numbers[4:6])


def _window(
    image: Shape, kernel: Shape, strides: Shape, pads: Shape, dilations: Shape
) -> tuple[int, ...]:
    """Height and width of what a window gives that moves over an image's last two axes."""
    _require(len(image) >= 3)
    _require(min((*kernel, *strides, *dilations)) >= 1 and min(pads) >= 0)
    sizes = tuple(
        (size + 2 * pad - (width - 1) * dilation - 1) // stride + 1
        for size, width, stride, pad, dilation in zip(
            image[-2:], kernel, strides, pads, dilations, strict=True
        )
    )
    _require(min(sizes) >= 1)
    return sizes


def _padded(image: Shape, pads: Shape) -> int:
    height, width = (size + 2 * pad for size, pad in zip(image[-2:], pads, strict=True))
    return prod(image[:-2]) * height * width


def _axis(axis: int, shape: Shape) -> int:
    _require(-len(shape) <= axis < len(shape))
    return axis % len(shape)


def _replaced(shape: Shape, axis: int, size: int) -> Shape:
    return (*shape[:axis], size, *shape[axis + 1 :])


def _require(holds: bool) -> None:
    if not holds:
        raise ValueError("the operation does not exist on these shapes")


_RULES: Final[Mapping[str, Callable[[Operation, Shapes], Derived]]] = {
    "matmul": _matmul,
    "conv": _conv,
    "max_pool": _max_pool,
    "average_pool": _average_pool,
}
"""Those that take memory besides their result."""

_SHAPES: Final[Mapping[str, Callable[[Operation, Shapes], Shape]]] = {
    "add": _paired,
    "sub": _paired,
    "mul": _paired,
    "softmax": _softmax,
    "max_last": _without_last,
    "sum_last": _without_last,
    "mean_last": _without_last,
    "reshape": _reshape,
    "transpose": _transpose,
    "concat": _concat,
    "slice": _slice,
    "take": _take,
    "pad": _pad,
    "expand": _expand,
}
"""All others keep the shape of their input."""
