"""Compiled loops for linear maps over Z_2^32 and Z_2^64: products, convolutions, window sums.

All sums wrap, so the order of additions is free and every result is exact. No loop looks at a
value: time depends on shapes alone, zeros are multiplied like anything else.

The scheme is that of Goto and van de Geijn, "Anatomy of high-performance matrix multiplication"
(ACM TOMS 34(3), 2008): the innermost routine keeps a ``ROWS`` by ``columns`` tile of the result in
vector registers over a whole block of the inner dimension. Compilers do not find that form in
scalar loops, so :func:`register_tile` is written in LLVM's vector instructions; the rest is plain
Numba.

Everything compiled lives in this one module because Numba's disk cache notices changes only in the
file that a function stands in. Callers check shapes and sizes: nothing here does.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import binding, ir
from numba import njit, types
from numba.extending import intrinsic

_FEATURES = binding.get_host_cpu_features()
VECTOR_BYTES = 64 if _FEATURES.get("avx512f") else 32 if _FEATURES.get("avx2") else 16
"""Width of the machine's vector registers. Numba's cache is keyed by these features too."""

ROWS = 4 if VECTOR_BYTES == 32 else 8
"""Rows of the register tile: 2 * ROWS accumulators, in 16 registers (AVX2) or 32 (the others)."""

PANEL_BYTES = 2 * VECTOR_BYTES
"""One row of the register tile: two vectors."""

DEPTH = 256
"""Steps of the inner dimension per block: a panel of DEPTH rows stays in the first-level cache."""

PANELS = 8
"""Panels gathered at once; with DEPTH rows they fill a quarter of a 1 MiB second-level cache."""


@intrinsic
def register_tile(  # type: ignore[no-untyped-def]
    context, left, left_start, right, right_start, result, depth
):
    """result[ROWS, columns] = left [depth, ROWS] transposed times right [depth, columns].

    All three are flat contiguous arrays of one element type; ``left_start`` and ``right_start``
    are element offsets, ``columns`` is PANEL_BYTES / item size, ``depth`` at least 1.
    """
    element_bits = result.dtype.bitwidth
    lanes = VECTOR_BYTES * 8 // element_bits

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        element, index = ir.IntType(element_bits), ir.IntType(64)
        vector = ir.VectorType(element, lanes)
        splat = ir.Constant(ir.VectorType(ir.IntType(32), lanes), [0] * lanes)
        undefined = ir.Constant(vector, ir.Undefined)
        pointers = [
            context.make_array(signature.args[i])(context, builder, arguments[i]).data
            for i in (0, 2, 4)
        ]
        left_at = builder.gep(pointers[0], [arguments[1]])
        right_at = builder.gep(pointers[1], [arguments[3]])

        def place(pointer: Any, row: Any, width: int, offset: int) -> Any:
            start = builder.mul(row, ir.Constant(index, width))
            return builder.gep(pointer, [builder.add(start, ir.Constant(index, offset))])

        def vector_place(pointer: Any, row: Any, half: int) -> Any:
            at = place(pointer, row, 2 * lanes, half * lanes)
            return builder.bitcast(at, vector.as_pointer())

        before = builder.block
        body = builder.append_basic_block("register_tile.body")
        after = builder.append_basic_block("register_tile.after")
        builder.branch(body)

        builder.position_at_end(body)
        step = builder.phi(index)
        step.add_incoming(ir.Constant(index, 0), before)
        sums = [builder.phi(vector) for _ in range(2 * ROWS)]
        halves = [
            builder.load(vector_place(right_at, step, half), align=element_bits // 8)
            for half in range(2)
        ]
        new_sums = []
        for row in range(ROWS):
            scalar = builder.load(place(left_at, step, ROWS, row))
            first = builder.insert_element(undefined, scalar, ir.Constant(ir.IntType(32), 0))
            spread = builder.shuffle_vector(first, undefined, splat)
            for half in range(2):
                product = builder.mul(spread, halves[half])
                new_sums.append(builder.add(sums[2 * row + half], product))
        for old, new in zip(sums, new_sums, strict=True):
            old.add_incoming(ir.Constant(vector, [0] * lanes), before)
            old.add_incoming(new, body)
        next_step = builder.add(step, ir.Constant(index, 1))
        step.add_incoming(next_step, body)
        builder.cbranch(builder.icmp_signed("<", next_step, arguments[5]), body, after)

        builder.position_at_end(after)
        for row in range(ROWS):
            for half in range(2):
                at = vector_place(pointers[2], ir.Constant(index, row), half)
                builder.store(new_sums[2 * row + half], at, align=element_bits // 8)
        return context.get_dummy_value()

    return types.void(left, types.intp, right, types.intp, result, types.intp), generate


@njit(cache=True, nogil=True)
def pack_rows(matrix: Any, packed: Any) -> None:
    """[m, k] to flat panels [ceil(m / ROWS), k, ROWS]; missing rows are zero."""
    m, k = matrix.shape
    for first in range(0, m, ROWS):
        base = first * k
        for row in range(ROWS):
            if first + row < m:
                for r in range(k):
                    packed[base + r * ROWS + row] = matrix[first + row, r]
            else:
                for r in range(k):
                    packed[base + r * ROWS + row] = 0


@njit(cache=True, nogil=True)
def pack_columns(matrix: Any, packed: Any) -> None:
    """[k, n] to flat panels [ceil(n / columns), k, columns]; missing columns are zero."""
    k, n = matrix.shape
    columns = PANEL_BYTES // matrix.itemsize
    for first in range(0, n, columns):
        for r in range(k):
            row = packed[first * k + r * columns : first * k + (r + 1) * columns]
            row[:] = 0
            for j in range(min(columns, n - first)):
                row[j] = matrix[r, first + j]


@njit(cache=True, nogil=True)
def _store(tile: Any, rows: int, columns: int, out: Any, base: int, pitch: int, add: bool) -> None:
    """Writes or adds the top left [rows, columns] of a register tile to out[base + row * pitch]."""
    width = PANEL_BYTES // out.itemsize
    for row in range(rows):
        target = out[base + row * pitch : base + row * pitch + columns]
        source = tile[row * width : row * width + columns]
        if add:
            for j in range(columns):
                target[j] += source[j]
        else:
            for j in range(columns):
                target[j] = source[j]


@njit(cache=True, nogil=True)
def multiply(left: Any, right: Any, out: Any) -> None:
    """out [m, n] = left times right, both packed (pack_rows, pack_columns)."""
    m, n = out.shape
    columns = PANEL_BYTES // out.itemsize
    k = left.size // (-(-m // ROWS) * ROWS)
    flat = out.reshape(out.size)
    tile = np.empty(ROWS * columns, out.dtype)
    for start in range(0, k, DEPTH):
        depth = min(DEPTH, k - start)
        for j in range(0, n, columns):
            for i in range(0, m, ROWS):
                register_tile(left, i * k + start * ROWS, right, j * k + start * columns, tile, depth)
                _store(tile, min(ROWS, m - i), min(columns, n - j), flat, i * n + j, n, start > 0)


@njit(cache=True, nogil=True)
def _spread(image: Any, spread: Any, rows: int, width: int, phases: int, top: int, left: int, stride: int) -> None:
    """Copies image [c, h, w] with its zero padding to flat [c, rows, phases, width].

    Padded column ``i * stride + phase`` goes to (phase, i): windows of any stride then read
    consecutive elements.
    """
    channels, h, w = image.shape
    spread[:] = 0
    for c in range(channels):
        for y in range(max(0, -top), min(rows, h + top)):
            if not 0 <= y - top < h:
                continue
            for phase in range(phases):
                base = ((c * rows + y) * phases + phase) * width
                low = max(0, -((phase - left) // stride))
                high = min(width, (w - 1 + left - phase) // stride + 1)
                for i in range(low, high):
                    spread[base + i] = image[c, y - top, i * stride + phase - left]


@njit(cache=True, nogil=True)
def _taps(taps: Any, channels: int, kernel: Any, dilations: Any, stride: int, rows: int, width: int, phases: int) -> None:
    """Offsets, in the spread image, of the window's elements, in the order of the weights."""
    k = 0
    for c in range(channels):
        for ky in range(kernel[0]):
            for kx in range(kernel[1]):
                row = c * rows + ky * dilations[0]
                column = kx * dilations[1]
                taps[k] = (row * phases + column % stride) * width + column // stride
                k += 1


