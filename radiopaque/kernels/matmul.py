"""Exact matrix products over Z_2^32 and Z_2^64 with fixed secret weights."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from radiopaque.errors import TensorError
from radiopaque.graph.bands import Rows
from radiopaque.kernels import linear_loops, tiles
from radiopaque.kernels.workers import ALONE, Workers
from radiopaque.ring import RingArray

RING_DTYPES = (np.dtype(np.uint32), np.dtype(np.uint64))


class PackedMatrix:
    """The map x [..., k] -> x * weights [..., n] with secret weights [k, n], uint32 or uint64.

    The weights are copied once, in the order in which the kernel reads them; calling the object
    takes no lock and changes nothing, so threads may share it. ``limbs`` and ``workers`` are those
    of :class:`radiopaque.kernels.convolution.PackedConvolution`. Raises TensorError for other
    dtypes, and for weights that are not a matrix with at least one row and column.
    """

    __slots__ = ("_dtype", "_limbs", "_shape", "_weights", "_workers")

    def __init__(
        self, weights: RingArray, limbs: bool | None = None, workers: Workers = ALONE
    ) -> None:
        check_matrix(weights)
        self._shape = (weights.shape[0], weights.shape[1])
        self._dtype = weights.dtype
        self._limbs = choose_limbs(weights, limbs)
        self._workers = workers
        matrix = pair_up(weights, 0) if self._limbs else weights
        columns = tiles.PANEL_BYTES // weights.itemsize
        panels = -(-self._shape[1] // columns)
        self._weights = np.empty(panels * columns * matrix.shape[0], matrix.dtype)
        linear_loops.pack_columns(kernel_view(matrix), self._weights)

    def __repr__(self) -> str:
        return f"<PackedMatrix {list(self._shape)} {self._dtype}>"

    def __call__(self, x: RingArray, rows: Rows | None = None) -> RingArray:
        """x [..., k] to [..., n], same dtype. Raises TensorError for another dtype or k.

        ``rows`` says which rows of a larger input x is; the product is the same for all.
        """
        k, n = self._shape
        check_input_dtype(x, self._dtype)
        if x.ndim < 1 or x.shape[-1] != k:
            raise TensorError(f"input is {list(x.shape)}; the weights take [..., {k}]")
        m = prod(x.shape[:-1])
        out = np.empty((m, n), x.dtype)
        matrix = x.reshape(m, k)
        left = packed_rows(_split(matrix) if self._limbs else matrix, 1 if m == 1 else None)
        steps, limbs = (-(-k // 2), 2) if self._limbs else (k, 1)
        columns = tiles.PANEL_BYTES // x.itemsize

        def part(begin: int, end: int) -> None:
            right = self._weights[begin * columns * steps : end * columns * steps]
            linear_loops.multiply(
                left, kernel_view(right), steps, limbs, out[:, begin * columns : end * columns]
            )

        if m == 1:
            self._workers.share(-(-n // columns), k * n, part)
        else:
            part(0, -(-n // columns))
        return out.reshape(*x.shape[:-1], n)


def choose_limbs(weights: RingArray, wanted: bool | None) -> bool:
    """Whether a product with these weights is by limbs; see :mod:`radiopaque.kernels.tiles`.

    Where ``wanted`` is None, wherever it is possible and faster: every weight, in two's complement,
    fits 16 bits, and the machine is one on which limbs pay. Raises TensorError where it is wanted
    and not possible.
    """
    if wanted is False or (wanted is None and not tiles.LIMBS_PAY):
        return False
    possible = tiles.HAS_LIMBS and weights.dtype == np.uint32
    if possible and weights.size:
        signed = weights.astype(np.int32)
        possible = bool(signed.min() >= -(1 << 15) and signed.max() < 1 << 15)
    if wanted and not possible:
        raise TensorError(
            "limbs need uint32 weights that fit 16 bits and a machine with 16-bit vector "
            "products; leave the choice to the kernel"
        )
    return possible


def pair_up(weights: RingArray, axis: int) -> NDArray[np.int32]:
    """Short weights, two consecutive ones of an axis in each int32, the first in its low half.

    An odd one is paired with zero.
    """
    moved = np.moveaxis(weights, axis, 0)
    pairs = moved[::2] & np.uint32(0xFFFF)
    pairs[: len(moved) // 2] |= moved[1::2] << np.uint32(16)
    return np.ascontiguousarray(np.moveaxis(pairs, 0, axis)).view(np.int32)


def _split(x: RingArray) -> RingArray:
    """[m, k] to the limbs of pairs, [m, 2 * ceil(k / 2)]: in each block high ones, then low."""
    m, k = x.shape
    even = np.zeros((m, k + k % 2), np.uint32)
    even[:, :k] = x
    low = (even[:, ::2] & np.uint32(0xFFFF)) | (even[:, 1::2] << np.uint32(16))
    even += np.uint32(0x8000)
    high = (even[:, ::2] >> np.uint32(16)) | (even[:, 1::2] & np.uint32(0xFFFF0000))
    depth = linear_loops.DEPTH // 2
    parts = []
    for start in range(0, low.shape[1], depth):
        parts += [limb[:, start : start + depth] for limb in (high, low)]
    return np.concatenate(parts, axis=1)


def packed_rows(
    matrix: NDArray[Any], rows: int | None = None, depth: int = linear_loops.DEPTH
) -> NDArray[Any]:
    """A matrix [m, k] as the flat left factor that the kernels read, by default in full tiles."""
    m, k = matrix.shape
    rows = rows or tiles.ROWS
    packed = np.empty(-(-m // rows) * rows * k, matrix.dtype)
    linear_loops.pack_rows(kernel_view(matrix), rows, depth, packed)
    return packed


def kernel_view(x: NDArray[Any]) -> NDArray[Any]:
    """The array, contiguous, aligned and read-only; copied only where it has to be.

    Numba compiles a variant for each layout and for each of writable and read-only; this leaves
    one, which :func:`radiopaque.kernels.convolution.warm_up` compiles.
    """
    view = np.require(x, requirements=["C", "A"]).view()
    view.flags.writeable = False
    return view


def check_matrix(weights: RingArray) -> None:
    """Raises TensorError where :class:`PackedMatrix` does."""
    check_ring_dtype("weights", weights)
    if weights.ndim != 2 or 0 in weights.shape:
        raise TensorError(
            f"weights are {list(weights.shape)}; a matrix product takes [k, n], both positive"
        )


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
