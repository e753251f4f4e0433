"""Compiled loops for linear maps over Z_2^32 and Z_2^64: products, convolutions, window sums.

All sums wrap, so the order of additions is free and every result is exact. No loop looks at a
value: time depends on shapes alone, zeros are multiplied like anything else.

The scheme is that of Goto and van de Geijn, "Anatomy of high-performance matrix multiplication"
(ACM TOMS 34(3), 2008): the innermost routine keeps a ``ROWS`` by ``columns`` tile of the result in
vector registers over a whole block of the inner dimension. Compilers do not find that form in
scalar loops, so :func:`add_register_tile` is written in LLVM's vector instructions; the rest is
plain Numba.

Everything compiled lives in this one module because Numba's disk cache notices changes only in the
file that a function stands in. Callers check shapes and sizes: nothing here does.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from llvmlite import binding, ir  # type: ignore[import-untyped]
from numba import njit, types
from numba.extending import intrinsic

_FEATURES = binding.get_host_cpu_features()
VECTOR_BYTES = 64 if _FEATURES.get("avx512f") else 32 if _FEATURES.get("avx2") else 16
"""Width of the machine's vector registers. Numba's cache is keyed by these features too."""

ROWS = 4 if VECTOR_BYTES == 32 else 8
"""Rows of the register tile: its 2 * ROWS sums fit 16 registers (AVX2) or 32 (AVX-512, NEON)."""

PANEL_BYTES = 2 * VECTOR_BYTES
"""One row of the register tile: two vectors."""

DEPTH = 256
"""Steps of the inner dimension per block: a panel of DEPTH rows stays in the first-level cache."""

PANELS = 8
"""Panels gathered at once; with DEPTH rows they fill a quarter of a 1 MiB second-level cache."""

INDEX = ir.IntType(types.intp.bitwidth)


def _address(context: Any, builder: Any, array_type: Any, array: Any, offset: Any) -> Any:
    """Pointer to element ``offset`` of a flat array."""
    data = context.make_array(array_type)(context, builder, array).data
    return builder.gep(data, [offset])


class _Vectors:
    """Unaligned vector loads and stores of one element type."""

    def __init__(self, builder: Any, element_bits: int) -> None:
        self.lanes = VECTOR_BYTES * 8 // element_bits
        self.element = ir.IntType(element_bits)
        self.vector = ir.VectorType(self.element, self.lanes)
        self._builder = builder
        self._align = element_bits // 8

    def load(self, pointer: Any, half: int) -> Any:
        return self._builder.load(self._at(pointer, half), align=self._align)

    def store(self, value: Any, pointer: Any, half: int) -> None:
        self._builder.store(value, self._at(pointer, half), align=self._align)

    def load_spread(self, pointer: Any) -> Any:
        """One element in every lane."""
        undefined = ir.Constant(self.vector, ir.Undefined)
        lane = ir.Constant(ir.IntType(32), 0)
        first = self._builder.insert_element(undefined, self._builder.load(pointer), lane)
        zeros = ir.Constant(ir.VectorType(ir.IntType(32), self.lanes), [0] * self.lanes)
        return self._builder.shuffle_vector(first, undefined, zeros)

    def _at(self, pointer: Any, half: int) -> Any:
        start = self._builder.gep(pointer, [ir.Constant(INDEX, half * self.lanes)])
        return self._builder.bitcast(start, self.vector.as_pointer())


@intrinsic
def copy_panel_row(context, source, source_start, target, target_start):  # type: ignore[no-untyped-def]
    """target[target_start + j] = source[source_start + j] for the elements of one panel row."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        vectors = _Vectors(builder, target.dtype.bitwidth)
        read = _address(context, builder, signature.args[0], *arguments[0:2])
        written = _address(context, builder, signature.args[2], *arguments[2:4])
        halves = [vectors.load(read, half) for half in range(2)]
        for half in range(2):
            vectors.store(halves[half], written, half)
        return context.get_dummy_value()

    return types.void(source, types.intp, target, types.intp), generate


