"""Keyed streams and secret keys: published known answers, names, sizes, and what never shows."""

from __future__ import annotations

import copy
import json
import pickle
import tracemalloc

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from radiopaque import prg
from radiopaque.errors import SessionStateError
from radiopaque.prg import SecretKey, Streams, new_id, stream_info
from tests.reference import streams as reference

KEY = bytes(range(32))
DIGEST = bytes(range(32, 64))
CONTEXT = bytes(range(16))


def streams_of(key: bytes = KEY, digest: bytes = DIGEST, context: bytes = CONTEXT) -> Streams:
    """A data owner's streams."""
    return Streams(SecretKey(key), digest, context, "data-owner")


def test_chacha20_of_rfc_8439() -> None:
    """Section 2.4.2: counter 1, then a text; the counter is the nonce's first four bytes here."""
    nonce = (1).to_bytes(4, "little") + bytes.fromhex("000000000000004a00000000")
    text = (
        b"Ladies and Gentlemen of the class of '99: If I could offer you only one tip for the "
        b"future, sunscreen would be it."
    )
    sealed = Cipher(ChaCha20(KEY, nonce), mode=None).encryptor().update(text)
    assert sealed.hex() == (
        "6e2e359a2568f98041ba0728dd0d6981e97e7aec1d4360c20a27afccfd9fae0b"
        "f91b65c5524733ab8f593dabcd62b3571639d624e65152ab8f530c359f0861d8"
        "07ca0dbf500d6a6156a38e088a22b65e52bc514d16ccf806818ce91ab7793736"
        "5af90bbf74a35be6b40b8eedf2785e42874d"
    )


def test_hkdf_of_rfc_5869() -> None:
    """Appendix A, test case 2: longer inputs and outputs."""
    derived = HKDF(
        algorithm=SHA256(),
        length=82,
        salt=bytes(range(0x60, 0xB0)),
        info=bytes(range(0xB0, 0x100)),
    ).derive(bytes(range(0x50)))
    assert derived.hex() == (
        "b11e398dc80327a1c8e7f78c596a49344f012eda2d4efad8a050cc4c19afa97c"
        "59045a99cac7827271cb41c65e590e09da3275600c2f09b8367793a9aca3db71"
        "cc30c58179ec3e87c14c01d5c1f3434f1d87"
    )


def test_info_field_is_length_prefixed() -> None:
    info = stream_info(b"D" * 32, b"S" * 16, "data-owner", 258, "mask")
    assert info == (
        b"\x00\x0cradiopaque/3"
        + b"\x00\x20"
        + b"D" * 32
        + b"\x00\x10"
        + b"S" * 16
        + b"\x00\x0adata-owner"
        + b"\x00\x04\x00\x00\x01\x02"
        + b"\x00\x04mask"
    )


@settings(max_examples=100, deadline=None)
@given(
    st.binary(min_size=32, max_size=32),
    st.binary(min_size=32, max_size=32),
    st.binary(min_size=16, max_size=16),
    st.sampled_from(("data-owner", "model-owner", "artefact")),
    st.integers(0, (1 << 32) - 1),
    st.sampled_from(("mask", "opening", "level1", "weights")),
    st.sampled_from((8, 16, 32, 64)),
    st.lists(st.integers(1, 5), max_size=3),
)
def test_streams_of_both_implementations(
    key: bytes,
    digest: bytes,
    context: bytes,
    role: prg.Role,
    gate: int,
    quantity: str,
    bits: int,
    shape: list[int],
) -> None:
    own = Streams(SecretKey(key), digest, context, role)
    words = own.words(gate, quantity, tuple(shape), np.dtype(f"uint{bits}"))
    assert words.shape == tuple(shape)
    assert words.dtype == np.dtype(f"uint{bits}")
    other = reference.Streams(key, digest, context, role)
    assert words.reshape(-1).tolist() == other.words(gate, quantity, words.size, bits)


def test_shape_does_not_change_the_words_and_calls_repeat() -> None:
    streams = streams_of()
    flat = streams.words(7, "mask", (120,), np.uint32)
    assert (streams.words(7, "mask", (2, 3, 4, 5), np.uint32).reshape(-1) == flat).all()
    assert (streams.words(7, "mask", (60,), np.uint64).view(np.uint32) == flat).all()
    assert (streams.words(7, "mask", (50,), np.uint32) == flat[:50]).all()


def test_every_part_of_the_name_changes_the_stream() -> None:
    """No prefix of one stream is another's; a field that spills into the next would show here."""
    other = bytes([KEY[0] ^ 1]) + KEY[1:]
    prefixes = [
        streams.words(gate, quantity, (4,), np.uint64).tobytes()
        for streams in (
            streams_of(),
            streams_of(key=other),
            streams_of(digest=bytes(32)),
            streams_of(context=bytes(16)),
            streams_of(digest=DIGEST + CONTEXT[:1], context=CONTEXT[1:]),
            Streams(SecretKey(KEY), DIGEST, CONTEXT, "model-owner"),
            Streams(SecretKey(KEY), DIGEST, CONTEXT, "artefact"),
        )
        for gate in (0, 1, 256)
        for quantity in ("mask", "opening", "product", "products")
    ]
    assert len(set(prefixes)) == len(prefixes) == 7 * 3 * 4


