"""The ring Z_(2**k), k = 32 or 64, and fixed-point numbers in it.

Elements are numpy unsigned words that wrap. A real ``v`` is stored as ``round(v * scale)``; the
scale of each tensor is chosen by the compiler (:mod:`radiopaque.graph.scales`).
"""

from __future__ import annotations

import sys
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from radiopaque.errors import TensorError

if sys.byteorder != "little":
    raise ImportError("radiopaque keeps numbers in the order in which they are sent: little-endian")

RingArray = NDArray[np.unsignedinteger]


def ring_dtype(ring_bits: int) -> np.dtype[np.unsignedinteger]:
    """uint32 or uint64."""
    if ring_bits == 32:
        return np.dtype(np.uint32)
    if ring_bits == 64:
        return np.dtype(np.uint64)
    raise ValueError(f"the ring has 32 or 64 bits, not {ring_bits}")


def signed(values: RingArray, bits: int) -> NDArray[np.int64]:
    """Low ``bits`` bits of ring elements read as two's complement, int64, same shape."""
    shift = np.int64(64 - bits)
    return (values.astype(np.uint64).view(np.int64) << shift) >> shift


def encode(values: NDArray[np.floating], scale: Fraction, ring_bits: int, limit: int) -> RingArray:
    """Reals to ring elements, rounded to nearest, same shape.

    Raises TensorError for NaN, infinity, or a value whose stored integer exceeds ``limit``.
    """
    reals = np.asarray(values, np.float64)
    if not np.isfinite(reals).all():
        raise TensorError("the input holds NaN or infinity; check the preprocessing of the image")
    with np.errstate(over="ignore"):  # infinity is over every limit
        stored = np.rint(reals * float(scale))
    largest = float(np.abs(stored).max(initial=0.0))
    if largest > limit:
        raise TensorError(
            f"the input reaches {largest / float(scale):.4g} in absolute value, more than the "
            f"{limit / float(scale):.4g} that this model was compiled for; check the preprocessing"
        )
    return stored.astype(np.int64).astype(np.uint64).astype(ring_dtype(ring_bits))


def decode(stored: NDArray[np.int64], scale: Fraction) -> NDArray[np.float64]:
    """Stored integers to reals, float64, same shape."""
    return stored.astype(np.float64) / float(scale)
