"""ChaCha20 (RFC 8439, section 2.3) and HKDF-SHA256 (RFC 5869), straight from the documents."""

from __future__ import annotations

import hashlib
import hmac
import struct

BLOCK = 64
_CONSTANTS = struct.unpack("<4I", b"expand 32-byte k")
_QUARTERS = (
    (0, 4, 8, 12),
    (1, 5, 9, 13),
    (2, 6, 10, 14),
    (3, 7, 11, 15),
    (0, 5, 10, 15),
    (1, 6, 11, 12),
    (2, 7, 8, 13),
    (3, 4, 9, 14),
)


def _rotate(value: int, bits: int) -> int:
    return ((value << bits) | (value >> (32 - bits))) & 0xFFFFFFFF


def _quarter_round(x: list[int], a: int, b: int, c: int, d: int) -> None:
    x[a] = (x[a] + x[b]) & 0xFFFFFFFF
    x[d] = _rotate(x[d] ^ x[a], 16)
    x[c] = (x[c] + x[d]) & 0xFFFFFFFF
    x[b] = _rotate(x[b] ^ x[c], 12)
    x[a] = (x[a] + x[b]) & 0xFFFFFFFF
    x[d] = _rotate(x[d] ^ x[a], 8)
    x[c] = (x[c] + x[d]) & 0xFFFFFFFF
    x[b] = _rotate(x[b] ^ x[c], 7)


def chacha20_block(key: bytes, counter: int, nonce: bytes) -> bytes:
    """The 64 bytes of one block."""
    start = [*_CONSTANTS, *struct.unpack("<8I", key), counter, *struct.unpack("<3I", nonce)]
    x = list(start)
    for _ in range(10):
        for a, b, c, d in _QUARTERS:
            _quarter_round(x, a, b, c, d)
    return struct.pack("<16I", *((u + v) & 0xFFFFFFFF for u, v in zip(x, start, strict=True)))


def keystream(key: bytes, start: int, length: int) -> bytes:
    """``length`` bytes from byte ``start`` of the keystream with an all-zero nonce."""
    first, last = start // BLOCK, -(-(start + length) // BLOCK)
    blocks = b"".join(chacha20_block(key, counter, bytes(12)) for counter in range(first, last))
    return blocks[start - first * BLOCK :][:length]


def hkdf_sha256(material: bytes, salt: bytes, info: bytes, length: int) -> bytes:
    """Extract, then expand."""
    pseudorandom = hmac.new(salt or bytes(32), material, hashlib.sha256).digest()
    output, piece, number = b"", b"", 1
    while len(output) < length:
        piece = hmac.new(pseudorandom, piece + info + bytes([number]), hashlib.sha256).digest()
        output += piece
        number += 1
    return output[:length]
