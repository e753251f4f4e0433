"""Exact convolutions and window sums over Z_2^32 and Z_2^64."""

from __future__ import annotations

import numpy as np
from numba import njit

from radiopaque.errors import TensorError
from radiopaque.graph.plan import Convolution, WindowSum


def output_extent(size: int, kernel: int, stride: int, before: int, after: int, dilation: int) -> int:
    """Number of windows along one axis; zero or negative where none fits."""
    return (size + before + after - dilation * (kernel - 1) - 1) // stride + 1


@njit(cache=True, nogil=True)
def _gather(x, tile, first, count, ow, kernel, strides, pads, dilations):
    """Writes im2col columns first..first+count of one image and group into tile [k, count]."""
    ci, h, w = x.shape
    row = 0
    for c in range(ci):
        for ky in range(kernel[0]):
            for kx in range(kernel[1]):
                for j in range(count):
                    oy, ox = divmod(first + j, ow)
                    y = oy * strides[0] - pads[0] + ky * dilations[0]
                    xx = ox * strides[1] - pads[1] + kx * dilations[1]
                    if 0 <= y < h and 0 <= xx < w:
                        tile[row, j] = x[c, y, xx]
                    else:
                        tile[row, j] = 0
                row += 1


@njit(cache=True, nogil=True)
def _multiply(weights, tile, out, first, count):
    """out[:, first:first+count] += weights [m, k] times tile [k, count]."""
    m, k = weights.shape
    for i in range(m):
        for j in range(count):
            out[i, first + j] = 0
        for r in range(k):
            a = weights[i, r]
            for j in range(count):
                out[i, first + j] += a * tile[r, j]


@njit(cache=True, nogil=True)
def _convolve(x, weights, out, groups, ow, kernel, strides, pads, dilations):
    n, ci, _, _ = x.shape
    co, k = weights.shape
    positions = out.shape[2]
    block = min(positions, 256)
    tile = np.empty((k, block), x.dtype)
    cg, mg = ci // groups, co // groups
    for b in range(n):
        for g in range(groups):
            for first in range(0, positions, block):
                count = min(block, positions - first)
                part = x[b, g * cg : (g + 1) * cg]
                _gather(part, tile, first, count, ow, kernel, strides, pads, dilations)
                target = out[b, g * mg : (g + 1) * mg]
                _multiply(weights[g * mg : (g + 1) * mg], tile, target, first, count)


class PackedConvolution:
    """A convolution with fixed secret weights."""

    def __init__(self, weights: np.ndarray, spec: Convolution) -> None:
        if weights.dtype not in (np.uint32, np.uint64):
            raise TensorError(f"weights are {weights.dtype}; give uint32 or uint64")
        self._shape = weights.shape
        self._spec = spec
        self._weights = np.ascontiguousarray(weights).reshape(weights.shape[0], -1)

    def __repr__(self) -> str:
        return f"PackedConvolution(shape={self._shape}, dtype={self._weights.dtype})"

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """[n, ci, h, w] to [n, co, oh, ow], same dtype."""
        if x.dtype != self._weights.dtype or x.ndim != 4 or not x.flags.c_contiguous:
            raise TensorError(f"input is {x.dtype} {x.shape}")
        spec = self._spec
        top, left, bottom, right = spec.pads
        oh = output_extent(
            x.shape[2], spec.kernel[0], spec.strides[0], top, bottom, spec.dilations[0]
        )
        ow = output_extent(
            x.shape[3], spec.kernel[1], spec.strides[1], left, right, spec.dilations[1]
        )
        out = np.empty((x.shape[0], spec.out_channels, oh * ow), x.dtype)
        _convolve(
            x,
            self._weights,
            out,
            spec.groups,
            ow,
            spec.kernel,
            spec.strides,
            spec.pads,
            spec.dilations,
        )
        return out.reshape(x.shape[0], spec.out_channels, oh, ow)


class PackedMatrix:
    """A matrix [k, n] with fixed secret weights."""

    def __init__(self, weights: np.ndarray) -> None:
        if weights.dtype not in (np.uint32, np.uint64):
            raise TensorError(f"weights are {weights.dtype}; give uint32 or uint64")
        self._weights = np.ascontiguousarray(weights)

    def __repr__(self) -> str:
        return f"PackedMatrix(shape={self._weights.shape}, dtype={self._weights.dtype})"

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """[..., k] to [..., n], same dtype."""
        if x.dtype != self._weights.dtype or x.shape[-1] != self._weights.shape[0]:
            raise TensorError(f"input is {x.dtype} {x.shape}")
        return np.asarray(x @ self._weights)


def window_sum(x: np.ndarray, spec: WindowSum) -> np.ndarray:
    """[.., h, w] to [.., oh, ow]: ring sums with zero padding."""
    top, left, bottom, right = spec.pads
    padded = np.pad(x, [(0, 0)] * (x.ndim - 2) + [(top, bottom), (left, right)])
    h, w = x.shape[-2:]
    (kh, kw), (sy, sx), (dy, dx) = spec.kernel, spec.strides, spec.dilations
    oh, ow = output_extent(h, kh, sy, top, bottom, dy), output_extent(w, kw, sx, left, right, dx)
    out = np.zeros((*x.shape[:-2], oh, ow), x.dtype)
    for i in range(kh):
        for j in range(kw):
            y, z = i * dy, j * dx
            out += padded[..., y : y + (oh - 1) * sy + 1 : sy, z : z + (ow - 1) * sx + 1 : sx]
    return out


def warm_up(dtype: np.dtype | type) -> None:
    """Compiles the kernels for one dtype."""
    x = np.ones((1, 2, 3, 3), dtype)
    PackedConvolution(np.ones((1, 2, 2, 2), dtype), Convolution(1, (2, 2)))(x)
    PackedMatrix(np.ones((3, 2), dtype))(x)
    window_sum(x, WindowSum((2, 2)))
