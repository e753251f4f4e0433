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


class PackedMatrix:
    """The map x [..., k] -> x * weights [..., n] with secret weights [k, n], uint32 or uint64.

    The weights are copied once, in the order in which the kernel reads them; calling the object
    takes no lock and changes nothing, so threads may share it. Raises TensorError for other
    dtypes, and for weights that are not a matrix with at least one row and column.
    """

    __slots__ = ("_dtype", "_shape", "_weights")

    def __init__(self, weights: RingArray) -> None:
        check_ring_dtype("weights", weights)
        if weights.ndim != 2 or 0 in weights.shape:
            raise TensorError(
                f"weights are {list(weights.shape)}; a matrix product takes [k, n], both positive"
            )
        self._shape = (weights.shape[0], weights.shape[1])
        self._dtype = weights.dtype
        columns = linear_loops.PANEL_BYTES // weights.itemsize
        panels = -(-self._shape[1] // columns)
        self._weights = np.empty(panels * columns * self._shape[0], weights.dtype)
        linear_loops.pack_columns(kernel_view(weights), self._weights)

    def __repr__(self) -> str:
        return f"<PackedMatrix {list(self._shape)} {self._dtype}>"

    def __call__(self, x: RingArray) -> RingArray:
        """x [..., k] to [..., n], same dtype. Raises TensorError for another dtype or k."""
        k, n = self._shape
        check_input_dtype(x, self._dtype)
        if x.ndim < 1 or x.shape[-1] != k:
            raise TensorError(f"input is {list(x.shape)}; the weights take [..., {k}]")
        m = prod(x.shape[:-1])
        out = np.zeros((m, n), x.dtype)
        linear_loops.add_product(packed_rows(x.reshape(m, k)), self._weights, k, out)
        return out.reshape(*x.shape[:-1], n)


def packed_rows(matrix: RingArray) -> RingArray:
    """A matrix [m, k] as the flat left factor that the kernels read."""
    m, k = matrix.shape
    packed = np.empty(-(-m // linear_loops.ROWS) * linear_loops.ROWS * k, matrix.dtype)
    linear_loops.pack_rows(kernel_view(matrix), packed)
    return packed


def kernel_view(x: NDArray[Any]) -> NDArray[Any]:
    """The array, contiguous, aligned and read-only; copied only where it has to be.

    Numba compiles a variant for each layout and for each of writable and read-only; this leaves
    one, which :func:`radiopaque.kernels.convolution.warm_up` compiles.
    """
    view = np.require(x, requirements=["C", "A"]).view()
    view.flags.writeable = False
    return view


def check_ring_dtype(name: str, values: NDArray[Any]) -> None:
    """Raises TensorError unless the dtype is that of a ring."""
    if values.dtype not in RING_DTYPES:
        raise TensorError(f"{name} have dtype {values.dtype}; give uint32 or uint64 ring elements")


def check_input_dtype(x: NDArray[Any], dtype: np.dtype[Any]) -> None:
    """Raises TensorError unless the input lies in the ring of the weights."""
    if x.dtype != dtype:
        raise TensorError(
            f"input has dtype {x.dtype}; the weights are {dtype}, convert one of them"
        )
