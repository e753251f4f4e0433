"""Exact matrix products over Z_2^32 and Z_2^64 with fixed secret weights."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from radiopaque.errors import TensorError
from radiopaque.kernels import linear_loops
from radiopaque.ring import RingArray

RING_DTYPES = (np.dtype(np.uint32), np.dtype(np.uint64))


def packed_rows(matrix: RingArray) -> RingArray:
    """The flat form of the left factor [m, k] that the loops read."""
    m, k = matrix.shape
    packed = np.empty(-(-m // linear_loops.ROWS) * linear_loops.ROWS * k, matrix.dtype)
    linear_loops.pack_rows(read_only(matrix), packed)
    return packed


def packed_columns(matrix: RingArray) -> RingArray:
    """The flat form of the right factor [k, n] that the loops read."""
    k, n = matrix.shape
    columns = linear_loops.PANEL_BYTES // matrix.itemsize
    packed = np.empty(-(-n // columns) * columns * k, matrix.dtype)
    linear_loops.pack_columns(read_only(matrix), packed)
    return packed


def read_only(x: NDArray[Any]) -> NDArray[Any]:
    """A contiguous, aligned, read-only view or copy: one array type, so one compiled variant."""
    view = np.require(x, requirements=["C", "A"]).view()
    view.flags.writeable = False
    return view


class PackedMatrix:
    """Secret weights [k, n], packed once; calling it multiplies [..., k] to [..., n]."""

    def __init__(self, weights: RingArray) -> None:
        if weights.dtype not in RING_DTYPES:
            raise TensorError(f"weights are {weights.dtype}; give uint32 or uint64")
        self._shape = weights.shape
        self._weights = packed_columns(weights)

    def __repr__(self) -> str:
        return f"PackedMatrix(shape={self._shape}, dtype={self._weights.dtype})"

    def __call__(self, x: RingArray) -> RingArray:
        k, n = self._shape
        if x.dtype != self._weights.dtype or x.shape[-1] != k:
            raise TensorError(f"input is {x.dtype} {x.shape}")
        rows = prod(x.shape[:-1])
        out = np.empty((rows, n), x.dtype)
        linear_loops.multiply(packed_rows(x.reshape(rows, k)), self._weights, out)
        return out.reshape(*x.shape[:-1], n)
