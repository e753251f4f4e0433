"""Bit packing: every width against plain integers, one encoding only, any view of an array."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from radiopaque.errors import MessageSizeError, MessageValueError
from radiopaque.kernels.bits import pack, packed_size, unpack
from tests.reference import encoding

Word = np.dtype[np.unsignedinteger]
WORDS: dict[int, Word] = {bits: np.dtype(f"uint{bits}") for bits in (8, 16, 32, 64)}


@st.composite
def packings(draw: st.DrawFn) -> tuple[int, int, list[int]]:
    """(bits of a word, width, values); values may have more bits than the width."""
    bits = draw(st.sampled_from(tuple(WORDS)))
    width = draw(st.integers(1, bits))
    return bits, width, draw(st.lists(st.integers(0, (1 << bits) - 1), max_size=40))


@settings(deadline=None)
@given(packings())
def test_pack_and_unpack(case: tuple[int, int, list[int]]) -> None:
    bits, width, values = case
    data = pack(np.array(values, WORDS[bits]), width)
    assert data.dtype == np.uint8
    assert data.size == packed_size(len(values), width)
    assert data.tobytes() == encoding.pack(values, width)
    low = [v % (1 << width) for v in values]
    for form in (data.tobytes(), memoryview(data.tobytes()), data):
        back = unpack(form, len(values), width, WORDS[bits])
        assert back.dtype == WORDS[bits]
        assert back.tolist() == low


@settings(deadline=None)
@given(st.integers(1, 64), st.integers(1, 40), st.data())
def test_one_encoding_only(width: int, count: int, data: st.DataObject) -> None:
    """Any bytes of the right length are either refused or what pack writes for their values."""
    size = packed_size(count, width)
    raw = data.draw(st.binary(min_size=size, max_size=size))
    spare = 8 * size - count * width
    if raw[-1] >> (8 - spare) if spare else 0:
        with pytest.raises(MessageValueError, match="padding"):
            unpack(raw, count, width, WORDS[64])
    else:
        values = unpack(raw, count, width, WORDS[64])
        assert values.tolist() == encoding.unpack(raw, count, width)
        assert pack(values, width).tobytes() == raw


@pytest.mark.parametrize("width", range(1, 65))
def test_every_width_at_its_edges(width: int) -> None:
    top = (1 << width) - 1
    values = [top, 0, top, 1, top - 1, 1 << (width - 1), 0, top, top]
    data = pack(np.array(values, np.uint64), width)
    assert data.tobytes() == encoding.pack(values, width)
    assert unpack(data, len(values), width, WORDS[64]).tolist() == values


@pytest.mark.parametrize("width", [1, 5, 8, 19, 32, 64])
def test_wrong_lengths(width: int) -> None:
    data = pack(np.zeros(9, np.uint64), width).tobytes()
    for wrong in (data[:-1], data + b"\x00", b"", data * 2):
        with pytest.raises(MessageSizeError, match=rf"take {len(data)} bytes, got {len(wrong)}"):
            unpack(wrong, 9, width, WORDS[64])


@pytest.mark.parametrize("width", [1, 5, 19])
def test_every_padding_bit_is_looked_at(width: int) -> None:
    count = 3
    data = bytearray(pack(np.zeros(count, np.uint32), width).tobytes())
    spare = 8 * len(data) - count * width
    assert spare > 0
    for bit in range(8 - spare, 8):
        bad = bytes([*data[:-1], data[-1] | 1 << bit])
        with pytest.raises(MessageValueError, match="padding"):
            unpack(bad, count, width, WORDS[32])
    data[-1] |= 1 << (7 - spare)  # the last bit of the last value is no padding
    assert unpack(bytes(data), count, width, WORDS[32]).tolist() == [0, 0, 1 << (width - 1)]


def test_rows_and_views_are_packed_in_row_major_order() -> None:
    values = np.arange(24, dtype=np.uint32).reshape(4, 6)
    for view in (values, values.T, values[:, ::2], values[::-1], values.astype(np.uint64)):
        for width in (1, 5, 32):
            expected = encoding.pack([int(v) for v in view.reshape(-1)], width)
            assert pack(view, width).tobytes() == expected


def test_unpack_from_any_offset() -> None:
    """Received payloads start anywhere in a message."""
    values = np.arange(100, 120, dtype=np.uint64)
    for width in (8, 19, 32, 64):
        data = pack(values, width).tobytes()
        for offset in range(1, 9):
            view = memoryview(bytes(offset) + data)[offset:]
            assert unpack(view, 20, width, WORDS[64]).tolist() == values.tolist()


def test_packing_leaves_its_input_alone() -> None:
    values = np.arange(50, dtype=np.uint32)
    before = values.copy()
    for width in (1, 7, 32):
        pack(values, width)
    assert (values == before).all()


def test_sizes() -> None:
    for count in range(20):
        for width in range(1, 65):
            assert packed_size(count, width) == len(encoding.pack([0] * count, width))