def test_pieces_of_a_long_stream_join() -> None:
    """The cipher is called once a mebibyte; the stream must not show it."""
    size = (2 << 20) + 123
    whole = streams_of().words(1, "level1", (size,), np.uint8)
    reader = reference.Streams(KEY, DIGEST, CONTEXT, "data-owner")
    for start in (0, (1 << 20) - 40, (2 << 20) - 40, size - 80):
        expected = reader.words(1, "level1", 80, 8, start)
        assert whole[start : start + 80].tolist() == expected


def test_empty_stream() -> None:
    assert streams_of().words(1, "mask", (0, 3), np.uint32).shape == (0, 3)


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        (((1 << 38) + 1,), np.uint8),
        ((1 << 36, 1), np.uint64),
        ((1 << 20, 1 << 20, 1 << 20, 1 << 20), np.uint32),
    ],
)
def test_a_stream_beyond_the_counter_is_refused_before_memory_is_taken(
    shape: tuple[int, ...], dtype: type[np.unsignedinteger]
) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(OverflowError, match="stream 'mask' of gate 3"):
            streams_of().words(3, "mask", shape, dtype)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_the_limit_is_the_range_of_the_block_counter() -> None:
    assert prg.MAX_STREAM_BYTES == 2**32 * 64 == 256 << 30


@pytest.mark.parametrize("size", [0, 16, 31, 33, 64])
def test_key_sizes(size: int) -> None:
    with pytest.raises(ValueError, match=f"32 bytes, not {size}"):
        SecretKey(bytes(size))


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_key_from_any_buffer(kind: type) -> None:
    assert SecretKey(kind(KEY)).reveal() == KEY


def test_key_is_a_copy_of_its_own() -> None:
    buffer = bytearray(KEY)
    key = SecretKey(buffer)
    buffer[:] = bytes(32)
    assert key.reveal() == KEY


def test_a_key_never_shows() -> None:
    key = SecretKey(b"\xabsecret-secret-secret-secret-se\xcd")
    streams = Streams(key, DIGEST, CONTEXT, "data-owner")
    for shown in (repr(key), str(key), f"{key}", repr([key]), repr(streams), str(streams)):
        assert "secret-secret" not in shown
        assert key.reveal().hex() not in shown
        assert str(list(key.reveal()))[1:20] not in shown
    assert repr(key) == "SecretKey(32 bytes)"
    assert not hasattr(key, "__dict__")


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_key_is_never_serialised(protocol: int) -> None:
    key = SecretKey(KEY)
    with pytest.raises(TypeError, match="never serialised"):
        pickle.dumps(key, protocol)
    with pytest.raises(TypeError):
        pickle.dumps(Streams(key, DIGEST, CONTEXT, "data-owner"), protocol)


def test_a_key_is_neither_copied_nor_dumped() -> None:
    key = SecretKey(KEY)
    for action in (copy.copy, copy.deepcopy, json.dumps):
        with pytest.raises(TypeError):
            action(key)


def test_erasing_overwrites_and_ends_the_key() -> None:
    key = SecretKey(KEY)
    streams = Streams(key, DIGEST, CONTEXT, "data-owner")
    material = key._material
    assert material is not None
    assert bytes(material) == KEY
    key.erase()
    assert bytes(material) == bytes(32)
    assert repr(key) == "SecretKey(erased)"
    with pytest.raises(SessionStateError, match="erased"):
        key.reveal()
    with pytest.raises(SessionStateError, match="erased"):
        streams.words(1, "mask", (4,), np.uint32)
    key.erase()


def test_fresh_keys_and_ids_differ() -> None:
    assert len({SecretKey.generate().reveal() for _ in range(100)}) == 100
    assert len({new_id() for _ in range(100)}) == 100
    assert len(new_id()) == 16


def test_a_stream_goes_into_the_array_that_is_given() -> None:
    whole = streams_of().words(1, "level1", (3, 40), np.uint64)
    given = np.zeros((3, 40), np.uint64)
    assert streams_of().words(1, "level1", (3, 40), np.uint64, out=given).base is given
    assert np.array_equal(given, whole)


@pytest.mark.parametrize(
    "given",
    [
        np.zeros((3, 80), np.uint64)[:, ::2],
        np.zeros((40, 3), np.uint64),
        np.zeros((3, 40), np.uint32),
    ],
    ids=["strided", "other shape", "other dtype"],
)
def test_a_stream_does_not_go_elsewhere(given: NDArray[np.unsignedinteger]) -> None:
    with pytest.raises(ValueError, match="does not fit"):
        streams_of().words(1, "level1", (3, 40), np.uint64, out=given)
    assert not given.any()
