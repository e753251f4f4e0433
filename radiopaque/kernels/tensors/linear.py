"""Convolutions, matrix products and window sums on tensors, exact in Z_2^32 and Z_2^64.

Words are cut into limbs of 16 bits, and limbs are multiplied as float64 matrices. That is exact, in
whatever order a library adds: a product of two limbs is an integer below 2^32, so with at most
``EXACT_DEPTH`` = 2^21 terms every partial sum is an integer of at most 2^53 in absolute value,
which float64 holds; longer sums are split. Limbs whose product would only count from 2^k on are
left out: in the 32-bit ring three products, for weights that all fit 16 bits two; in the 64-bit
ring ten.

The argument needs sums of products and nothing else, so there is no convolution of cuDNN here,
which may compute by Fourier or Winograd transforms: windows are gathered and multiplied as
matrices. TF32 and the settings of cuDNN and of float32 precision do not reach float64 matrices.

The time depends on shapes, and in the 32-bit ring on whether all weights of a gate fit 16 bits. The
compiler makes them fit, for every model, and uniform masks do not: that tells nothing. In the
64-bit ring weights may be longer, so all of their limbs are always multiplied.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Final

import torch
from torch import Tensor

from radiopaque.errors import TensorError
from radiopaque.graph.bands import Rows, crossing, some_rows
from radiopaque.graph.plan import Convolution, WindowSum
from radiopaque.kernels.convolution import check_windows, place_windows, windows_over
from radiopaque.kernels.tensors.words import bits
from radiopaque.kernels.window_loops import Windows

LIMB: Final = 16
EXACT_DEPTH: Final = 1 << (53 - 2 * LIMB)
"""Terms of a sum of limbs' products that float64 holds."""

MAX_GATHERED: Final = 1 << 24
"""Elements of gathered windows at a time: with the limb that is multiplied, 20 bytes each."""


