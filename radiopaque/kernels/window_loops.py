"""Compiled loops over the windows of one channel: padded copies, depthwise products, sums.

No loop looks at a value: time depends on shapes alone. Callers check shapes and sizes: nothing
here does.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit

from radiopaque.kernels.compiled import compiled_loop
from radiopaque.kernels.tiles import (
    VECTOR_BYTES,
    split_vectors,
    spread_every_other,
    spread_vector,
    window_tile,
)


class Windows(NamedTuple):
    """Placement of windows on one image, as the loops see it; all integers.

    The loops read a padded copy of the image, flat [channels, phases_y, phases_x, rows, width], in
    which padded row ``i * stride_y + phase`` is at (phase, i), columns likewise. Windows of any
    stride then read consecutive elements. ``top`` and ``left`` are the padding before; ``top`` is
    less, and may be negative, for a band that begins further down.
    """

    kernel_y: int
    kernel_x: int
    stride_y: int
    stride_x: int
    dilation_y: int
    dilation_x: int
    top: int
    left: int
    oh: int
    ow: int
    phases_y: int
    phases_x: int
    rows: int
    width: int


@njit(nogil=True)
def plane_size(windows):  # type: ignore[no-untyped-def]
    """Elements of one channel of the padded copy."""
    return windows.phases_y * windows.phases_x * windows.rows * windows.width


@njit(nogil=True)
def window_taps(channels, spacing, windows):  # type: ignore[no-untyped-def]
    """Offsets of a window's elements in a padded copy, in the order of the weights.

    ``spacing`` is the distance of two channels.
    """
    taps = np.empty(channels * windows.kernel_y * windows.kernel_x, np.intp)
    k = 0
    for c in range(channels):
        for ky in range(windows.kernel_y):
            y = ky * windows.dilation_y
            for kx in range(windows.kernel_x):
                x = kx * windows.dilation_x
                phase = y % windows.stride_y * windows.phases_x + x % windows.stride_x
                row = phase * windows.rows + y // windows.stride_y
                taps[k] = c * spacing + row * windows.width + x // windows.stride_x
                k += 1
    return taps


@njit(nogil=True)
def _spread_row(source, start, count, stride, padded, at, low, width):  # type: ignore[no-untyped-def]
    """padded[at + low + j] = source[start + stride * j] for j < count, the rest of the row 0.

    Up to one less than a vector too many are written, to be overwritten by the next row.
    """
    lanes = VECTOR_BYTES // padded.itemsize
    before, after = start - stride * low, start - stride * low + stride * (width + lanes)
    if stride <= 2 and before >= 0 and after <= source.size:
        for j in range(0, width, lanes):
            if stride == 1:
                spread_vector(source, before + j, j - low, count, padded, at + j)
            else:
                spread_every_other(source, before + 2 * j, j - low, count, padded, at + j)
        return
    for j in range(low):
        padded[at + j] = 0
    for j in range(count):
        padded[at + low + j] = source[start + stride * j]
    for j in range(low + count, width):
        padded[at + j] = 0


@njit(nogil=True)
def spread_plane(image, start, h, w, top, padded, at, windows):  # type: ignore[no-untyped-def]
    """Writes one channel of the padded copy, from ``at`` on.

    The channel is image[start : start + h * w], both arrays are flat, and ``top`` the padding
    before it. What follows in ``padded``, up to the width of a vector, is overwritten.
    """
    stride = windows.stride_x
    rows, width = windows.rows, windows.width
    if (windows.stride_y, stride) == (1, 1) and width == w and top <= 0 and rows - top <= h:
        # Nothing is padded: all rows are one.
        start -= top * w
        top, h, w, width, rows = 0, 1, rows * w, rows * w, 1
    for phase_y in range(windows.phases_y):
        for phase_x in range(windows.phases_x):
            shift = phase_x - windows.left
            low = min(width, max(0, -(shift // stride)))
            count = max(0, min(width, (w - 1 - shift) // stride + 1) - low)
            for row in range(rows):
                y = row * windows.stride_y + phase_y - top
                inside = count if 0 <= y < h else 0
                source = start + y * w + low * stride + shift if inside else start
                _spread_row(image, source, inside, stride, padded, at, low, width)
                at += width


@njit(nogil=True)
def split_planes(image, first, second, limbs, size):  # type: ignore[no-untyped-def]
    """Limbs of two channels of a flat uint32 image, ``size`` elements from ``first``, ``second``.

    limbs[: size] has the high ones, limbs[size : 2 * size] the low ones, in pairs; see
    :mod:`radiopaque.kernels.tiles`.
    """
    lanes = VECTOR_BYTES // 4
    j = 0
    while j + lanes <= size:
        split_vectors(image, first + j, second + j, limbs, j, size)
        j += lanes
    while j < size:
        a, b = image[first + j], image[second + j]
        limbs[size + j] = (a & 0xFFFF) | ((b & 0xFFFF) << 16)
        a, b = (a + 0x8000) & 0xFFFFFFFF, (b + 0x8000) & 0xFFFFFFFF
        limbs[j] = (a >> 16) | (b & 0xFFFF0000)
        j += 1


@compiled_loop
def convolve_channels(x, weights, out, first, windows):  # type: ignore[no-untyped-def]
    """Each channel of x [n, ci, h, w] by itself, into out [n, co, positions] from ``first`` on.

    ``weights`` are [co, taps], flat; co / ci outputs belong to each input channel.
    """
    n, ci, h, w = x.shape
    co, positions = out.shape[1:]
    lanes = VECTOR_BYTES // x.itemsize
    size = plane_size(windows)
    ow, width = windows.ow, windows.width
    image, flat = x.reshape(x.size), out.reshape(out.size)
    taps = window_taps(1, size, windows)
    padded = np.zeros(size + 2 * lanes, x.dtype)
    spare = np.empty(lanes, x.dtype)
    for plane in range(n * co):
        channel = plane % co // (co // ci)
        factors = plane % co * taps.size
        if plane % (co // ci) == 0:
            start = (plane // co * ci + channel) * h * w
            spread_plane(image, start, h, w, windows.top, padded, 0, windows)
        for row in range(windows.oh):
            source = row * width
            at = plane * positions + first + row * ow
            j = 0
            while j + lanes <= ow:
                window_tile(padded, source + j, taps, weights, factors, flat, at + j)
                j += lanes
            if j == ow:
                continue
            if ow >= lanes:
                # Some are computed twice.
                j = ow - lanes
                window_tile(padded, source + j, taps, weights, factors, flat, at + j)
                continue
            window_tile(padded, source, taps, weights, factors, spare, 0)
            for j in range(ow):
                flat[at + j] = spare[j]


@compiled_loop
def add_window_sums(x, out, windows):  # type: ignore[no-untyped-def]
    """Adds the sums over windows of x [planes, h, w] to out [planes, oh, ow]."""
    planes, h, w = x.shape
    line = np.empty(w, x.dtype)
    for plane in range(planes):
        for oy in range(windows.oh):
            line[:] = 0
            for ky in range(windows.kernel_y):
                y = oy * windows.stride_y + ky * windows.dilation_y - windows.top
                if 0 <= y < h:
                    row = x[plane, y]
                    for i in range(w):
                        line[i] += row[i]
            target = out[plane, oy]
            stride = windows.stride_x
            for kx in range(windows.kernel_x):
                shift = kx * windows.dilation_x - windows.left
                low = max(0, -(shift // stride))
                high = min(windows.ow, (w - 1 - shift) // stride + 1)
                if high <= low:
                    continue
                source = line[low * stride + shift :]
                if stride == 1:
                    for i in range(high - low):
                        target[low + i] += source[i]
                else:
                    for i in range(high - low):
                        target[low + i] += source[stride * i]