@intrinsic
def add_register_tile(  # type: ignore[no-untyped-def]
    context, left, left_start, right, right_start, depth, result, result_start, pitch
):
    """Adds left [depth, ROWS] transposed times right [depth, columns] to result [ROWS, columns].

    The arrays are flat; ``*_start`` are element offsets, ``pitch`` is the distance of two rows of
    the result, ``columns`` is PANEL_BYTES / item size, ``depth`` at least 1.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        vectors = _Vectors(builder, result.dtype.bitwidth)
        left_at = _address(context, builder, signature.args[0], *arguments[0:2])
        right_at = _address(context, builder, signature.args[2], *arguments[2:4])
        result_at = _address(context, builder, signature.args[5], *arguments[5:7])
        depth, pitch = arguments[4], arguments[7]
        before = builder.block
        body = builder.append_basic_block("register_tile.body")
        after = builder.append_basic_block("register_tile.after")
        builder.branch(body)

        builder.position_at_end(body)
        step = builder.phi(INDEX)
        sums = [builder.phi(vectors.vector) for _ in range(2 * ROWS)]
        left_row = builder.gep(left_at, [builder.mul(step, ir.Constant(INDEX, ROWS))])
        width = ir.Constant(INDEX, 2 * vectors.lanes)
        right_row = builder.gep(right_at, [builder.mul(step, width)])
        halves = [vectors.load(right_row, half) for half in range(2)]
        new_sums = []
        for row in range(ROWS):
            factor = vectors.load_spread(builder.gep(left_row, [ir.Constant(INDEX, row)]))
            for half in range(2):
                product = builder.mul(factor, halves[half])
                new_sums.append(builder.add(sums[2 * row + half], product))
        next_step = builder.add(step, ir.Constant(INDEX, 1))
        step.add_incoming(ir.Constant(INDEX, 0), before)
        step.add_incoming(next_step, body)
        for old, new in zip(sums, new_sums, strict=True):
            old.add_incoming(ir.Constant(vectors.vector, [0] * vectors.lanes), before)
            old.add_incoming(new, body)
        builder.cbranch(builder.icmp_signed("<", next_step, depth), body, after)

        builder.position_at_end(after)
        for row in range(ROWS):
            at = builder.gep(result_at, [builder.mul(pitch, ir.Constant(INDEX, row))])
            for half in range(2):
                total = builder.add(vectors.load(at, half), new_sums[2 * row + half])
                vectors.store(total, at, half)
        return context.get_dummy_value()

    signature = types.void(
        left, types.intp, right, types.intp, types.intp, result, types.intp, types.intp
    )
    return signature, generate


class Windows(NamedTuple):
    """Placement of windows on one image, as the loops see it; all integers.

    The loops read a padded copy of the image, flat [channels, rows, phases, width], in which
    padded column ``i * stride_x + phase`` is at (phase, i). Windows of any stride then read
    consecutive elements.
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
    rows: int
    phases: int
    width: int


