"""Arrays of small integers as dense bit strings.

Element ``i`` takes bits ``i*width .. (i+1)*width - 1`` of the string, least significant bit first;
bit ``j`` of the string is bit ``j % 8`` of byte ``j // 8``. Bits after the last element are zero,
and :func:`unpack` refuses anything else, so that every array has exactly one encoding.
"""

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import NDArray

from radiopaque.errors import MessageSizeError, MessageValueError

Bytes = NDArray[np.uint8]


def packed_size(count: int, width: int) -> int:
    """Bytes that ``count`` elements of ``width`` bits take."""
    return (count * width + 7) // 8


def pack(values: NDArray[np.unsignedinteger], width: int) -> Bytes:
    """Pack the low ``width`` (1 to 64) bits of every element, in row-major order."""
    flat = values.reshape(-1)
    if width == 8 * flat.dtype.itemsize:
        return np.ascontiguousarray(flat).view(np.uint8)
    out = np.zeros(packed_size(flat.size, width), np.uint8)
    if width == 1:
        return np.packbits(flat.astype(np.uint8) & np.uint8(1), bitorder="little")
    _pack(flat, width, out)
    return out


def unpack(
    data: bytes | memoryview | Bytes, count: int, width: int, dtype: np.dtype[np.unsignedinteger]
) -> NDArray[np.unsignedinteger]:
    """The ``count`` elements of a packed string, shape [count].

    Raises MessageSizeError for a wrong length, MessageValueError for bits set after the end.
    """
    raw = np.frombuffer(data, np.uint8)
    if raw.size != packed_size(count, width):
        raise MessageSizeError(
            f"{count} values of {width} bits take {packed_size(count, width)} bytes, got {raw.size}"
        )
    spare = 8 * raw.size - count * width
    if spare and int(raw[-1]) >> (8 - spare):
        raise MessageValueError("padding bits after the last value are not zero")
    if width == 8 * dtype.itemsize:
        return np.frombuffer(raw, dtype)
    if width == 1:
        return np.unpackbits(raw, count=count, bitorder="little").astype(dtype)
    out = np.empty(count, dtype)
    _unpack(raw, width, out)
    return out


@numba.njit(cache=True, nogil=True)  # type: ignore[misc]
def _pack(values, width, out):  # type: ignore[no-untyped-def]  # pragma: no cover
    mask = np.uint64(0xFFFFFFFFFFFFFFFF) >> np.uint64(64 - width)
    held = np.uint64(0)
    bits = 0
    position = 0
    for i in range(values.size):
        value = np.uint64(values[i]) & mask
        held |= value << np.uint64(bits)
        total = bits + width
        if total >= 64:
            for byte in range(8):
                out[position + byte] = np.uint8(held >> np.uint64(8 * byte))
            position += 8
            total -= 64
            # what did not fit: the top `total` bits of value
            held = value >> np.uint64(width - total) if total else np.uint64(0)
        bits = total
    while bits > 0:
        out[position] = np.uint8(held)
        held >>= np.uint64(8)
        position += 1
        bits -= 8


@numba.njit(cache=True, nogil=True)  # type: ignore[misc]
def _unpack(raw, width, out):  # type: ignore[no-untyped-def]  # pragma: no cover
    mask = np.uint64(0xFFFFFFFFFFFFFFFF) >> np.uint64(64 - width)
    held = np.uint64(0)
    bits = 0
    position = 0
    for i in range(out.size):
        value = held
        have = bits
        while have < width:
            byte = np.uint64(raw[position])
            position += 1
            if have < 64:
                value |= byte << np.uint64(have)
            have += 8
            held = byte
        if have == bits:
            held >>= np.uint64(width)
            bits -= width
        else:
            bits = have - width
            held >>= np.uint64(8 - bits)
        out[i] = value & mask