class LimbMatrix:
    """The map columns -> matrix @ columns, both in words of the ring, for each group.

    The matrix [groups, rows, depth] is kept as limbs, 8 bytes each.
    """

    def __init__(self, matrix: Tensor) -> None:
        half = 1 << (LIMB - 1)
        short = bits(matrix) == 2 * LIMB and bool(((matrix >= -half) & (matrix < half)).all())
        if short:
            self._limbs = [matrix.to(torch.float64)]
        else:
            self._limbs = [_limb(matrix, number) for number in range(bits(matrix) // LIMB)]

    def __call__(self, columns: Tensor) -> Tensor:
        """[..., groups, depth, positions] to [..., groups, rows, positions], same dtype."""
        rows = self._limbs[0].shape[-2]
        shape = (*columns.shape[:-2], rows, columns.shape[-1])
        total = torch.zeros(shape, dtype=torch.int64, device=columns.device)
        limbs = bits(columns) // LIMB
        for number in range(limbs):
            right = _limb(columns, number)
            for place, left in enumerate(self._limbs[: limbs - number]):
                for part in _products(left, right):
                    total += part << (LIMB * (number + place))
        return total.to(columns.dtype)


def _limb(words: Tensor, number: int) -> Tensor:
    """Sixteen bits of every word, as a float64 from 0 to 65535."""
    return ((words >> (LIMB * number)) & ((1 << LIMB) - 1)).to(torch.float64)


def _products(left: Tensor, right: Tensor) -> Iterator[Tensor]:
    """Matrix products, int64, whose sum is that of all terms."""
    depth = left.shape[-1]
    for start in range(0, depth, EXACT_DEPTH):
        piece = slice(start, start + EXACT_DEPTH)
        yield torch.matmul(left[..., piece], right[..., piece, :]).to(torch.int64)


class TensorConvolution:
    """x [n, ci, h, w] -> [n, co, oh, ow] with weights [co, ci / groups, kh, kw]."""

    def __init__(self, weights: Tensor, spec: Convolution) -> None:
        self._spec = spec
        self._group_in = weights.shape[1]
        self._dtype = weights.dtype
        # depthwise: no sum over channels that a matrix product could share
        self._depthwise = self._group_in == 1 and spec.groups > 1
        if self._depthwise:
            self._taps = weights.reshape(spec.groups, -1, *spec.kernel)
        else:
            depth = self._group_in * spec.kernel[0] * spec.kernel[1]
            self._matrix = LimbMatrix(weights.reshape(spec.groups, -1, depth))

    def __repr__(self) -> str:
        return f"<TensorConvolution {self._spec.out_channels} channels {self._dtype}>"

    def __call__(self, x: Tensor, rows: Rows | None = None) -> Tensor:
        """Raises TensorError as :class:`radiopaque.kernels.convolution.PackedConvolution`."""
        check_dtype(x, self._dtype)
        windows = windows_over(tuple(x.shape), self._spec, self._group_in)
        image, windows = padded_rows(x, self._spec, windows, rows)
        out = x.new_zeros((image.shape[0], self._spec.out_channels, windows.oh, windows.ow))
        if self._depthwise:
            self._add_taps(image, out, windows)
        else:
            self._multiply(image, out, windows)
        return out

    def _add_taps(self, image: Tensor, out: Tensor, windows: Windows) -> None:
        """Every weight times the elements that it meets."""
        grouped = out.view(out.shape[0], self._spec.groups, -1, windows.oh, windows.ow)
        for (y, x), elements in taps(image, windows):
            grouped += elements.unsqueeze(2) * self._taps[:, :, y, x, None, None]

    def _multiply(self, image: Tensor, out: Tensor, windows: Windows) -> None:
        """Windows gathered for as many rows of the result as memory is meant for."""
        row = image.shape[0] * image.shape[1] * windows.kernel_y * windows.kernel_x * windows.ow
        height = max(1, MAX_GATHERED // row)
        for start in range(0, windows.oh, height):
            rows = min(height, windows.oh - start)
            columns = self._gathered(image, windows, start, rows)
            band = self._matrix(columns)
            out[:, :, start : start + rows] = band.reshape(*out.shape[:2], rows, windows.ow)

    def _gathered(self, image: Tensor, windows: Windows, start: int, rows: int) -> Tensor:
        """[n, groups, ci / groups * kh * kw, rows * ow]."""
        n, groups = image.shape[0], self._spec.groups
        batch, channel, line, element = image.stride()
        down, across = line * windows.stride_y, element * windows.stride_x
        gathered = image.as_strided(
            (
                n,
                groups,
                self._group_in,
                windows.kernel_y,
                windows.kernel_x,
                rows,
                windows.ow,
            ),
            (
                batch,
                channel * self._group_in,
                channel,
                line * windows.dilation_y,
                element * windows.dilation_x,
                down,
                across,
            ),
            image.storage_offset() + start * down,
        )
        return gathered.reshape(n, groups, -1, rows * windows.ow)


class TensorMatrix:
    """x [..., k] -> x * weights [..., n] with weights [k, n]."""

    def __init__(self, weights: Tensor) -> None:
        self._shape = tuple(weights.shape)
        self._dtype = weights.dtype
        self._matrix = LimbMatrix(weights.T.unsqueeze(0).contiguous())

    def __repr__(self) -> str:
        return f"<TensorMatrix {list(self._shape)} {self._dtype}>"

    def __call__(self, x: Tensor, rows: Rows | None = None) -> Tensor:
        """Raises TensorError as :class:`radiopaque.kernels.matmul.PackedMatrix`."""
        k, n = self._shape
        check_dtype(x, self._dtype)
        if x.ndim < 1 or x.shape[-1] != k:
            raise TensorError(f"input is {list(x.shape)}; the weights take [..., {k}]")
        columns = x.reshape(-1, k).T.unsqueeze(0)
        return self._matrix(columns)[0].T.contiguous().reshape(*x.shape[:-1], n)


class TensorProduct:
    """x -> weights * x, element by element with broadcasting."""

    def __init__(self, weights: Tensor) -> None:
        self._weights = weights

    def __repr__(self) -> str:
        return f"<elementwise map, weights {list(self._weights.shape)} {self._weights.dtype}>"

    def __call__(self, x: Tensor, rows: Rows | None = None) -> Tensor:
        product: Tensor = x * some_rows(self._weights, rows)
        return product


def window_sum(x: Tensor, spec: WindowSum, rows: Rows | None = None) -> Tensor:
    """See :func:`radiopaque.kernels.convolution.window_sum`."""
    check_windows(spec)
    if x.ndim < 2:
        raise TensorError(f"input is {list(x.shape)}; a window sum takes [..., h, w]")
    windows = place_windows(spec, x.shape[-2], x.shape[-1])
    image, windows = padded_rows(x, spec, windows, rows)
    out = x.new_zeros((*image.shape[:-2], windows.oh, windows.ow))
    for _, elements in taps(image, windows):
        out += elements
    return out


def padded_rows(
    x: Tensor, spec: Convolution | WindowSum, windows: Windows, rows: Rows | None
) -> tuple[Tensor, Windows]:
    """What the windows of some rows of the result lie on, and these windows on it."""
    top, left, bottom, right = spec.pads
    if rows is not None:
        start = rows.top * windows.stride_y - top
        reach = (windows.kernel_y - 1) * windows.dilation_y + 1
        stop = (rows.bottom - 1) * windows.stride_y + reach - top
        top, inside, bottom = crossing(start, stop, x.shape[2])
        x = x[rows.first : rows.last, :, inside]
        windows = windows._replace(oh=rows.bottom - rows.top)
    others = (0,) * (x.ndim - 2)
    return surrounded(x, (*others, top, left), (*others, bottom, right), 0), windows


def taps(image: Tensor, windows: Windows) -> Iterator[tuple[tuple[int, int], Tensor]]:
    """For every place in a window, the elements there of all windows, [..., oh, ow]."""
    for y, x in product(range(windows.kernel_y), range(windows.kernel_x)):
        top, left = y * windows.dilation_y, x * windows.dilation_x
        bottom = top + (windows.oh - 1) * windows.stride_y + 1
        right = left + (windows.ow - 1) * windows.stride_x + 1
        yield (y, x), image[..., top : bottom : windows.stride_y, left : right : windows.stride_x]


def surrounded(x: Tensor, before: tuple[int, ...], after: tuple[int, ...], constant: int) -> Tensor:
    """Padded with a word; contiguous."""
    if not any(before) and not any(after):
        return x.contiguous()
    widths = zip(before, x.shape, after, strict=True)
    out = x.new_full([start + size + end for start, size, end in widths], constant)
    inner = zip(before, x.shape, strict=True)
    out[tuple(slice(start, start + size) for start, size in inner)] = x
    return out


def check_dtype(x: Tensor, dtype: torch.dtype) -> None:
    """Raises TensorError unless the input lies in the ring of the weights."""
    if x.dtype != dtype:
        raise TensorError(f"input is kept as {x.dtype}, the weights as {dtype}; convert one")
