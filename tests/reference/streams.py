"""The named streams: one HKDF-derived ChaCha20 key for each quantity of each gate."""

from __future__ import annotations

from dataclasses import dataclass

from tests.reference.ciphers import hkdf_sha256, keystream


def stream_key(
    key: bytes, plan_digest: bytes, context: bytes, role: str, gate: int, quantity: str
) -> bytes:
    """The ChaCha20 key of one stream."""
    info = b""
    for field in (
        b"radiopaque/3",
        plan_digest,
        context,
        role.encode("ascii"),
        gate.to_bytes(4, "big"),
        quantity.encode("ascii"),
    ):
        info += len(field).to_bytes(2, "big") + field
    return hkdf_sha256(key, b"radiopaque/1 stream key", info, 32)


@dataclass(frozen=True)
class Streams:
    """All streams of one key in one context."""

    key: bytes
    plan_digest: bytes
    context: bytes
    role: str

    def words(
        self, gate: int, quantity: str, count: int, word_bits: int, start: int = 0
    ) -> list[int]:
        """``count`` little-endian words from word ``start`` on."""
        size = word_bits // 8
        key = stream_key(self.key, self.plan_digest, self.context, self.role, gate, quantity)
        data = keystream(key, start * size, count * size)
        return [int.from_bytes(data[i : i + size], "little") for i in range(0, len(data), size)]
