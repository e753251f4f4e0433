"""Ring words, signed readings, and fixed-point numbers against plain integers and fractions."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from radiopaque.errors import TensorError
from radiopaque.ring import decode, encode, ring_dtype, signed


def test_ring_dtype() -> None:
    assert ring_dtype(32) == np.uint32
    assert ring_dtype(64) == np.uint64
    for bits in (0, 16, 33, 128):
        with pytest.raises(ValueError, match=f"not {bits}"):
            ring_dtype(bits)


@given(
    st.sampled_from((32, 64)).flatmap(
        lambda k: st.tuples(
            st.just(k), st.integers(1, k), st.lists(st.integers(0, 2**k - 1), max_size=5)
        )
    )
)
def test_signed(case: tuple[int, int, list[int]]) -> None:
    k, bits, values = case
    half = 1 << (bits - 1)
    expected = [(v + half) % (2 * half) - half for v in values]
    result = signed(np.array(values, ring_dtype(k)), bits)
    assert result.dtype == np.int64
    assert result.tolist() == expected


@pytest.mark.parametrize("k", [32, 64])
def test_signed_at_the_edges(k: int) -> None:
    for bits in {1, 2, 16, 19, 31, 32, k - 1, k}:
        half = 1 << (bits - 1)
        words = np.array([0, half - 1, half, 2 * half - 1, (1 << k) - 1], ring_dtype(k))
        assert signed(words, bits).tolist() == [0, half - 1, -half, -1, -1]


@given(
    st.lists(st.floats(-1000, 1000), max_size=8),
    st.integers(0, 16),
    st.integers(1, 50),
    st.sampled_from((32, 64)),
)
def test_encode_rounds_to_nearest(
    reals: list[float], fraction_bits: int, divisor: int, k: int
) -> None:
    scale = Fraction(divisor << fraction_bits)
    limit = (1 << (k - 1)) - 1
    scaled = [Fraction(r) * scale for r in reals]
    if any(abs(v) >= limit for v in scaled):
        return
    words = encode(np.array(reals), scale, k, limit)
    assert words.dtype == ring_dtype(k)
    stored = signed(words, k).tolist()
    for exact, integer in zip(scaled, stored, strict=True):
        # the product is a float before it is rounded: off by half a last place of 53 bits
        assert abs(exact - integer) <= Fraction(1, 2) + abs(exact) / 2**52
    assert (
        np.abs(decode(np.array(stored, np.int64), scale) - reals).max(initial=0) <= 0.5001 / scale
    )


def test_encode_wraps_negative_numbers() -> None:
    for k in (32, 64):
        words = encode(np.array([[-1.0, 1.0], [-2.5, 0.5]]), Fraction(2), k, 100)
        assert words.tolist() == [[(1 << k) - 2, 2], [(1 << k) - 5, 1]]


def test_encode_takes_single_precision() -> None:
    words = encode(np.array([0.1], np.float32), Fraction(1 << 20), 32, 1 << 30)
    assert words.tolist() == [round(float(np.float32(0.1)) * (1 << 20))]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_encode_refuses_what_is_no_number(bad: float) -> None:
    with pytest.raises(TensorError, match="NaN or infinity"):
        encode(np.array([0.0, bad]), Fraction(1), 32, 100)


@pytest.mark.parametrize("limit", [1, 100, (1 << 31) - 1, (1 << 53) - 1])
def test_encode_holds_the_limit_on_both_sides(limit: int) -> None:
    edges = np.array([limit, -limit], np.float64)
    assert signed(encode(edges, Fraction(1), 64, limit), 64).tolist() == [limit, -limit]
    for beyond in (limit + 1, -limit - 1):
        with pytest.raises(TensorError, match="compiled for"):
            encode(np.array([0.0, beyond]), Fraction(1), 64, limit)


@pytest.mark.parametrize("huge", [2.0**63, -(2.0**63), 1e300, 1.7e308])
def test_encode_refuses_what_no_word_holds(huge: float) -> None:
    """Also where the scaled value overflows to infinity."""
    with pytest.raises(TensorError, match="compiled for"):
        encode(np.array([huge]), Fraction(1 << 40), 64, (1 << 63) - 1)


def test_decode_divides_by_the_scale() -> None:
    stored = np.array([[-(1 << 40), 3], [0, 98]], np.int64)
    assert decode(stored, Fraction(98 << 4)).tolist() == [
        [-(1 << 40) / 1568, 3 / 1568],
        [0.0, 0.0625],
    ]