@njit(cache=True, nogil=True)
def pack_rows(matrix, packed):  # type: ignore[no-untyped-def]
    """[m, k] to flat blocks of at most DEPTH steps of k, each [ceil(m / ROWS), steps, ROWS].

    Missing rows are zero. In this order large weights are read once from front to back.
    """
    m, k = matrix.shape
    padded = -(-m // ROWS) * ROWS
    packed[:] = 0
    for start in range(0, k, DEPTH):
        block = min(DEPTH, k - start)
        for row in range(m):
            base = start * padded + row // ROWS * ROWS * block + row % ROWS
            for r in range(block):
                packed[base + r * ROWS] = matrix[row, start + r]


@njit(cache=True, nogil=True)
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
def _add_product(  # type: ignore[no-untyped-def]
    left, left_start, right, right_start, depth, out, start, pitch, rows, columns, spare
):
    """Adds a register tile to out[start + row * pitch + column], as far as [rows, columns]."""
    width = PANEL_BYTES // out.itemsize
    if rows >= ROWS and columns >= width:
        add_register_tile(left, left_start, right, right_start, depth, out, start, pitch)
        return
    spare[:] = 0
    add_register_tile(left, left_start, right, right_start, depth, spare, 0, width)
    for row in range(min(rows, ROWS)):
        for j in range(min(columns, width)):
            out[start + row * pitch + j] += spare[row * width + j]


@njit(cache=True, nogil=True)
def add_product(left, right, depth, out):  # type: ignore[no-untyped-def]
    """Adds left times right, packed by pack_rows and pack_columns, to out [m, n].

    ``depth`` is the inner dimension.
    """
    m, n = out.shape
    columns = PANEL_BYTES // out.itemsize
    padded = -(-m // ROWS) * ROWS
    flat = out.reshape(out.size)
    spare = np.empty(ROWS * columns, out.dtype)
    for start in range(0, depth, DEPTH):
        block = min(DEPTH, depth - start)
        for j in range(0, n, columns):
            right_start = j * depth + start * columns
            for i in range(0, m, ROWS):
                left_start, at = start * padded + i * block, i * n + j
                _add_product(
                    left, left_start, right, right_start, block, flat, at, n, m - i, n - j, spare
                )


@njit(nogil=True)
def _spread(image, channel, spread, windows):  # type: ignore[no-untyped-def]
    """Fills the padded copy with image [c, h, w] from ``channel`` on."""
    _, h, w = image.shape
    rows, phases, width = windows.rows, windows.phases, windows.width
    stride = windows.stride_x
    size = rows * phases * width
    spread[:] = 0
    for c in range(spread.size // size):
        for y in range(windows.top, min(rows, windows.top + h)):
            for phase in range(phases):
                shift = phase - windows.left
                low = max(0, -(shift // stride))
                high = min(width, (w - 1 - shift) // stride + 1)
                if high <= low:
                    continue
                start = c * size + (y * phases + phase) * width
                target = spread[start + low : start + high]
                source = image[channel + c, y - windows.top, low * stride + shift :]
                # Constant strides, because the compiler vectorises those.
                if stride == 1:
                    for i in range(target.size):
                        target[i] = source[i]
                elif stride == 2:
                    for i in range(target.size):
                        target[i] = source[2 * i]
                else:
                    for i in range(target.size):
                        target[i] = source[stride * i]


@njit(nogil=True)
def _taps(channels, windows):  # type: ignore[no-untyped-def]
    """Offsets of a window's elements in the padded copy, in the order of the weights."""
    taps = np.empty(channels * windows.kernel_y * windows.kernel_x, np.intp)
    k = 0
    for c in range(channels):
        for ky in range(windows.kernel_y):
            row = c * windows.rows + ky * windows.dilation_y
            for kx in range(windows.kernel_x):
                column = kx * windows.dilation_x
                place = row * windows.phases + column % windows.stride_x
                taps[k] = place * windows.width + column // windows.stride_x
                k += 1
    return taps


@njit(nogil=True)
def _gather(spread, taps, windows, first, count, panels):  # type: ignore[no-untyped-def]
    """Windows first to first + count as flat panels [ceil(count / columns), taps, columns].

    A panel's row is made of runs that are contiguous in the padded copy. Every run is moved at the
    panel's full width, two vectors; the next run or row overwrites what was too much. Therefore
    both arrays have the width of a panel to spare at their ends.
    """
    columns = PANEL_BYTES // panels.itemsize
    depth = taps.size
    pitch = windows.stride_y * windows.phases * windows.width
    sources = np.empty(columns, np.intp)
    targets = np.empty(columns, np.intp)
    for panel in range(0, count, columns):
        runs = 0
        position = first + panel
        while position < min(first + count, first + panel + columns):
            y = position // windows.ow
            x = position - y * windows.ow
            sources[runs] = y * pitch + x
            targets[runs] = panel * depth + position - first - panel
            runs += 1
            position += windows.ow - x
        for k in range(depth):
            for run in range(runs):
                copy_panel_row(spread, sources[run] + taps[k], panels, targets[run] + k * columns)


@njit(nogil=True)
def _add_dense(  # type: ignore[no-untyped-def]
    spread, taps, windows, weights, weights_start, out, out_start, channels, panels, spare
):
    """Adds one group's convolution to ``channels`` planes of the flat out, from out_start on."""
    columns = PANEL_BYTES // out.itemsize
    positions = windows.oh * windows.ow
    depth = taps.size
    padded = -(-channels // ROWS) * ROWS
    for first in range(0, positions, PANELS * columns):
        count = min(PANELS * columns, positions - first)
        for start in range(0, depth, DEPTH):
            block = min(DEPTH, depth - start)
            _gather(spread, taps[start : start + block], windows, first, count, panels)
            for panel in range(0, count, columns):
                for i in range(0, channels, ROWS):
                    left_start = weights_start + start * padded + i * block
                    at = out_start + i * positions + first + panel
                    _add_product(
                        weights,
                        left_start,
                        panels,
                        panel * block,
                        block,
                        out,
                        at,
                        positions,
                        channels - i,
                        count - panel,
                        spare,
                    )


@njit(nogil=True)
def _add_direct(  # type: ignore[no-untyped-def]
    spread, taps, windows, weights, weights_start, out, out_start, channels
):
    """Same for a group of one input channel and few output channels; weights [channels, taps]."""
    ow = windows.ow
    pitch = windows.stride_y * windows.phases * windows.width
    for row in range(channels * windows.oh):
        channel = row // windows.oh
        target = out[out_start + row * ow : out_start + (row + 1) * ow]
        base = (row - channel * windows.oh) * pitch
        for k in range(taps.size):
            factor = weights[weights_start + channel * taps.size + k]
            source = spread[base + taps[k] : base + taps[k] + ow]
            for j in range(ow):
                target[j] += factor * source[j]


@njit(cache=True, nogil=True)
def add_convolution(x, weights, out, groups, direct, windows):  # type: ignore[no-untyped-def]
    """Adds the convolution of x [n, ci, h, w] to out [n, co, oh * ow].

    ``weights`` are the groups' matrices [co / groups, k], flat, one after the other: each packed
    by pack_rows, or as they are where ``direct``.
    """
    n, ci, _, _ = x.shape
    co = out.shape[1]
    columns = PANEL_BYTES // x.itemsize
    group_in, group_out = ci // groups, co // groups
    group_weights = weights.size // groups
    flat = out.reshape(out.size)
    taps = _taps(group_in, windows)
    padded_size = group_in * windows.rows * windows.phases * windows.width
    padded = np.empty(padded_size + columns, x.dtype)
    padded[padded_size:] = 0
    panels = np.empty(PANELS * columns * min(taps.size, DEPTH) + columns, x.dtype)
    spare = np.empty(ROWS * columns, x.dtype)
    for image in range(n):
        for group in range(groups):
            _spread(x[image], group * group_in, padded[:padded_size], windows)
            start = group * group_weights
            target = (image * co + group * group_out) * windows.oh * windows.ow
            if direct:
                _add_direct(padded, taps, windows, weights, start, flat, target, group_out)
            else:
                _add_dense(
                    padded, taps, windows, weights, start, flat, target, group_out, panels, spare
                )


@njit(cache=True, nogil=True)
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
