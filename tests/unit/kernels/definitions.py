"""Convolutions by their definition, and the numbers and placements to try them on."""

from __future__ import annotations

from itertools import product

import numpy as np
from hypothesis import strategies as st


def bits(dtype):
    return 8 * np.dtype(dtype).itemsize


def ring_elements(seed, shape, dtype):
    """Uniform ring elements, a third of them replaced by the edges 0, 1, -1 and 2^(k-1)."""
    generator = np.random.default_rng(seed)
    values = generator.integers(0, 1 << bits(dtype), shape, dtype)
    top = 1 << (bits(dtype) - 1)
    edges = np.array([0, 1, 2 * top - 1, top], dtype)
    chosen = edges[generator.integers(0, len(edges), shape)]
    return np.where(generator.integers(0, 3, shape) == 0, chosen, values).astype(dtype)


def extent(size, before, after, kernel, stride, dilation):
    return (size + before + after - (kernel - 1) * dilation - 1) // stride + 1


def output_size(spec, h, w):
    top, left, bottom, right = spec.pads
    return (
        extent(h, top, bottom, spec.kernel[0], spec.strides[0], spec.dilations[0]),
        extent(w, left, right, spec.kernel[1], spec.strides[1], spec.dilations[1]),
    )


def inside(spec, h, w, oy, ox):
    """((ky, kx), (y, x)) of the elements of one window that are not padding."""
    for ky, kx in product(range(spec.kernel[0]), range(spec.kernel[1])):
        y = oy * spec.strides[0] + ky * spec.dilations[0] - spec.pads[0]
        x = ox * spec.strides[1] + kx * spec.dilations[1] - spec.pads[1]
        if 0 <= y < h and 0 <= x < w:
            yield (ky, kx), (y, x)


def convolution_by_definition(x, weights, spec):
    """Nested lists of Python integers, reduced at the very end."""
    n, ci, h, w = x.shape
    oh, ow = output_size(spec, h, w)
    group_in, group_out = ci // spec.groups, spec.out_channels // spec.groups
    xs, ws = x.tolist(), weights.tolist()
    out = np.zeros((n, spec.out_channels, oh, ow), x.dtype)
    for b, o, oy, ox in np.ndindex(*out.shape):
        first = o // group_out * group_in
        total = sum(
            ws[o][c][ky][kx] * xs[b][first + c][y][column]
            for c in range(group_in)
            for (ky, kx), (y, column) in inside(spec, h, w, oy, ox)
        )
        out[b, o, oy, ox] = total % (1 << bits(x.dtype))
    return out


def convolution_by_shifts(x, weights, spec):
    """The same by wrapping numpy sums over shifted images, for shapes too large for lists."""
    n, ci, h, w = x.shape
    top, left, bottom, right = spec.pads
    oh, ow = output_size(spec, h, w)
    padded = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)))
    out = np.zeros((n, spec.out_channels, oh, ow), x.dtype)
    group_in, group_out = ci // spec.groups, spec.out_channels // spec.groups
    for o in range(spec.out_channels):
        for c, ky, kx in np.ndindex(group_in, *spec.kernel):
            y, column = ky * spec.dilations[0], kx * spec.dilations[1]
            shifted = padded[
                :,
                o // group_out * group_in + c,
                y : y + (oh - 1) * spec.strides[0] + 1 : spec.strides[0],
                column : column + (ow - 1) * spec.strides[1] + 1 : spec.strides[1],
            ]
            out[:, o] += weights[o, c, ky, kx] * shifted
    return out


@st.composite
def placements(draw):
    """kernel, strides, pads, dilations and an image size that holds at least one window."""
    pair = st.tuples(st.integers(1, 3), st.integers(1, 3))
    kernel, strides, dilations = draw(pair), draw(pair), draw(pair)
    pads = draw(st.tuples(*[st.integers(0, 3)] * 4))
    size = []
    for axis in range(2):
        span = (kernel[axis] - 1) * dilations[axis] + 1
        least = max(1, span - pads[axis] - pads[axis + 2])
        size.append(least + draw(st.integers(0, 6)))
    return kernel, strides, pads, dilations, tuple(size)
