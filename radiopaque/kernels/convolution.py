"""Exact convolutions and window sums over Z_2^32 and Z_2^64."""

from __future__ import annotations

import numpy as np

from radiopaque.errors import TensorError
from radiopaque.graph.plan import Convolution, WindowSum
from radiopaque.kernels import linear_loops
from radiopaque.kernels.matmul import PackedMatrix, packed_rows, read_only


def output_extent(size: int, kernel: int, stride: int, before: int, after: int, dilation: int) -> int:
    """Number of windows along one axis; zero or negative where none fits."""
    return (size + before + after - dilation * (kernel - 1) - 1) // stride + 1


class PackedConvolution:
    """A convolution with fixed secret weights."""

    def __init__(self, weights: np.ndarray, spec: Convolution) -> None:
        if weights.dtype not in (np.uint32, np.uint64):
            raise TensorError(f"weights are {weights.dtype}; give uint32 or uint64")
        self._shape = weights.shape
        self._spec = spec
        self._weights = np.concatenate([packed_rows(m) for m in weights.reshape(spec.groups, weights.shape[0]//spec.groups, -1)])

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
        linear_loops.convolve(
            read_only(x),
            self._weights,
            out,
            spec.groups,
            oh,
            ow,
            spec.kernel,
            spec.strides,
            spec.pads,
            spec.dilations,
        )
        return out.reshape(x.shape[0], spec.out_channels, oh, ow)


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
