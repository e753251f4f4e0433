"""Exact convolutions and window sums over Z_2^32 and Z_2^64."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from radiopaque.errors import TensorError
from radiopaque.graph.bands import Rows
from radiopaque.graph.plan import Convolution, WindowSum
from radiopaque.kernels import linear_loops, tiles, window_loops
from radiopaque.kernels.matmul import (
    PackedMatrix,
    check_input_dtype,
    check_ring_dtype,
    choose_limbs,
    kernel_view,
    packed_rows,
    pair_up,
)
from radiopaque.kernels.window_loops import Windows
from radiopaque.kernels.workers import ALONE, Workers
from radiopaque.ring import RingArray

__all__ = ["PackedConvolution", "PackedMatrix", "warm_up", "window_sum"]

MAX_PADDED_ELEMENTS = 1 << 28
"""Largest padded copy of one image and group that a kernel may make."""

BAND_BYTES = 1 << 21
"""Size of the padded copy that is aimed for: not much over that of a second-level cache."""

LEAST_BAND_ROWS = 8
"""Rows of the result in a band: neighbouring bands copy some rows of the image twice."""

LEAST_LIMB_CHANNELS = 8
"""Input channels of a group from which limbs pay: an odd one is multiplied for nothing."""


class PackedConvolution:
    """The map x [n, ci, h, w] -> [n, co, oh, ow] with secret weights [co, ci / groups, kh, kw].

    dtypes are uint32 or uint64, any batch and image size. The weights are copied once, in the
    order in which the kernel reads them; calling the object takes no lock and changes nothing, so
    threads may share it. A call needs, besides its result, for each thread of ``workers`` a padded
    copy of a band of one image (of one group's channels), the sums of 8 panels, and 256 KiB.

    ``limbs`` says whether to multiply by 16-bit limbs, which needs weights that fit 16 bits, see
    :func:`radiopaque.kernels.matmul.choose_limbs`; left out, the kernel decides. The result is the
    same; the time then depends on whether *all* of the layer's weights fit, which is one bit about
    them, the same in every call.

    Raises TensorError for other dtypes, for weights that do not match ``spec``, and for numbers
    in ``spec`` that are no window.
    """

    __slots__ = ("_depthwise", "_dtype", "_limbs", "_shape", "_spec", "_weights", "_workers")

    def __init__(
        self,
        weights: RingArray,
        spec: Convolution,
        limbs: bool | None = None,
        workers: Workers = ALONE,
    ) -> None:
        check_weights(weights, spec)
        self._spec = spec
        self._shape = weights.shape
        self._dtype = weights.dtype
        self._workers = workers
        group_out = spec.out_channels // spec.groups
        # With one input channel and few outputs, gathering would cost more than the products.
        self._depthwise = weights.shape[1] == 1 and group_out < tiles.ROWS
        self._limbs = (
            not self._depthwise
            and (limbs or weights.shape[1] >= LEAST_LIMB_CHANNELS)
            and choose_limbs(weights, limbs)
        )
        if self._depthwise:
            self._weights = weights.flatten()
            return
        factors = pair_up(weights, 1) if self._limbs else weights
        matrices = factors.reshape(spec.groups, group_out, prod(factors.shape[1:]))
        depth = linear_loops.DEPTH // (2 if self._limbs else 1)
        packed = [packed_rows(matrix, depth=depth) for matrix in matrices]
        self._weights = np.concatenate(packed)

    def __repr__(self) -> str:
        return f"<PackedConvolution {list(self._shape)} {self._dtype}>"

    def __call__(self, x: RingArray, rows: Rows | None = None) -> RingArray:
        """x [n, ci, h, w] to [n, co, oh, ow], same dtype; oh, ow as in ONNX's Conv.

        With ``rows``, only those of the result; of x the rows in their windows are read.
        Raises TensorError for another dtype, number of channels or rank, and for an image that is
        smaller than one window or that padding makes too large.
        """
        spec = self._spec
        check_input_dtype(x, self._dtype)
        windows = windows_over(x.shape, spec, self._shape[1])
        rows = rows or Rows(0, x.shape[0], 0, windows.oh)
        image = kernel_view(x[rows.first : rows.last])
        height, ow = rows.bottom - rows.top, windows.ow
        out = np.empty((len(image), spec.out_channels, height * ow), x.dtype)
        windows = windows._replace(top=windows.top - rows.top * windows.stride_y)
        multiply_adds = out.size * prod(self._shape[1:])
        self._workers.share(
            height,
            multiply_adds,
            lambda begin, end: self._convolve(image, out, windows, begin, end),
        )
        return out.reshape(len(image), spec.out_channels, height, ow)

    def _convolve(
        self, x: RingArray, out: RingArray, windows: Windows, begin: int, end: int
    ) -> None:
        """Rows begin to end of the result, in pieces."""
        row = self._shape[1] * windows.phases_y * windows.phases_x * windows.width
        overlap = windows.rows - windows.oh
        height = max(LEAST_BAND_ROWS, BAND_BYTES // (row * x.itemsize) - overlap)
        for start in range(begin, end, height):
            rows = min(height, end - start)
            band = windows._replace(
                oh=rows, rows=rows + overlap, top=windows.top - start * windows.stride_y
            )
            self._convolve_band(x, out, start * windows.ow, band)

    def _convolve_band(self, x: RingArray, out: RingArray, first: int, band: Windows) -> None:
        """The positions of the result from ``first`` on that the band has."""
        if self._depthwise:
            window_loops.convolve_channels(x, self._weights, out, first, band)
            return
        limbs = None
        if self._limbs:
            columns = tiles.PANEL_BYTES // x.itemsize
            limbs = np.empty(2 * x.shape[2] * x.shape[3] + columns, x.dtype)
        linear_loops.convolve(x, self._weights, out, first, self._spec.groups, band, limbs)


def window_sum(x: RingArray, spec: WindowSum, rows: Rows | None = None) -> RingArray:
    """Ring sums over windows of x [..., h, w], zero padded, as [..., oh, ow]; or some rows of it.

    Raises TensorError for a dtype other than uint32 and uint64, for fewer than two axes, and for
    an image that is smaller than one window.
    """
    check_ring_dtype("inputs of a window sum", x)
    check_windows(spec)
    if x.ndim < 2:
        raise TensorError(f"input is {list(x.shape)}; a window sum takes [..., h, w]")
    windows = place_windows(spec, x.shape[-2], x.shape[-1])
    if rows is not None:
        x = x[rows.first : rows.last]
        top = windows.top - rows.top * windows.stride_y
        windows = windows._replace(oh=rows.bottom - rows.top, top=top)
    planes = prod(x.shape[:-2])
    out = np.zeros((planes, windows.oh, windows.ow), x.dtype)
    window_loops.add_window_sums(kernel_view(x.reshape(planes, *x.shape[-2:])), out, windows)
    return out.reshape(*x.shape[:-2], windows.oh, windows.ow)


def warm_up(dtype: DTypeLike) -> None:
    """Compiles every kernel for one of the two dtypes, or loads it from Numba's disk cache."""
    x = np.zeros((1, 2, 1, 1), dtype)
    PackedConvolution(x[:, :1], Convolution(1, (1, 1)))(x[:, :1])
    window_sum(x, WindowSum((1, 1)))
    for limbs in (False, True) if tiles.HAS_LIMBS and x.dtype == np.uint32 else (False,):
        PackedConvolution(x, Convolution(1, (1, 1)), limbs)(x)
        PackedMatrix(x[0, 0], limbs)(x)


def check_weights(weights: RingArray, spec: Convolution) -> None:
    """Raises TensorError where :class:`PackedConvolution` does."""
    check_ring_dtype("weights", weights)
    check_windows(spec)
    if spec.groups < 1 or spec.out_channels < 1 or spec.out_channels % spec.groups:
        raise TensorError(f"{spec.groups} groups do not divide {spec.out_channels} output channels")
    if (
        weights.ndim != 4
        or weights.shape[0] != spec.out_channels
        or weights.shape[1] < 1
        or weights.shape[2:] != spec.kernel
    ):
        raise TensorError(
            f"weights are {list(weights.shape)}; this convolution takes "
            f"[{spec.out_channels}, ci / {spec.groups}, {spec.kernel[0]}, {spec.kernel[1]}]"
        )


def windows_over(shape: tuple[int, ...], spec: Convolution, group_in: int) -> Windows:
    """The windows over an image [n, c, h, w]; raises TensorError where they do not fit it."""
    if len(shape) != 4 or shape[1] != group_in * spec.groups:
        raise TensorError(
            f"input is {list(shape)}; the weights take [n, {group_in * spec.groups}, h, w]"
        )
    windows = place_windows(spec, shape[2], shape[3])
    padded = group_in * windows.phases_y * windows.phases_x * windows.rows * windows.width
    if padded > MAX_PADDED_ELEMENTS:
        raise TensorError(
            f"the padded image has {padded} elements, over {MAX_PADDED_ELEMENTS}; "
            "use less padding or a smaller image"
        )
    return windows


def check_windows(spec: Convolution | WindowSum) -> None:
    """Raises TensorError for numbers that are no window."""
    axes = (spec.kernel, spec.strides, spec.dilations)
    if any(len(pair) != 2 or min(pair) < 1 for pair in axes):
        raise TensorError(
            f"kernel {spec.kernel}, strides {spec.strides} and dilations {spec.dilations} must be "
            "two positive numbers each"
        )
    if len(spec.pads) != 4 or min(spec.pads) < 0:
        raise TensorError(f"pads are {spec.pads}; give (top, left, bottom, right), none negative")


def place_windows(spec: Convolution | WindowSum, h: int, w: int) -> Windows:
    """The windows over an image of this size, which TensorError says when it is too small."""
    sizes: list[Any] = []
    for axis, size in enumerate((h, w)):
        span = (spec.kernel[axis] - 1) * spec.dilations[axis] + 1
        room = size + spec.pads[axis] + spec.pads[axis + 2]
        if size < 1 or room < span:
            raise TensorError(
                f"a window of {span} does not fit into {size} positions padded to {room}"
            )
        sizes.append((room - span) // spec.strides[axis] + 1)
    oh, ow = sizes
    reach_y, reach_x = [(spec.kernel[axis] - 1) * spec.dilations[axis] for axis in range(2)]
    return Windows(
        kernel_y=spec.kernel[0],
        kernel_x=spec.kernel[1],
        stride_y=spec.strides[0],
        stride_x=spec.strides[1],
        dilation_y=spec.dilations[0],
        dilation_x=spec.dilations[1],
        top=spec.pads[0],
        left=spec.pads[1],
        oh=oh,
        ow=ow,
        phases_y=min(spec.strides[0], reach_y + 1),
        phases_x=min(spec.strides[1], reach_x + 1),
        rows=oh + reach_y // spec.strides[0],
        width=ow + reach_x // spec.strides[1],
    )
