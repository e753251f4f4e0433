"""Inner loops of the fused comparison and truncation gates (:mod:`radiopaque.gates.relu`).

All loops run over the elements of one block, without temporary arrays, in unsigned 64-bit
arithmetic; ring words are truncated when stored. Notation as in docs/protocol.md, section 6:
``n`` compared bits in ``chunks`` pieces of 6 bits, ``s`` bits truncated.

Layouts, per element, so that one element's words lie next to each other:

* ``level1`` [size, 2*chunks - 1] uint64: LT_0, EQ_0, LT_1, EQ_1, ..., LT_last;
* ``level2`` [size, 2**(2*chunks - 1) / 32] uint32: table T, bit ``i`` in word ``i // 32``;
* ``products`` [size, 5] ring words: shares of rho, r', r' rho, v, v rho.
"""

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import NDArray

from radiopaque.ring import RingArray

Words = NDArray[np.unsignedinteger]
_U = np.uint64


def tie_break_table(chunks: int) -> NDArray[np.uint32]:
    """f over all indices: is alpha_low < r'_low, given lt_j in bit 2j and eq_j in bit 2j + 1."""
    bits = 2 * chunks - 1
    words = np.zeros((1 << bits) // 32, np.uint32)
    for index in range(1 << bits):
        less = 0
        for chunk in reversed(range(chunks)):
            equal = index >> (2 * chunk + 1) & 1 if chunk < chunks - 1 else 0
            less = (index >> (2 * chunk) & 1) | (equal & less)
        words[index // 32] |= np.uint32(less << (index % 32))
    return words


@numba.njit(cache=True, nogil=True)  # type: ignore[misc]
def deal_comparison(  # type: ignore[no-untyped-def]  # pragma: no cover
    r_d,
    r_o,
    mu_d,
    mu_o,
    rho_d,
    rho_o,
    level1_d,
    level2_d,
    products_d,
    tie_break,
    opened_bits,
    shift,
    level1,
    level2,
    products,
):
    """What the crypto provider sends: the model owner's halves of tables and products."""
    one = _U(1)
    size = r_d.size
    words1 = level1.shape[1]
    words2 = level2.shape[1]
    chunks = (words1 + 1) // 2
    n = opened_bits - 1 - shift
    opened_mask = (one << _U(opened_bits)) - one if opened_bits < 64 else ~_U(0)
    index_mask = _U((1 << words1) - 1)
    for i in range(size):
        r = ((_U(r_d[i]) + _U(r_o[i])) & opened_mask) >> _U(shift)
        beta = r >> _U(n)
        rho = (_U(rho_d[i]) ^ _U(rho_o[i])) & one
        mu = (_U(mu_d[i]) ^ _U(mu_o[i])) & index_mask
        for chunk in range(chunks):
            piece = (r >> _U(n - 6 * (chunk + 1))) & _U(63)
            equal = one << piece
            level1[i, 2 * chunk] = (equal - one) ^ level1_d[i, 2 * chunk]
            if chunk < chunks - 1:
                level1[i, 2 * chunk + 1] = equal ^ level1_d[i, 2 * chunk + 1]
        flip = np.uint32(0xFFFFFFFF) if (beta ^ rho) == 0 else np.uint32(0)
        high = mu >> _U(5)
        for word in range(words2):
            table = np.uint32(tie_break[_U(word) ^ high])
            if mu & _U(1):
                table = np.uint32((table & np.uint32(0x55555555)) << np.uint32(1)) | np.uint32(
                    (table >> np.uint32(1)) & np.uint32(0x55555555)
                )
            if mu & _U(2):
                table = np.uint32((table & np.uint32(0x33333333)) << np.uint32(2)) | np.uint32(
                    (table >> np.uint32(2)) & np.uint32(0x33333333)
                )
            if mu & _U(4):
                table = np.uint32((table & np.uint32(0x0F0F0F0F)) << np.uint32(4)) | np.uint32(
                    (table >> np.uint32(4)) & np.uint32(0x0F0F0F0F)
                )
            if mu & _U(8):
                table = np.uint32((table & np.uint32(0x00FF00FF)) << np.uint32(8)) | np.uint32(
                    (table >> np.uint32(8)) & np.uint32(0x00FF00FF)
                )
            if mu & _U(16):
                table = np.uint32(table << np.uint32(16)) | np.uint32(table >> np.uint32(16))
            level2[i, word] = table ^ flip ^ level2_d[i, word]
        v = beta << _U(opened_bits - shift)
        products[i, 0] = rho - _U(products_d[i, 0])
        products[i, 1] = r - _U(products_d[i, 1])
        products[i, 2] = r * rho - _U(products_d[i, 2])
        products[i, 3] = v - _U(products_d[i, 3])
        products[i, 4] = v * rho - _U(products_d[i, 4])


@numba.njit(cache=True, nogil=True)  # type: ignore[misc]
def open_comparison(  # type: ignore[no-untyped-def]  # pragma: no cover
    h, offset, mu_o, level1_o, opened_bits, shift, width_bytes, masked, message
):
    """Model owner, message 1: alpha and its masked level-1 bits, ``width_bytes`` bytes an element.

    ``masked`` keeps the same word for later.
    """
    one = _U(1)
    words1 = level1_o.shape[1]
    chunks = (words1 + 1) // 2
    n = opened_bits - 1 - shift
    opened_mask = (one << _U(opened_bits)) - one if opened_bits < 64 else ~_U(0)
    index_mask = _U((1 << words1) - 1)
    for i in range(h.size):
        alpha = ((_U(h[i]) + _U(offset[i])) & opened_mask) >> _U(shift)
        bits = _U(mu_o[i]) & index_mask
        for chunk in range(chunks):
            piece = (alpha >> _U(n - 6 * (chunk + 1))) & _U(63)
            bits ^= ((level1_o[i, 2 * chunk] >> piece) & one) << _U(2 * chunk)
            if chunk < chunks - 1:
                bits ^= ((level1_o[i, 2 * chunk + 1] >> piece) & one) << _U(2 * chunk + 1)
        word = alpha | (bits << _U(n + 1))
        masked[i] = word
        for byte in range(width_bytes):
            message[i * width_bytes + byte] = np.uint8(word >> _U(8 * byte))


@numba.njit(cache=True, nogil=True)  # type: ignore[misc]
def select_comparison(  # type: ignore[no-untyped-def]  # pragma: no cover
    message, width_bytes, mu_d, level1_d, level2_d, n, alpha_out, decision_out, reply
):
    """Data owner, message 2: its masked level-1 bits and, above them, its bit of the decision."""
    one = _U(1)
    words1 = level1_d.shape[1]
    chunks = (words1 + 1) // 2
    index_mask = _U((1 << words1) - 1)
    alpha_mask = (one << _U(n + 1)) - one
    for i in range(mu_d.size):
        word = _U(0)
        for byte in range(width_bytes):
            word |= _U(message[i * width_bytes + byte]) << _U(8 * byte)
        alpha = word & alpha_mask
        bits = _U(mu_d[i]) & index_mask
        for chunk in range(chunks):
            piece = (alpha >> _U(n - 6 * (chunk + 1))) & _U(63)
            bits ^= ((level1_d[i, 2 * chunk] >> piece) & one) << _U(2 * chunk)
            if chunk < chunks - 1:
                bits ^= ((level1_d[i, 2 * chunk + 1] >> piece) & one) << _U(2 * chunk + 1)
        index = bits ^ (word >> _U(n + 1))
        decision = (_U(level2_d[i, index >> _U(5)]) >> (index & _U(31))) & one
        alpha_out[i] = alpha
        decision_out[i] = decision
        reply[i] = bits | (decision << _U(words1))


@numba.njit(cache=True, nogil=True)  # type: ignore[misc]
def decide_comparison(  # type: ignore[no-untyped-def]  # pragma: no cover
    masked, reply, level2_o, n, words1, decision_out, opened_out
):
    """Model owner, message 3: its bit of the decision; keeps the opened bit d^."""
    one = _U(1)
    index_mask = _U((1 << words1) - 1)
    for i in range(masked.size):
        word = _U(masked[i])
        index = (word >> _U(n + 1)) ^ (_U(reply[i]) & index_mask)
        top = (word >> _U(n)) & one
        decision = ((_U(level2_o[i, index >> _U(5)]) >> (index & _U(31))) & one) ^ top
        decision_out[i] = decision
        opened_out[i] = decision ^ (_U(reply[i]) >> _U(words1))


@numba.njit(cache=True, nogil=True)  # type: ignore[misc]
def finish_comparison(  # type: ignore[no-untyped-def]  # pragma: no cover
    word, opened, products, other, n, public, sign, out
):
    """Either party's share of z = d (alpha - u), plus ``sign`` times ``other``.

    ``public`` is 1 for the model owner, who alone adds the public alpha, 0 for the data owner.
    The data owner subtracts its fresh mask (``sign`` -1); the model owner adds what it received.
    """
    one = _U(1)
    alpha_mask = (one << _U(n + 1)) - one
    for i in range(out.size):
        alpha = _U(word[i]) & alpha_mask
        low = one - (alpha >> _U(n))
        d = _U(opened[i])
        u = _U(products[i, 1]) - low * _U(products[i, 3])
        u_rho = _U(products[i, 2]) - low * _U(products[i, 4])
        flipped = alpha * _U(products[i, 0]) - u_rho
        share = d * (alpha * _U(public) - u) + (one - d - d) * flipped
        out[i] = share + _U(sign) * _U(other[i])


@numba.njit(cache=True, nogil=True)  # type: ignore[misc]
def deal_truncation(  # type: ignore[no-untyped-def]  # pragma: no cover
    r_d, r_o, products_d, opened_bits, shift, products
):
    """Model owner's shares of r' and v for a truncation without comparison."""
    one = _U(1)
    opened_mask = (one << _U(opened_bits)) - one if opened_bits < 64 else ~_U(0)
    for i in range(r_d.size):
        r = ((_U(r_d[i]) + _U(r_o[i])) & opened_mask) >> _U(shift)
        v = (r >> _U(opened_bits - 1 - shift)) << _U(opened_bits - shift)
        products[i, 0] = r - _U(products_d[i, 0])
        products[i, 1] = v - _U(products_d[i, 1])


@numba.njit(cache=True, nogil=True)  # type: ignore[misc]
def open_truncation(  # type: ignore[no-untyped-def]  # pragma: no cover
    h, offset, products_o, opened_bits, shift, top_out, share_out
):
    """Model owner: the top bit to send, and its own share of the truncated value."""
    one = _U(1)
    opened_mask = (one << _U(opened_bits)) - one if opened_bits < 64 else ~_U(0)
    centre = one << _U(opened_bits - 2)
    for i in range(h.size):
        alpha = ((_U(h[i]) + _U(offset[i]) + centre) & opened_mask) >> _U(shift)
        top = alpha >> _U(opened_bits - 1 - shift)
        low = one - top
        top_out[i] = top
        share_out[i] = (
            alpha - _U(products_o[i, 0]) + low * _U(products_o[i, 1]) - (centre >> _U(shift))
        )


@numba.njit(cache=True, nogil=True)  # type: ignore[misc]
def finish_truncation(top, products_d, mask, out):  # type: ignore[no-untyped-def]  # pragma: no cover
    """Data owner: its share of the truncated value, minus its fresh mask."""
    one = _U(1)
    for i in range(out.size):
        low = one - _U(top[i])
        out[i] = low * _U(products_d[i, 1]) - _U(products_d[i, 0]) - _U(mask[i])


def minus_one() -> np.uint64:
    """-1 in 64-bit arithmetic, the ``sign`` of a subtraction."""
    return np.uint64(0xFFFFFFFFFFFFFFFF)


__all__ = [
    "RingArray",
    "deal_comparison",
    "deal_truncation",
    "decide_comparison",
    "finish_comparison",
    "finish_truncation",
    "minus_one",
    "open_comparison",
    "open_truncation",
    "select_comparison",
    "tie_break_table",
]
