"""Keyed streams of uniform words: ChaCha20 under keys derived with HKDF-SHA256.

Every quantity that two parties must know without sending it (masks, shares, table halves) is a
*stream*, named by who and what it is for. One name, one key: no two quantities share a keystream,
whatever their order or length.

Stream key = HKDF-SHA256(key, salt = ``SALT``, info = fields), where each field is preceded by its
length as two big-endian bytes: protocol version, plan digest, context, role, gate (four big-endian
bytes), quantity. The context is the session id, or for a model's weight masks the artefact id.
The keystream starts at counter 0 with an all-zero nonce; each key serves one stream.

Words are little-endian and unsigned, in row-major order of the array. Fewer bits than a word are
taken from its low end.

Source: RFC 8439 (ChaCha20), RFC 5869 (HKDF). Known answers: tests/vectors/streams.json.
"""

from __future__ import annotations

import secrets
from math import prod
from typing import Final, Literal

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import DTypeLike, NDArray

from radiopaque.errors import SessionStateError

PROTOCOL_VERSION: Final = b"radiopaque/3"
SALT: Final = b"radiopaque/1 stream key"
KEY_BYTES: Final = 32
ID_BYTES: Final = 16
MAX_STREAM_BYTES: Final = 1 << 38  # 256 GiB: 2**32 blocks of 64 bytes, the counter's range
_ZEROS: Final = memoryview(bytes(1 << 20))

Role = Literal["data-owner", "model-owner", "artefact", "both"]
"""Whose the key is; "both" is of the CrypTen engine, where the two ranks share one."""


class SecretKey:
    """32 secret bytes that do not print and can be erased.

    Erasing overwrites this copy; Python gives no promise about copies made by libraries.
    """

    __slots__ = ("_material",)

    def __init__(self, material: bytes | bytearray | memoryview) -> None:
        if len(material) != KEY_BYTES:
            raise ValueError(f"a key has {KEY_BYTES} bytes, not {len(material)}")
        self._material: bytearray | None = bytearray(material)

    @classmethod
    def generate(cls) -> SecretKey:
        """A fresh key from the operating system's generator."""
        return cls(secrets.token_bytes(KEY_BYTES))

    def reveal(self) -> bytes:
        """The key's bytes, for the wire or the ledger. Raises SessionStateError once erased."""
        material = self._material
        revealed = b"" if material is None else bytes(material)
        # another thread may erase it meanwhile: what was copied of zeros is no key
        if material is None or self._material is not material:
            raise SessionStateError(
                "this key was erased after its only use; prepare another session"
            )
        return revealed

    def erase(self) -> None:
        """Overwrite the key."""
        material, self._material = self._material, None
        if material is not None:
            material[:] = bytes(KEY_BYTES)

    def __repr__(self) -> str:
        return f"SecretKey({'erased' if self._material is None else '32 bytes'})"

    def __reduce__(self) -> str | tuple[object, ...]:
        raise TypeError("a SecretKey is never serialised")


def new_id() -> bytes:
    """A fresh session or artefact id: 16 random bytes."""
    return secrets.token_bytes(ID_BYTES)


def stream_info(plan_digest: bytes, context: bytes, role: Role, gate: int, quantity: str) -> bytes:
    """The HKDF info field that names one stream."""
    fields = (
        PROTOCOL_VERSION,
        plan_digest,
        context,
        role.encode(),
        gate.to_bytes(4, "big"),
        quantity.encode(),
    )
    return b"".join(len(field).to_bytes(2, "big") + field for field in fields)


class Streams:
    """All streams of one key in one context (a session or an artefact)."""

    __slots__ = ("_context", "_key", "_plan_digest", "_role")

    def __init__(self, key: SecretKey, plan_digest: bytes, context: bytes, role: Role) -> None:
        self._key = key
        self._plan_digest = plan_digest
        self._context = context
        self._role: Role = role

    def words(
        self,
        gate: int,
        quantity: str,
        shape: tuple[int, ...],
        dtype: DTypeLike,
        out: NDArray[np.unsignedinteger] | None = None,
    ) -> NDArray[np.unsignedinteger]:
        """The whole stream as an array of unsigned words of this shape.

        It is written into ``out`` if given. Raises ValueError for an ``out`` that is not contiguous
        or of another shape or dtype, and OverflowError for a stream of more than 256 GiB.
        """
        word = np.dtype(dtype).newbyteorder("<")
        size = prod(shape) * word.itemsize
        if size > MAX_STREAM_BYTES:
            raise OverflowError(f"stream {quantity!r} of gate {gate} would need {size} bytes")
        if out is not None and not (
            out.flags.c_contiguous and out.shape == tuple(shape) and out.dtype == np.dtype(dtype)
        ):
            raise ValueError(f"stream {quantity!r} does not fit the array that it was asked for")
        words = np.empty(shape, word) if out is None else out.view(word)
        if size:
            self._fill(gate, quantity, words.reshape(-1).view(np.uint8).data)
        if not word.isnative:
            words.byteswap(inplace=True)
        return words.view(dtype)

    def _fill(self, gate: int, quantity: str, out: memoryview) -> None:
        info = stream_info(self._plan_digest, self._context, self._role, gate, quantity)
        key = HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=SALT, info=info).derive(
            self._key.reveal()
        )
        encryptor = Cipher(ChaCha20(key, bytes(16)), mode=None).encryptor()
        for start in range(0, len(out), len(_ZEROS)):
            piece = out[start : start + len(_ZEROS)]
            encryptor.update_into(_ZEROS[: len(piece)], piece)

    def __repr__(self) -> str:
        return f"Streams(role={self._role}, context={self._context.hex()})"
