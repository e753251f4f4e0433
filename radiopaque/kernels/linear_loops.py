"""Compiled loops for matrix products and convolutions over Z_2^32 and Z_2^64.

All sums wrap, so the order of additions is free and every result is exact. No loop looks at a
value: time depends on shapes alone, zeros are multiplied like anything else.

The scheme is that of Goto and van de Geijn, "Anatomy of high-performance matrix multiplication"
(ACM TOMS 34(3), 2008), around the register tiles of :mod:`radiopaque.kernels.tiles`, which also
says what words, limbs, and short and split factors are. A *step* is one of the inner dimension, or
two where the product is by limbs. Callers check shapes and sizes: nothing here does.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from radiopaque.kernels.compiled import compiled_loop
from radiopaque.kernels.tiles import (
    PANEL_BYTES,
    ROWS,
    copy_panel_row,
    line_tile,
    narrow_tile,
    register_tile,
)
from radiopaque.kernels.window_loops import plane_size, split_planes, spread_plane, window_taps

DEPTH = 256
"""Elements in a column of a block: so many rows of a panel stay in the first-level cache."""

LINE_BYTES = 64
"""A line of the cache, on the machines that we know."""

PANELS = 8
"""Panels gathered at once; with DEPTH rows they fill a quarter of a 1 MiB second-level cache."""


@compiled_loop
def pack_rows(matrix, rows, depth, packed):  # type: ignore[no-untyped-def]
    """[m, k] to flat blocks of at most ``depth`` steps, each [ceil(m / rows), steps, rows].

    Missing rows are zero. In this order large weights are read once from front to back.
    """
    m, k = matrix.shape
    padded = -(-m // rows) * rows
    packed[:] = 0
    for start in range(0, k, depth):
        block = min(depth, k - start)
        for row in range(m):
            base = start * padded + row // rows * rows * block + row % rows
            for r in range(block):
                packed[base + r * rows] = matrix[row, start + r]


@compiled_loop
def pack_columns(matrix, packed):  # type: ignore[no-untyped-def]
    """[k, n] to flat panels [ceil(n / columns), k, columns]; missing columns are zero."""
    k, n = matrix.shape
    columns = PANEL_BYTES // matrix.itemsize
    packed[:] = 0
    for first in range(0, n, columns):
        for r in range(k):
            base = first * k + r * columns
            for j in range(min(columns, n - first)):
                packed[base + j] = matrix[r, first + j]


@njit(nogil=True)
def _multiply_panel(  # type: ignore[no-untyped-def]
    left,
    left_start,
    limbs,
    right,
    right_start,
    depth,
    adding,
    rows,
    columns,
    out,
    start,
    pitch,
    edge,
):
    """Writes or adds the product of one block and panel, [rows, columns], to out from start on.

    ``limbs`` is the number of words that hold an element of left.
    ``edge`` [ceil(rows / ROWS) * ROWS, width of a panel], flat, has the sums of what does not fill
    register tiles, and must be the same for all blocks of one panel. The caller copies it.
    """
    width = PANEL_BYTES // out.itemsize
    narrow = columns <= width // 2
    fits = columns == width or columns == width // 2
    for i in range(0, rows, ROWS):
        at = left_start + limbs * i * depth
        if fits and rows - i >= ROWS:
            target, to, line = out, start + i * pitch, pitch
        else:
            target, to, line = edge, i * width, width
        if narrow:
            narrow_tile(left, at, right, right_start, depth, target, to, line, adding)
        else:
            register_tile(left, at, right, right_start, depth, target, to, line, adding)


@njit(nogil=True)
def _copy_edge(edge, rows, columns, out, start, pitch):  # type: ignore[no-untyped-def]
    """Copies what :func:`_multiply_panel` left in ``edge`` to out."""
    width = PANEL_BYTES // out.itemsize
    first = rows // ROWS * ROWS if columns == width or columns == width // 2 else 0
    for row in range(first, rows):
        for j in range(columns):
            out[start + row * pitch + j] = edge[row * width + j]


@compiled_loop
def multiply(left, right, steps, limbs, out):  # type: ignore[no-untyped-def]
    """Writes left times right, packed by pack_rows and pack_columns, to out [m, n].

    ``limbs`` is the number of words that hold an element of left: 1, or 2 where right is short.
    Left has one row in a block where m is 1, else ROWS.
    """
    m, n = out.shape
    width = PANEL_BYTES // out.itemsize
    depth = DEPTH // limbs
    padded = m if m == 1 else -(-m // ROWS) * ROWS
    flat = out.reshape(out.size)
    edge = np.empty(padded * width, out.dtype)
    for j in range(0, n, width):
        columns = min(width, n - j)
        for start in range(0, steps, depth):
            block = min(depth, steps - start)
            right_start = j * steps + start * width
            left_start = limbs * start * padded
            if m != 1:
                _multiply_panel(
                    left,
                    left_start,
                    limbs,
                    right,
                    right_start,
                    block,
                    start > 0,
                    m,
                    columns,
                    flat,
                    j,
                    n,
                    edge,
                )
            elif columns == width:
                line_tile(left, left_start, right, right_start, block, flat, j, n, start > 0)
            else:
                line_tile(left, left_start, right, right_start, block, edge, 0, n, start > 0)
        if m != 1:
            _copy_edge(edge, m, columns, flat, j, n)
        elif columns < width:
            flat[j:] = edge[:columns]


@njit(nogil=True)
def aligned(size, like):  # type: ignore[no-untyped-def]
    """An array of the dtype of ``like`` that begins where a line of the cache does."""
    line = LINE_BYTES // like.itemsize
    room = np.empty(size + line, like.dtype)
    start = -(room.ctypes.data // like.itemsize) % line
    return room[start : start + size]


@njit(nogil=True)
def _gather(spread, taps, windows, first, count, panels):  # type: ignore[no-untyped-def]
    """Windows first to first + count as flat panels [ceil(count / columns), taps, columns].

    A panel's row is made of runs that are contiguous in the padded copy. Every run is moved at the
    panel's full width, two vectors; the next run or row overwrites what was too much. Therefore
    both arrays have the width of a panel to spare at their ends.
    """
    columns = PANEL_BYTES // panels.itemsize
    depth = taps.size
    sources = np.empty(columns, np.intp)
    targets = np.empty(columns, np.intp)
    for panel in range(0, count, columns):
        runs = 0
        position = first + panel
        while position < min(first + count, first + panel + columns):
            y = position // windows.ow
            x = position - y * windows.ow
            sources[runs] = y * windows.width + x
            targets[runs] = panel * depth + position - first - panel
            runs += 1
            if windows.width == windows.ow:
                break
            position += windows.ow - x
        for k in range(depth):
            for run in range(runs):
                copy_panel_row(spread, sources[run] + taps[k], panels, targets[run] + k * columns)


@njit(nogil=True)
def _block_taps(taps, depth, limbs, size):  # type: ignore[no-untyped-def]
    """The rows that :func:`_gather` has to make: for each block the high limbs before the low."""
    if limbs == 1:
        return taps
    rows = np.empty(2 * taps.size, np.intp)
    for start in range(0, taps.size, depth):
        block = min(depth, taps.size - start)
        for k in range(block):
            rows[2 * start + k] = taps[start + k]
            rows[2 * start + block + k] = taps[start + k] + size
    return rows


@compiled_loop
def convolve(x, weights, out, first, groups, windows, limbs):  # type: ignore[no-untyped-def]
    """Writes the convolution of x [n, ci, h, w] to out [n, co, positions], from ``first`` on.

    ``weights`` are the groups' matrices [co / groups, steps], flat, one after the other, each
    packed by pack_rows. ``limbs`` is None, or where the weights are short, room for the limbs of
    two channels and a panel's row; a step is then a pair of channels at one place of the window.
    """
    n, ci, h, w = x.shape
    co, positions = out.shape[1:]
    columns = PANEL_BYTES // x.itemsize
    group_in, group_out = ci // groups, co // groups
    padded_out = -(-group_out // ROWS) * ROWS
    group_weights = weights.size // groups
    image, flat = x.reshape(x.size), out.reshape(out.size)
    size = plane_size(windows)
    if limbs is None:
        count, channels, spacing = 1, group_in, size
    else:
        count, channels, spacing = 2, (group_in + 1) // 2, 2 * size
    # The rows of the image that the windows meet.
    skipped = max(0, -windows.top)
    used = max(0, min(h, windows.rows * windows.stride_y - windows.top) - skipped)
    taps = window_taps(channels, spacing, windows)
    depth = DEPTH // count
    panel_taps = _block_taps(taps, depth, count, size)
    padded = aligned(channels * spacing + columns, x)
    padded[channels * spacing :] = 0
    panels = aligned(PANELS * columns * min(panel_taps.size, DEPTH) + columns, x)
    edges = np.empty(padded_out * PANELS * columns, x.dtype)
    area = windows.oh * windows.ow
    for part in range(n * groups):
        group = part % groups
        start = part * group_in * h * w
        for c in range(channels):
            if limbs is None:
                at = start + c * h * w
                spread_plane(image, at, h, w, windows.top, padded, c * size, windows)
                continue
            a, b = start + 2 * c * h * w, start + min(2 * c + 1, group_in - 1) * h * w
            split_planes(image, a + skipped * w, b + skipped * w, limbs, used * w)
            for limb in range(2):
                at = (2 * c + limb) * size
                top = windows.top + skipped
                spread_plane(limbs, limb * used * w, used, w, top, padded, at, windows)
        out_start = part * group_out * positions + first
        for at in range(0, area, PANELS * columns):
            here = min(PANELS * columns, area - at)
            for step in range(0, taps.size, depth):
                block = min(depth, taps.size - step)
                rows = panel_taps[count * step : count * (step + block)]
                _gather(padded, rows, windows, at, here, panels)
                for panel in range(0, here, columns):
                    _multiply_panel(
                        weights,
                        group * group_weights + step * padded_out,
                        1,
                        panels,
                        panel * block * count,
                        block,
                        step > 0,
                        group_out,
                        min(columns, here - panel),
                        flat,
                        out_start + at + panel,
                        positions,
                        edges[panel * padded_out :],
                    )
            for panel in range(0, here, columns):
                _copy_edge(
                    edges[panel * padded_out :],
                    group_out,
                    min(columns, here - panel),
                    flat,
                    out_start + at + panel,
                    positions,
                )
