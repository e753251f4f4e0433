"""Secret sharing: which shares open a secret, and which do not."""

from __future__ import annotations

import secrets
from itertools import combinations

import pytest

from training.shamir import PRIME, SHARE_BYTES, ShareError, combine, split

SECRET = bytes(range(200, 232))


@pytest.mark.parametrize(("count", "threshold"), [(1, 1), (3, 2), (5, 3), (5, 5)])
def test_exactly_the_threshold_opens_the_secret(count: int, threshold: int) -> None:
    shares = split(SECRET, threshold, range(1, count + 1))
    assert {len(share) for share in shares.values()} == {SHARE_BYTES}
    for chosen in combinations(shares, threshold):
        assert combine({point: shares[point] for point in chosen}, threshold) == SECRET
    with pytest.raises(ShareError, match="cannot open"):
        combine({point: shares[point] for point in list(shares)[: threshold - 1]}, threshold)


def test_a_known_polynomial(monkeypatch: pytest.MonkeyPatch) -> None:
    coefficients = iter([5, 7])
    monkeypatch.setattr(secrets, "randbelow", lambda limit: next(coefficients))
    shares = split((11).to_bytes(32, "big"), 3, [1, 2, 65535])
    values = [int.from_bytes(share, "big") for share in shares.values()]
    assert values == [23, 11 + 10 + 28, 11 + 5 * 65535 + 7 * 65535**2]


def test_fewer_shares_fit_every_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two points of a parabola are consistent with any constant term: they say nothing."""
    shares = split(SECRET, 3, [1, 2, 3])
    ours = {1: shares[1], 2: shares[2]}
    y1, y2 = (int.from_bytes(share, "big") for share in ours.values())
    for wanted in (0, 1, 2**255):
        # The parabola through (0, wanted), (1, y1), (2, y2), continued to 3.
        third = (wanted - 3 * y1 + 3 * y2) % PRIME
        forged = {**ours, 3: third.to_bytes(SHARE_BYTES, "big")}
        assert int.from_bytes(combine(forged, 3), "big") == wanted


def test_shares_of_two_secrets_do_not_join() -> None:
    first, second = split(SECRET, 2, [1, 2]), split(bytes(32), 2, [1, 2])
    with pytest.raises(ShareError, match="do not belong"):
        combine({1: first[1], 2: second[2]}, 2)


@pytest.mark.parametrize(
    ("secret", "threshold", "points"),
    [
        (bytes(31), 1, [1]),
        (bytes(33), 1, [1]),
        (SECRET, 0, [1]),
        (SECRET, 2, [1]),
        (SECRET, 1, [0, 1]),
        (SECRET, 1, [1, 1]),
        (SECRET, 1, [65536]),
    ],
)
def test_what_cannot_be_shared(secret: bytes, threshold: int, points: list[int]) -> None:
    with pytest.raises(ShareError):
        split(secret, threshold, points)


@pytest.mark.parametrize(
    "share", [b"", bytes(SHARE_BYTES - 1), PRIME.to_bytes(SHARE_BYTES, "big"), b"\xff" * 66]
)
def test_malformed_shares(share: bytes) -> None:
    with pytest.raises(ShareError, match="malformed"):
        combine({1: share}, 1)
