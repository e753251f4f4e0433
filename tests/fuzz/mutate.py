"""Damage to bytes: what a mutational fuzzer does to a seed, from a seeded generator."""

from __future__ import annotations

import random
from collections.abc import Sequence

MOST_BYTES = 1 << 16
"""Longest input that is made; decoders refuse by length, which no mutation is needed for."""

_INTERESTING = (
    *(
        value.to_bytes(size, order)  # type: ignore[arg-type]
        for size in (1, 2, 4, 8)
        for value in (0, 1, (1 << 8 * size - 1) - 1, 1 << 8 * size - 1, (1 << 8 * size) - 1)
        for order in ("little", "big")
    ),
    b"\x80" * 9 + b"\x01",
    b"\xff" * 4 + b"\x0f",
    b"\xff" * 9 + b"\x01",
)
"""Borders of integers of every width, and the longest varints."""


def mutated(rng: random.Random, seeds: Sequence[bytes]) -> bytes:
    """One seed with one to eight changes; now and then with the end of another seed."""
    data = bytearray(rng.choice(seeds))
    if rng.random() < 0.1:
        other = rng.choice(seeds)
        data[_place(rng, data) :] = other[_place(rng, other) :]
    for _ in range(1 << rng.randrange(4)):
        _change(rng, data)
    return bytes(data[:MOST_BYTES])


def _place(rng: random.Random, data: bytes | bytearray) -> int:
    """A position, more often near the beginning, where headers are."""
    size = len(data)
    if rng.random() < 0.3:
        size = min(size, 64)
    return int(rng.random() * (size + 1))


def _change(rng: random.Random, data: bytearray) -> None:
    kind = rng.randrange(8)
    at = _place(rng, data)
    length = 1 + int(rng.random() ** 3 * 32)
    if kind == 0 and at < len(data):
        data[at] ^= 1 << rng.randrange(8)
    elif kind == 1 and at < len(data):
        data[at] = rng.randrange(256)
    elif kind == 2 and at < len(data):
        data[at] = (data[at] + rng.choice((-1, 1))) & 0xFF
    elif kind == 3:
        value = rng.choice(_INTERESTING)
        data[at : at + len(value)] = value
    elif kind == 4:
        del data[at : at + length]
    elif kind == 5:
        data[at:at] = rng.randbytes(length)
    elif kind == 6:
        source = _place(rng, data)
        data[at:at] = data[source : source + length]
    elif rng.random() < 0.2:
        del data[at:]
    else:
        source = _place(rng, data)
        piece = bytes(data[source : source + length])
        data[at : at + len(piece)] = piece
