"""The loops of the comparison and the truncation, alone and composed, without any stream.

Shares are drawn here by numpy: what the loops compute must not depend on where they come from.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import DTypeLike, NDArray

from radiopaque.kernels import comparison as kernels

U = np.uint64
Words = NDArray[np.unsignedinteger]
WINDOWS = [
    (32, 19, 0),
    (32, 32, 13),
    (32, 25, 0),
    (32, 32, 1),
    (32, 31, 0),
    (64, 32, 13),
    (64, 64, 45),
    (64, 64, 39),
    (64, 41, 16),
    (64, 64, 33),
]


@dataclass
class Deal:
    """Both parties' halves of a comparison on random masks."""

    k: int
    opened_bits: int
    shift: int
    size: int
    seed: int = 0

    def __post_init__(self) -> None:
        rng = np.random.default_rng(self.seed)
        self.dtype = np.dtype(f"uint{self.k}")
        self.n = self.opened_bits - 1 - self.shift
        self.index_bits = 2 * (self.n // 6) - 1
        words2 = (1 << self.index_bits) // 32

        def draw(shape: tuple[int, ...] | int, dtype: DTypeLike) -> Words:
            return rng.integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)

        size = self.size
        self.r_d, self.r_o = draw(size, self.dtype), draw(size, self.dtype)
        self.mu_d, self.mu_o = draw(size, np.uint16), draw(size, np.uint16)
        self.rho_d, self.rho_o = draw(size, np.uint8), draw(size, np.uint8)
        self.level1_d = draw((self.n // 6, size), np.uint64)
        self.level2_d = draw((words2, size), np.uint32)
        self.products_d = draw((5, size), self.dtype)
        self.level1_o = self.level1_d.copy()
        self.level2_o = self.level2_d.copy()
        self.products_o = self.products_d.copy()
        kernels.deal_comparison(
            self.r_d,
            self.r_o,
            self.mu_d,
            self.mu_o,
            self.rho_d,
            self.rho_o,
            kernels.tie_break_table(self.n // 6),
            self.opened_bits,
            self.shift,
            self.level1_o,
            self.level2_o,
            self.products_o,
        )
        r = self.r_d.astype(object) + self.r_o.astype(object)
        self.r = [int(v) for v in r % (1 << self.opened_bits)]
        self.rho = [int(v) for v in (self.rho_d ^ self.rho_o) & 1]
        self.mu = (self.mu_d ^ self.mu_o) & ((1 << self.index_bits) - 1)

    @property
    def opening_bytes(self) -> int:
        """Bytes an element of the first message."""
        return (self.n + 1 + self.index_bits) // 8


def pieces(value: int, n: int) -> list[int]:
    """Chunks of 6 bits of an n-bit number, the top one first."""
    return [value >> (n - 6 * (j + 1)) & 63 for j in range(n // 6)]


@pytest.mark.parametrize("chunks", [3, 4, 5])
def test_tie_break_table_compares(chunks: int) -> None:
    """For numbers, index bits 2j and 2j + 1 being less and equal of chunk j, it says less."""
    table = kernels.tie_break_table(chunks)
    n = 6 * chunks
    assert table.dtype == np.uint32
    assert table.size == (1 << (2 * chunks - 1)) // 32
    rng = np.random.default_rng(chunks)
    for _ in range(2000):
        left = int(rng.integers(1 << n))
        # often equal in some chunks, so that lower ones decide
        right = left ^ (int(rng.integers(1 << n)) if rng.integers(2) else int(rng.integers(64)))
        if rng.integers(4) == 0:
            right = left
        index = 0
        for j, (a, b) in enumerate(zip(pieces(left, n), pieces(right, n), strict=True)):
            index |= (a < b) << (2 * j)
            if j < chunks - 1:
                index |= (a == b) << (2 * j + 1)
        assert int(table[index // 32]) >> (index % 32) & 1 == (left < right)


@pytest.mark.parametrize(("k", "opened_bits", "shift"), WINDOWS)
def test_dealt_tables_and_products(k: int, opened_bits: int, shift: int) -> None:
    """Joined, both halves are the tables and products of the mathematics."""
    deal = Deal(k, opened_bits, shift, 12)
    n, modulus = deal.n, 1 << k
    level1 = deal.level1_d ^ deal.level1_o
    level2 = deal.level2_d ^ deal.level2_o
    products = (deal.products_d + deal.products_o).T.tolist()
    for i in range(deal.size):
        high = deal.r[i] >> shift
        beta, low = high >> n, high % (1 << n)
        for j, piece in enumerate(pieces(low, n)):
            assert int(level1[j, i]) == (1 << piece) - 1
        f = kernels.tie_break_table(n // 6)
        for index in range(1 << deal.index_bits):
            source = index ^ int(deal.mu[i])
            expected = int(f[source // 32]) >> (source % 32) & 1 ^ beta ^ deal.rho[i] ^ 1
            assert int(level2[index // 32, i]) >> (index % 32) & 1 == expected
        v, rho = beta << (opened_bits - shift), deal.rho[i]
        assert products[i] == [x % modulus for x in (rho, high, high * rho, v, v * rho)]


def run_comparison(deal: Deal, y: Words) -> tuple[Words, Words, Words]:
    """Both parties' shares of z for y given as (h, offset) with offset = y - h + r; and d."""
    rng = np.random.default_rng(99)
    h = rng.integers(0, np.iinfo(deal.dtype).max, deal.size, deal.dtype, endpoint=True)
    offset = y - h + deal.r_d + deal.r_o
    masked = np.empty(deal.size, np.uint32 if deal.opening_bytes <= 4 else np.uint64)
    message = np.empty((deal.opening_bytes, deal.size), np.uint8)
    kernels.open_comparison(
        h,
        offset,
        deal.mu_o,
        deal.level1_o,
        0,
        deal.opened_bits,
        deal.shift,
        masked,
        message,
    )
    received = np.empty_like(masked)
    decision_d = np.empty(deal.size, np.uint8)
    reply = np.empty(deal.size, np.uint8 if deal.index_bits < 8 else np.uint16)
    kernels.select_comparison(
        message,
        deal.mu_d,
        deal.level1_d,
        deal.level2_d,
        0,
        deal.n,
        received,
        decision_d,
        reply,
    )
    decision_o = np.empty(deal.size, np.uint8)
    opened = np.empty(deal.size, np.uint8)
    kernels.decide_comparison(
        masked, reply, deal.level2_o, 0, deal.n, deal.index_bits, decision_o, opened
    )
    assert (opened == decision_d ^ decision_o).all()
    # message 1 holds alpha and, above it, the masked bits; nothing of the low bits of y + r
    width = 8 * deal.opening_bytes
    assert width == deal.n + 1 + deal.index_bits
    words = np.array([int.from_bytes(row.tobytes(), "little") for row in message.T], object)
    assert (words == masked.astype(object)).all()
    assert (received == masked).all()
    total = [
        ((int(v) + r) % (1 << deal.opened_bits)) >> deal.shift
        for v, r in zip(y, deal.r, strict=True)
    ]
    assert total == [int(w) % (1 << (deal.n + 1)) for w in words]
    assert (reply.astype(np.uint32) >> (deal.index_bits + 1)).max(initial=0) == 0
    nothing = np.zeros(deal.size, deal.dtype)
    shares = []
    for products, public in ((deal.products_d, U(0)), (deal.products_o, U(1))):
        share = np.empty(deal.size, deal.dtype)
        kernels.finish_comparison(masked, opened, products, nothing, 0, deal.n, public, U(1), share)
        shares.append(share)
    return shares[0], shares[1], opened ^ np.array(deal.rho, np.uint8)


@pytest.mark.parametrize(("k", "opened_bits", "shift"), WINDOWS)
def test_composed_comparison(k: int, opened_bits: int, shift: int) -> None:
    """Shares of z add up to max(y, 0) >> s, or one more; d is the sign where y is clear of zero."""
    size = 4000
    deal = Deal(k, opened_bits, shift, size, seed=k + opened_bits)
    rng = np.random.default_rng(opened_bits)
    half, unit = 1 << (opened_bits - 1), 1 << shift
    edges = [-half, 1 - half, half - unit, half - unit - 1, 0, 1, -1, unit, -unit, unit - 1]
    signed = np.array(
        edges + [int(v) for v in rng.integers(-half, half - unit, size - len(edges))], object
    )
    y = (signed % (1 << k)).astype(deal.dtype)
    share_d, share_o, d = run_comparison(deal, y)
    z = (share_d + share_o).astype(object)
    floor = np.maximum(signed, 0) >> shift
    up = z - floor
    assert set(up) <= {0, 1}
    assert (up[(np.maximum(signed, 0) % unit) == 0] == 0).all()
    assert (d[signed >= 0] == 1).all()
    assert (d[signed <= -unit] == 0).all()


def test_finish_adds_or_subtracts_the_other_share() -> None:
    deal = Deal(32, 19, 0, 100, seed=5)
    y = np.arange(100, dtype=np.uint32)
    share_d, share_o, _ = run_comparison(deal, y)
    rng = np.random.default_rng(1)
    other = rng.integers(0, 1 << 32, 100, np.uint32)
    alpha = np.zeros(100, np.uint32)
    opened = np.zeros(100, np.uint8)
    for sign, expected in ((U(1), other), (kernels.minus_one(), -other)):
        out = np.empty(100, np.uint32)
        kernels.finish_comparison(
            alpha, opened, np.zeros((5, 100), np.uint32), other, 0, 18, U(0), sign, out
        )
        assert (out == expected).all()
    assert (share_d + share_o == y).all()


@pytest.mark.parametrize(
    ("k", "opened_bits", "shift"),
    [(32, 32, 13), (32, 4, 1), (32, 32, 29), (64, 64, 61), (64, 45, 16), (64, 33, 1)],
)
def test_composed_truncation(k: int, opened_bits: int, shift: int) -> None:
    size = 4000
    rng = np.random.default_rng(opened_bits + shift)
    dtype: np.dtype[np.unsignedinteger] = np.dtype(f"uint{k}")

    def draw(*shape: int) -> NDArray[np.unsignedinteger]:
        return rng.integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)

    r_d, r_o, products_d, fresh, h = draw(size), draw(size), draw(2, size), draw(size), draw(size)
    products_o = products_d.copy()
    kernels.deal_truncation(r_d, r_o, opened_bits, shift, products_o)
    quarter, unit = 1 << (opened_bits - 2), 1 << shift
    edges = [-quarter, 1 - quarter, quarter, quarter - 1, 0, 1, -1, unit, -unit, -unit - 1]
    edges = [v for v in edges if abs(v) <= quarter]
    signed = np.array(
        edges + [int(v) for v in rng.integers(-quarter, quarter, size - len(edges))], object
    )
    y = (signed % (1 << k)).astype(dtype)
    top = np.empty(size, np.uint8)
    share_o = np.empty(size, dtype)
    kernels.open_truncation(h, y - h + r_d + r_o, products_o, 0, opened_bits, shift, top, share_o)
    assert set(top.tolist()) == {0, 1}
    share_d = np.empty(size, dtype)
    kernels.finish_truncation(top, products_d, fresh, 0, share_d)
    z = (share_o + share_d + fresh).astype(object)
    z = np.where(z >= 1 << (k - 1), z - (1 << k), z)
    up = z - (signed >> shift)
    assert set(up) <= {0, 1}
    assert (up[signed % unit == 0] == 0).all()


def test_blocks_are_the_same_as_the_whole_layer() -> None:
    """Of every loop that a layer's blocks go through, with blocks that no strip ends with."""
    size, cuts = 6000, (0, 33, 2081, 2082, 6000)
    deal = Deal(32, 32, 13, size, seed=3)
    n, bits = deal.n, deal.index_bits
    rng = np.random.default_rng(2)
    h, other = (rng.integers(0, 1 << 32, size, np.uint32) for _ in range(2))
    p2 = deal.products_o[:2].copy()

    def run(edges: tuple[int, ...]) -> list[Words]:
        masked, received = np.empty(size, np.uint32), np.empty(size, np.uint32)
        own_d, own_o, joint = (np.empty(size, np.uint8) for _ in range(3))
        share, out, result = (np.empty(size, np.uint32) for _ in range(3))
        sent: list[list[Words]] = [[], [], []]
        for first, end in pairwise(edges):
            count, piece = end - first, slice(first, end)
            message = np.empty((3, count), np.uint8)
            here = h[piece], deal.r_o
            kernels.open_comparison(
                *here, deal.mu_o, deal.level1_o, first, 32, 13, masked[piece], message
            )
            reply, decision, top = (np.empty(count, np.uint8) for _ in range(3))
            tables = deal.level1_d, deal.level2_d
            kept = received[piece], own_d[piece]
            kernels.select_comparison(message, deal.mu_d, *tables, first, n, *kept, reply)
            kernels.decide_comparison(
                masked[piece], reply, deal.level2_o, first, n, bits, decision, joint[piece]
            )
            own_o[piece] = decision
            kernels.finish_comparison(
                masked[piece],
                joint[piece],
                deal.products_o,
                other[piece],
                first,
                n,
                U(1),
                U(1),
                out[piece],
            )
            kernels.open_truncation(*here, p2, first, 32, 13, top, share[piece])
            kernels.finish_truncation(top, p2, other, first, result[piece])
            for kind, data in zip(sent, (message, reply[None], top[None]), strict=True):
                kind.append(data)
        joined = [np.concatenate(data, axis=1) for data in sent]
        return [masked, received, own_d, own_o, joint, share, out, result, *joined]

    for whole, parts in zip(run((0, size)), run(cuts), strict=True):
        assert (whole == parts).all()
