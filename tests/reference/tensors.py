"""Tensors of ring elements as a shape and a flat list, and the linear maps on them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from math import prod

Shape = tuple[int, ...]
Index = tuple[int, ...]


@dataclass(frozen=True)
class Tensor:
    """Elements of Z_(2**bits) in row-major order."""

    shape: Shape
    values: list[int]
    bits: int

    def __post_init__(self) -> None:
        assert len(self.values) == prod(self.shape)

    def __getitem__(self, index: Index) -> int:
        position = 0
        for i, extent in zip(index, self.shape, strict=True):
            assert 0 <= i < extent
            position = position * extent + i
        return self.values[position]

    def __add__(self, other: Tensor) -> Tensor:
        return self._zip(other, 1)

    def __sub__(self, other: Tensor) -> Tensor:
        return self._zip(other, -1)

    def _zip(self, other: Tensor, sign: int) -> Tensor:
        assert self.shape == other.shape
        pairs = zip(self.values, other.values, strict=True)
        return tensor(self.shape, [a + sign * b for a, b in pairs], self.bits)


def tensor(shape: Shape, values: list[int], bits: int) -> Tensor:
    """A tensor of the values mod 2**bits."""
    return Tensor(tuple(shape), [v % (1 << bits) for v in values], bits)


def build(shape: Shape, bits: int, element: Callable[[Index], int]) -> Tensor:
    """A tensor from a function of the index."""
    return tensor(shape, [element(i) for i in product(*map(range, shape))], bits)


def expand(x: Tensor, shape: Shape) -> Tensor:
    """Numpy broadcasting: axes of extent 1 repeat, missing axes come first."""
    skipped = len(shape) - len(x.shape)
    return build(
        shape,
        x.bits,
        lambda i: x[tuple(0 if d == 1 else j for j, d in zip(i[skipped:], x.shape, strict=True))],
    )


def _taps(
    window: Index, gate: dict[str, list[int]], size: Index
) -> Iterator[tuple[int, int, int, int]]:
    """(kernel row, kernel column, row, column) of a window's positions inside the input."""
    top, left = gate["pads"][:2]
    for i, j in product(*map(range, gate["kernel"])):
        row = window[0] * gate["strides"][0] + i * gate["dilations"][0] - top
        column = window[1] * gate["strides"][1] + j * gate["dilations"][1] - left
        if 0 <= row < size[0] and 0 <= column < size[1]:
            yield i, j, row, column


def convolution(weights: Tensor, x: Tensor, shape: Shape, gate: dict[str, list[int]]) -> Tensor:
    """[out, in/groups, kh, kw] over [n, c, h, w], zero padding."""
    outs, ins = weights.shape[0], weights.shape[1]
    per_group = outs // (x.shape[1] // ins)

    def element(index: Index) -> int:
        n, out, *window = index
        first = out // per_group * ins
        return sum(
            weights[out, c, i, j] * x[n, first + c, row, column]
            for i, j, row, column in _taps(tuple(window), gate, x.shape[2:])
            for c in range(ins)
        )

    return build(shape, x.bits, element)


def window_sum(x: Tensor, shape: Shape, gate: dict[str, list[int]]) -> Tensor:
    """Sums over windows of the last two axes, zero padding."""
    return build(
        shape,
        x.bits,
        lambda i: sum(
            x[(*i[:-2], row, column)] for _, _, row, column in _taps(i[-2:], gate, x.shape[-2:])
        ),
    )


def matrix_product(weights: Tensor, x: Tensor, shape: Shape) -> Tensor:
    """[..., k] times [k, columns]."""
    return build(
        shape,
        x.bits,
        lambda i: sum(x[(*i[:-1], k)] * weights[k, i[-1]] for k in range(weights.shape[0])),
    )


def multiply(weights: Tensor, x: Tensor) -> Tensor:
    """Elementwise, the weights broadcast."""
    wide = expand(weights, x.shape)
    return build(x.shape, x.bits, lambda i: x[i] * wide[i])


def pad(x: Tensor, shape: Shape, before: list[int], value: int) -> Tensor:
    """Surrounded by a constant."""

    def element(index: Index) -> int:
        inner = tuple(i - b for i, b in zip(index, before, strict=True))
        inside = all(0 <= i < d for i, d in zip(inner, x.shape, strict=True))
        return x[inner] if inside else value

    return build(shape, x.bits, element)


def concatenate(parts: list[Tensor], shape: Shape, axis: int) -> Tensor:
    """Parts one after the other along an axis."""

    def element(index: Index) -> int:
        position = index[axis]
        for part in parts:
            if position < part.shape[axis]:
                return part[(*index[:axis], position, *index[axis + 1 :])]
            position -= part.shape[axis]
        raise AssertionError("position beyond the last part")

    return build(shape, parts[0].bits, element)
