"""Random numbers that privacy rests on: drawn from ChaCha20 under a key of the operating system.

Whoever can predict the noise can subtract it, and whoever knows who was drawn into a batch gains
what sampling was to hide. A seeded Mersenne Twister or Philox offers neither; so both come from
here.

Floating point: what a naive generator adds has gaps in its low bits that depend on the value it is
added to, and betray it (Mironov, "On significance of the least significant bits for differential
privacy", CCS 2012). Two things are done about it. A normal value is the sum of four Box-Muller
values over two, as Holohan and Braghin advise ("Secure Random Sampling in Differential Privacy",
ESORICS 2021), so that it cannot be traced back to the uniform values. And the caller gets integers:
noise is rounded to a grid (`rounded_normal`) on which the exact sum of the clipped gradients lies
already. A sum of grid points plus rounded noise is the rounded value of sum plus noise, so that all
of what the attack reads, the bits below the grid, is gone. What remains is that the normal values
are 53 bits wide instead of exact, with a tail that ends at 8.57 times the deviation of each
of the four (a chance of about 1e-17 a value, far below any delta used).
"""

from __future__ import annotations

import math
import secrets

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from numpy.typing import NDArray

_KEY_BYTES = 32
_NONCE = bytes(16)
# A new key long before the cipher's 32-bit block counter could end.
_BYTES_PER_KEY = 1 << 34
_BITS = 53
_SUMMANDS = 4
# Bounds the memory of one pass: four arrays of so many float64.
_CHUNK = 1 << 20


class SecureSource:
    """A stream of uniform, normal and Bernoulli values. Its key is never shown.

    `key`, 32 bytes, makes the stream repeatable: for tests only.
    """

    def __init__(self, key: bytes | None = None) -> None:
        if key is not None and len(key) != _KEY_BYTES:
            raise ValueError(f"the key has {len(key)} bytes; it needs {_KEY_BYTES}")
        self._start(secrets.token_bytes(_KEY_BYTES) if key is None else key)

    def __repr__(self) -> str:
        return "SecureSource()"

    def _start(self, key: bytes) -> None:
        self._stream = Cipher(algorithms.ChaCha20(key, _NONCE), mode=None).encryptor()
        self._left = _BYTES_PER_KEY

    def bytes(self, count: int) -> bytes:
        """Return `count` bytes of the stream."""
        if count > self._left:
            self._start(self._stream.update(bytes(_KEY_BYTES)))
        self._left -= count
        return self._stream.update(bytes(count))

    def uniform(self, count: int) -> NDArray[np.float64]:
        """Return float64 [count], multiples of 2**-53 that lie above 0 and at most at 1."""
        words = np.frombuffer(self.bytes(8 * count), dtype="<u8")
        steps = (words >> np.uint64(64 - _BITS)) + np.uint64(1)
        values: NDArray[np.float64] = steps.astype(np.float64) * 2.0**-_BITS
        return values

    def normal(self, count: int) -> NDArray[np.float64]:
        """Return float64 [count], normal with mean 0 and deviation 1."""
        values = np.empty(count, dtype=np.float64)
        for start in range(0, count, _CHUNK):
            size = min(_CHUNK, count - start)
            total = np.zeros(size)
            for _ in range(_SUMMANDS // 2):
                radius = np.sqrt(-2.0 * np.log(self.uniform(size)))
                angle = 2.0 * math.pi * self.uniform(size)
                total += radius * np.cos(angle)
                total += radius * np.sin(angle)
            values[start : start + size] = total / math.sqrt(_SUMMANDS)
        return values

    def rounded_normal(self, count: int, deviation: float) -> NDArray[np.int64]:
        """Return int64 [count]: normal values of that deviation, rounded to whole numbers.

        Raises:
            ValueError: the deviation is negative, or so large that int64 could not hold a value.
        """
        if not 0.0 <= deviation < 2.0**58:
            raise ValueError(f"a deviation of {deviation} is not between 0 and 2**58")
        if deviation == 0.0:
            return np.zeros(count, dtype=np.int64)
        return np.rint(self.normal(count) * deviation).astype(np.int64)

    def chosen(self, count: int, rate: float) -> NDArray[np.int64]:
        """Return the indices of `count` that a coin with chance `rate`, each its own, selects."""
        return np.flatnonzero(self.uniform(count) <= rate)