@njit(cache=True, nogil=True)
def _gather(spread: Any, base: int, taps: Any, first: int, count: int, ow: int, pitch: int, tile: Any) -> None:
    """Windows of positions first..first+count as flat panels [ceil(count / columns), k, columns].

    A panel's row is made of runs that are contiguous in the spread image. Each run is copied at
    the panel's full width, which compiles to two vector moves: what is too much is overwritten by
    the next run or row. Both arrays have a panel's width to spare at their ends.
    """
    columns = PANEL_BYTES // tile.itemsize
    depth = taps.size
    for panel in range(0, count, columns):
        end = min(first + count, first + panel + columns)
        for k in range(depth):
            at = panel * depth + k * columns
            position = first + panel
            while position < end:
                y = position // ow
                x = position - y * ow
                source = base + taps[k] + y * pitch + x
                for j in range(columns):
                    tile[at + j] = spread[source + j]
                at += ow - x
                position += ow - x


@njit(cache=True, nogil=True)
def convolve(x: Any, weights: Any, out: Any, groups: int, oh: int, ow: int, kernel: Any, strides: Any, pads: Any, dilations: Any) -> None:
    """out [n, co, oh * ow] = convolution of x [n, ci, h, w].

    ``weights`` are the groups' matrices [co / groups, k], each packed by pack_rows, one after the
    other.
    """
    n, ci, _, _ = x.shape
    co = out.shape[1]
    columns = PANEL_BYTES // x.itemsize
    rows = (oh - 1) * strides[0] + (kernel[0] - 1) * dilations[0] + 1
    reach = (kernel[1] - 1) * dilations[1]
    phases = min(strides[1], reach + 1)
    width = ow + reach // strides[1]
    pitch = strides[0] * phases * width
    group_in, group_out = ci // groups, co // groups
    k = group_in * kernel[0] * kernel[1]
    group_weights = weights.size // groups
    positions = oh * ow
    flat = out.reshape(out.size)

    taps = np.empty(k, np.intp)
    _taps(taps, group_in, kernel, dilations, strides[1], rows, width, phases)
    spread = np.empty(ci * rows * phases * width + columns, x.dtype)
    block = min(PANELS, -(-positions // columns)) * columns
    gathered = np.empty(block * min(k, DEPTH) + columns, x.dtype)
    tile = np.empty(ROWS * columns, x.dtype)
    for image in range(n):
        _spread(x[image], spread, rows, width, phases, pads[0], pads[1], strides[1])
        for group in range(groups):
            base = group * group_in * rows * phases * width
            target = (image * co + group * group_out) * positions
            for first in range(0, positions, block):
                count = min(block, positions - first)
                for start in range(0, k, DEPTH):
                    depth = min(DEPTH, k - start)
                    _gather(spread, base, taps[start : start + depth], first, count, ow, pitch, gathered)
                    for panel in range(0, count, columns):
                        for i in range(0, group_out, ROWS):
                            register_tile(weights, group * group_weights + i * k + start * ROWS, gathered, panel * depth, tile, depth)
                            _store(tile, min(ROWS, group_out - i), min(columns, count - panel), flat, target + i * positions + first + panel, positions, start > 0)
