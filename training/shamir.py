"""Shamir's secret sharing of 32-byte secrets.

Source: Shamir, "How to share a secret", CACM 22(11), 1979. The field is the integers modulo the
Mersenne prime 2^521 - 1, so a share has 66 bytes. Python's integers do not run in constant time:
shares are made and joined on machines that nobody else can time to that precision.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence

from training.errors import TrainingError

PRIME = 2**521 - 1
SECRET_BYTES = 32
SHARE_BYTES = 66


class ShareError(TrainingError):
    """Shares are too few, malformed or do not belong together."""


def split(secret: bytes, threshold: int, points: Sequence[int]) -> dict[int, bytes]:
    """Return one share of 66 bytes for each point; any `threshold` of them give the secret back.

    `points` are distinct integers from 1 to 65535. Fewer than `threshold` shares say nothing.

    Raises:
        ShareError: the sizes, the points or the threshold are out of range.
    """
    if len(secret) != SECRET_BYTES:
        raise ShareError(f"the secret has {len(secret)} bytes; {SECRET_BYTES} are expected")
    if len(set(points)) != len(points) or any(not 1 <= point <= 65535 for point in points):
        raise ShareError("share points must be distinct and between 1 and 65535")
    if not 1 <= threshold <= len(points):
        raise ShareError(
            f"the threshold is {threshold} of {len(points)} shares; it must lie between 1 and that"
        )
    coefficients = [int.from_bytes(secret, "big")]
    coefficients += [secrets.randbelow(PRIME) for _ in range(threshold - 1)]
    return {point: _value(coefficients, point).to_bytes(SHARE_BYTES, "big") for point in points}


def _value(coefficients: Sequence[int], point: int) -> int:
    """Horner's scheme, lowest coefficient first."""
    value = 0
    for coefficient in reversed(coefficients):
        value = (value * point + coefficient) % PRIME
    return value


def combine(shares: Mapping[int, bytes], threshold: int) -> bytes:
    """Return the 32-byte secret of the first `threshold` shares, by point.

    Raises:
        ShareError: there are too few, one is malformed, or they are not of one secret (found out
            unless the wrong result happens to be below 2^256, so callers check the secret too).
    """
    if len(shares) < threshold or threshold < 1:
        raise ShareError(f"{len(shares)} shares cannot open a secret that needs {threshold}")
    chosen = sorted(shares)[:threshold]
    values: list[int] = []
    for point in chosen:
        value = int.from_bytes(shares[point], "big")
        if not 1 <= point <= 65535 or len(shares[point]) != SHARE_BYTES or value >= PRIME:
            raise ShareError(f"the share of point {point} is malformed")
        values.append(value)
    secret = 0
    for point, value in zip(chosen, values, strict=True):
        above, below = 1, 1
        for other in chosen:
            if other != point:
                above = above * other % PRIME
                below = below * (other - point) % PRIME
        secret = (secret + value * above * pow(below, -1, PRIME)) % PRIME
    if secret.bit_length() > 8 * SECRET_BYTES:
        raise ShareError("the shares do not belong to one secret")
    return secret.to_bytes(SECRET_BYTES, "big")
