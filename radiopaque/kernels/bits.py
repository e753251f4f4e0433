"""Arrays of small integers as dense bit strings.

Element ``i`` takes bits ``i*width .. (i+1)*width - 1`` of the string, least significant bit first;
bit ``j`` of the string is bit ``j % 8`` of byte ``j // 8``. Bits after the last element are zero,
and :func:`unpack` refuses anything else, so that every array has exactly one encoding.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from radiopaque.errors import MessageSizeError, MessageValueError
from radiopaque.kernels.compiled import compiled_loop

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
    # 64 elements fill a whole number of 64-bit words
    whole = flat.size // 64 if flat.dtype == np.uint8 else 0
    if whole:
        elements = np.ascontiguousarray(flat[: 64 * whole]).view(np.uint64)
        _pack_bytes(elements, width, out[: 8 * width * whole].view(np.uint64))
    _pack(flat[64 * whole :], width, out[8 * width * whole :])
    return out


def unpack(
    data: bytes | memoryview | Bytes, count: int, width: int, dtype: np.dtype[np.unsignedinteger]
) -> NDArray[np.unsignedinteger]:
    """The ``count`` elements of a packed string, shape [count].

    Raises MessageSizeError for a wrong length, MessageValueError for bits set after the end.
    """
    raw = check_packed(data, count, width)
    if width == 8 * dtype.itemsize:
        return np.frombuffer(raw, dtype)
    if width == 1:
        return np.unpackbits(raw, count=count, bitorder="little").astype(dtype)
    out = np.empty(count, dtype)
    whole = count // 64 if dtype == np.uint8 else 0
    if whole:
        _unpack_bytes(raw[: 8 * width * whole], width, out[: 64 * whole].view(np.uint64))
    _unpack(raw[8 * width * whole :], width, out[64 * whole :])
    return out


def check_packed(data: bytes | memoryview | Bytes, count: int, width: int) -> Bytes:
    """The bytes of a packed string. Raises what :func:`unpack` raises."""
    raw = np.frombuffer(data, np.uint8)
    if raw.size != packed_size(count, width):
        raise MessageSizeError(
            f"{count} values of {width} bits take {packed_size(count, width)} bytes, got {raw.size}"
        )
    spare = 8 * raw.size - count * width
    if spare and int(raw[-1]) >> (8 - spare):
        raise MessageValueError("padding bits after the last value are not zero")
    return raw


# Eight elements of up to 8 bits are moved together in one word: first to neighbours in pairs, then
# pairs to pairs, then both halves.
@compiled_loop
def _pack_bytes(elements, width, out):  # type: ignore[no-untyped-def]  # pragma: no cover
    low = np.uint64(0x0101010101010101) * np.uint64((1 << width) - 1)
    even, pairs = np.uint64(0x00FF00FF00FF00FF), np.uint64(0x0000FFFF0000FFFF)
    gap, size = np.uint64(8 - width), np.uint64(8 * width)
    half = np.uint64(0x00000000FFFFFFFF)
    held, bits, position = np.uint64(0), np.uint64(0), 0
    for i in range(elements.size):
        x = elements[i] & low
        x = (x & even) | ((x & ~even) >> gap)
        x = (x & pairs) | ((x & ~pairs) >> (gap + gap))
        x = (x & half) | ((x & ~half) >> (np.uint64(32) - (size >> np.uint64(1))))
        held |= x << bits
        bits += size
        if bits >= np.uint64(64):
            out[position] = held
            position += 1
            bits -= np.uint64(64)
            held = x >> (size - bits) if bits else np.uint64(0)


@compiled_loop
def _unpack_bytes(raw, width, elements):  # type: ignore[no-untyped-def]  # pragma: no cover
    gap, step = np.uint64(8 - width), np.uint64(width)
    one = np.uint64(1)
    half = (one << (np.uint64(4) * step)) - one
    pairs = np.uint64(0x0000000100000001) * ((one << (step + step)) - one)
    even = np.uint64(0x0001000100010001) * ((one << step) - one)
    for i in range(elements.size):
        x = np.uint64(0)
        for byte in range(width):
            x |= np.uint64(raw[i * width + byte]) << np.uint64(8 * byte)
        x = (x & half) | ((x & ~half) << (np.uint64(32) - np.uint64(4) * step))
        x = (x & pairs) | ((x & ~pairs) << (gap + gap))
        elements[i] = (x & even) | ((x & ~even) << gap)


@compiled_loop
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


@compiled_loop
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
