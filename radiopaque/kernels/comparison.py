"""Inner loops of the fused comparison and truncation gates (:mod:`radiopaque.gates.relu`).

Notation as in docs/protocol.md, section 6: ``n`` compared bits in ``chunks`` pieces of 6 bits,
``s`` bits truncated. Layouts, in planes, so that neighbouring elements lie side by side and the
compiler can use the machine's full vector width:

* ``level1`` [chunks, size] uint64: LT_0, LT_1, ..., LT_last;
* ``level2`` [2**(2*chunks - 1) / 32, size] uint32: table T, bit ``i`` in plane ``i // 32``;
* ``products`` [5, size] ring words: shares of rho, r', r' rho, v, v rho;
* a *masked word*, uint32 or uint64: alpha, and above its n + 1 bits a party's level-1 bits
  lt_0, eq_0, lt_1, eq_1, ..., lt_last;
* the opening message [bytes of a masked word, size] uint8: byte planes, lowest first.

Where a block of a layer is computed, masks, tables and products are those of the whole layer and
come with ``first``, the place where the block begins; everything else is the block's own.

Each loop runs over a strip of elements that stays in the first-level cache, in unsigned 64-bit
arithmetic; words are truncated when stored. No loop looks at a value to decide what to do next.
"""

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import NDArray

from radiopaque.kernels.compiled import compiled_loop

Words = NDArray[np.unsignedinteger]
_U = np.uint64
_STRIP = 2048
"""Elements of a strip: with all of its operands they fill half of a 48 KiB first-level cache."""


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


@compiled_loop
def deal_comparison(  # type: ignore[no-untyped-def]  # pragma: no cover
    r_d,
    r_o,
    mu_d,
    mu_o,
    rho_d,
    rho_o,
    tie_break,
    opened_bits,
    shift,
    level1,
    level2,
    products,
):
    """What the crypto provider sends: the model owner's halves of tables and products.

    ``level1``, ``level2`` and ``products`` come with the data owner's halves and are overwritten.
    """
    one = _U(1)
    chunks = level1.shape[0]
    n = opened_bits - 1 - shift
    opened_mask = (one << _U(opened_bits)) - one if opened_bits < 64 else ~_U(0)
    s, top, lift = _U(shift), _U(n), _U(opened_bits - shift)
    strip_r = np.empty(_STRIP, r_d.dtype)
    for start in range(0, r_d.size, _STRIP):
        stop = min(r_d.size, start + _STRIP)
        r = strip_r[: stop - start]
        own, other = r_d[start:stop], r_o[start:stop]
        for i in range(r.size):
            r[i] = ((_U(own[i]) + _U(other[i])) & opened_mask) >> s
        for chunk in range(chunks):
            down = _U(n - 6 * (chunk + 1))
            table = level1[chunk, start:stop]
            for i in range(r.size):
                table[i] ^= (one << ((_U(r[i]) >> down) & _U(63))) - one
        mask_d, mask_o = rho_d[start:stop], rho_o[start:stop]
        selection_d, selection_o = mu_d[start:stop], mu_o[start:stop]
        for plane in range(level2.shape[0]):
            entries = level2[plane, start:stop]
            if level2.shape[0] == 1:
                for i in range(r.size):
                    mu = _U(selection_d[i]) ^ _U(selection_o[i])
                    entries[i] ^= _permuted(_U(tie_break[0]), mu)
            else:
                for i in range(r.size):
                    mu = _U(selection_d[i]) ^ _U(selection_o[i])
                    high = (mu >> _U(5)) & _U(level2.shape[0] - 1)
                    entries[i] ^= _permuted(_U(tie_break[_U(plane) ^ high]), mu)
            for i in range(r.size):
                even = (_U(r[i]) >> top) ^ ((_U(mask_d[i]) ^ _U(mask_o[i])) & one)
                entries[i] ^= even - one
        p0, p1, p2 = products[0, start:stop], products[1, start:stop], products[2, start:stop]
        p3, p4 = products[3, start:stop], products[4, start:stop]
        for i in range(r.size):
            rho = (_U(mask_d[i]) ^ _U(mask_o[i])) & one
            v = (_U(r[i]) >> top) << lift
            p0[i] = rho - _U(p0[i])
            p1[i] = _U(r[i]) - _U(p1[i])
            p2[i] = _U(r[i]) * rho - _U(p2[i])
            p3[i] = v - _U(p3[i])
            p4[i] = v * rho - _U(p4[i])


@numba.njit(nogil=True)  # type: ignore[misc]
def _permuted(table, mu):  # type: ignore[no-untyped-def]  # pragma: no cover
    """Bit ``i`` of the result is bit ``i ^ mu`` of a 32-bit table; the low 5 bits of mu count."""
    one = _U(1)
    step = (table ^ (table >> one)) & _U(0x55555555) & (_U(0) - (mu & one))
    table ^= step | (step << one)
    step = (table ^ (table >> _U(2))) & _U(0x33333333) & (_U(0) - ((mu >> one) & one))
    table ^= step | (step << _U(2))
    step = (table ^ (table >> _U(4))) & _U(0x0F0F0F0F) & (_U(0) - ((mu >> _U(2)) & one))
    table ^= step | (step << _U(4))
    step = (table ^ (table >> _U(8))) & _U(0x00FF00FF) & (_U(0) - ((mu >> _U(3)) & one))
    table ^= step | (step << _U(8))
    step = (table ^ (table >> _U(16))) & _U(0x0000FFFF) & (_U(0) - ((mu >> _U(4)) & one))
    return table ^ (step | (step << _U(16)))


@numba.njit(nogil=True)  # type: ignore[misc]
def _add_level1(word, level1, start, edge, n):  # type: ignore[no-untyped-def]  # pragma: no cover
    """XORs a party's level-1 bits of a strip into the masked words' upper bits.

    eq_j at place i is lt_j at i - 1 XOR lt_j at i, with LT_j(-1) = 1, which ``edge``, 1 at the
    model owner and 0 at the data owner, adds to one of the shares.
    """
    one = _U(1)
    last = level1.shape[0] - 1
    for chunk in range(last):
        table = level1[chunk, start : start + word.size]
        down, at = _U(n - 6 * (chunk + 1)), _U(n + 1 + 2 * chunk)
        for i in range(word.size):
            place = (_U(word[i]) >> down) & _U(63)
            less = table[i]
            equal = less ^ (less << one) ^ edge
            word[i] ^= (((less >> place) & one) | (((equal >> place) & one) << one)) << at
    table = level1[last, start : start + word.size]
    down, at = _U(n - 6 * (last + 1)), _U(n + 1 + 2 * last)
    for i in range(word.size):
        place = (_U(word[i]) >> down) & _U(63)
        word[i] ^= ((table[i] >> place) & one) << at


@numba.njit(nogil=True)  # type: ignore[misc]
def _add_entry(  # type: ignore[no-untyped-def]  # pragma: no cover
    index, level2, start, first, decision
):
    """XORs a party's level-2 bits of a strip into ``decision``; indices begin at bit ``first``."""
    one, first = _U(1), _U(first)
    if level2.shape[0] == 1:
        table = level2[0, start : start + index.size]
        for i in range(index.size):
            decision[i] ^= np.uint8((_U(table[i]) >> (_U(index[i]) >> first)) & one)
        return
    for plane in range(level2.shape[0]):
        table = level2[plane, start : start + index.size]
        for i in range(index.size):
            entry = _U(index[i]) >> first
            here = np.uint8((entry >> _U(5)) == _U(plane))
            decision[i] ^= np.uint8((_U(table[i]) >> (entry & _U(31))) & one) & here


@compiled_loop
def open_comparison(  # type: ignore[no-untyped-def]  # pragma: no cover
    h, offset, mu, level1, first, opened_bits, shift, masked, message
):
    """Model owner, message 1: masked words, kept in ``masked`` and sent as byte planes."""
    one = _U(1)
    n = opened_bits - 1 - shift
    opened_mask = (one << _U(opened_bits)) - one if opened_bits < 64 else ~_U(0)
    index_mask = (one << _U(2 * level1.shape[0] - 1)) - one
    s, up = _U(shift), _U(n + 1)
    size = message.shape[1]
    for start in range(0, size, _STRIP):
        stop = min(size, start + _STRIP)
        here, end = first + start, first + stop
        word, own, add, bits = masked[start:stop], h[start:stop], offset[here:end], mu[here:end]
        for i in range(word.size):
            alpha = ((_U(own[i]) + _U(add[i])) & opened_mask) >> s
            word[i] = alpha | ((_U(bits[i]) & index_mask) << up)
        _add_level1(word, level1, here, one, n)
        for byte in range(message.shape[0]):
            plane = message[byte, start:stop]
            down = _U(8 * byte)
            for i in range(word.size):
                plane[i] = np.uint8(_U(word[i]) >> down)


@compiled_loop
def select_comparison(  # type: ignore[no-untyped-def]  # pragma: no cover
    message, mu, level1, level2, first, n, received, decision, reply
):
    """Data owner, message 2: its masked level-1 bits and, above them, its bit of the decision.

    ``received`` keeps the model owner's masked words, ``decision`` the own bit.
    """
    one = _U(1)
    index_bits = 2 * level1.shape[0] - 1
    index_mask = (one << _U(index_bits)) - one
    up = _U(n + 1)
    strip = np.empty(_STRIP, received.dtype)
    size = reply.size
    for start in range(0, size, _STRIP):
        stop = min(size, start + _STRIP)
        here, end = first + start, first + stop
        opened, word = received[start:stop], strip[: stop - start]
        own, bits = decision[start:stop], mu[here:end]
        opened[:] = 0
        for byte in range(message.shape[0]):
            plane = message[byte, start:stop]
            lift = _U(8 * byte)
            for i in range(word.size):
                opened[i] |= _U(plane[i]) << lift
        for i in range(word.size):
            word[i] = _U(opened[i]) ^ ((_U(bits[i]) & index_mask) << up)
        _add_level1(word, level1, here, _U(0), n)
        own[:] = 0
        _add_entry(word, level2, here, n + 1, own)
        answer = reply[start:stop]
        for i in range(word.size):
            answer[i] = ((_U(word[i]) ^ _U(opened[i])) >> up) | (_U(own[i]) << _U(index_bits))


@compiled_loop
def decide_comparison(  # type: ignore[no-untyped-def]  # pragma: no cover
    masked, reply, level2, first, n, index_bits, decision, opened
):
    """Model owner, message 3: its bit of the decision; keeps the opened bit d^."""
    one = _U(1)
    index_mask = (one << _U(index_bits)) - one
    top, up = _U(n), _U(n + 1)
    strip = np.empty(_STRIP, np.uint16)
    size = reply.size
    for start in range(0, size, _STRIP):
        stop = min(size, start + _STRIP)
        here = first + start
        word, answer, joint = masked[start:stop], reply[start:stop], opened[start:stop]
        own, index = decision[start:stop], strip[: stop - start]
        for i in range(word.size):
            own[i] = np.uint8((_U(word[i]) >> top) & one)
            index[i] = (_U(answer[i]) & index_mask) ^ (_U(word[i]) >> up)
        _add_entry(index, level2, here, 0, own)
        for i in range(word.size):
            joint[i] = own[i] ^ np.uint8(_U(answer[i]) >> _U(index_bits))


@compiled_loop
def finish_comparison(  # type: ignore[no-untyped-def]  # pragma: no cover
    masked, opened, products, other, first, n, public, sign, out
):
    """Either party's share of z = d (alpha - u), plus ``sign`` times ``other``, into ``out``.

    ``public`` is 1 for the model owner, who alone adds the public alpha, 0 for the data owner.
    The data owner subtracts its fresh mask (``sign`` -1); the model owner adds what it received.
    """
    one = _U(1)
    alpha_mask = (one << _U(n + 1)) - one
    end = first + out.size
    p0, p1, p2 = products[0, first:end], products[1, first:end], products[2, first:end]
    p3, p4 = products[3, first:end], products[4, first:end]
    for i in range(out.size):
        alpha = _U(masked[i]) & alpha_mask
        low = (alpha >> _U(n)) - one  # all ones where the top bit is 0
        d = _U(0) - _U(opened[i])  # all ones where d^ is 1
        u = _U(p1[i]) - (low & _U(p3[i]))
        u_rho = _U(p2[i]) - (low & _U(p4[i]))
        flipped = alpha * _U(p0[i]) - u_rho
        share = ((alpha * public - u) & d) + ((flipped ^ d) - d)
        out[i] = share + sign * _U(other[i])


@compiled_loop
def deal_truncation(  # type: ignore[no-untyped-def]  # pragma: no cover
    r_d, r_o, opened_bits, shift, products
):
    """Model owner's shares of r' and v for a truncation without comparison.

    ``products`` [2, size] comes with the data owner's shares and is overwritten.
    """
    one = _U(1)
    opened_mask = (one << _U(opened_bits)) - one if opened_bits < 64 else ~_U(0)
    s, top, lift = _U(shift), _U(opened_bits - 1 - shift), _U(opened_bits - shift)
    p0, p1 = products[0], products[1]
    for i in range(r_d.size):
        r = ((_U(r_d[i]) + _U(r_o[i])) & opened_mask) >> s
        p0[i] = r - _U(p0[i])
        p1[i] = ((r >> top) << lift) - _U(p1[i])


@compiled_loop
def open_truncation(  # type: ignore[no-untyped-def]  # pragma: no cover
    h, offset, products, first, opened_bits, shift, top, share
):
    """Model owner: the top bit to send, and its own share of the truncated value."""
    one = _U(1)
    opened_mask = (one << _U(opened_bits)) - one if opened_bits < 64 else ~_U(0)
    centre = one << _U(opened_bits - 2)
    s, n = _U(shift), _U(opened_bits - 1 - shift)
    end = first + top.size
    p0, p1 = products[0, first:end], products[1, first:end]
    add = offset[first:end]
    for i in range(top.size):
        alpha = ((_U(h[i]) + _U(add[i]) + centre) & opened_mask) >> s
        a = alpha >> n
        top[i] = np.uint8(a)
        share[i] = alpha - _U(p0[i]) + ((a - one) & _U(p1[i])) - (centre >> s)


@compiled_loop
def finish_truncation(  # type: ignore[no-untyped-def]  # pragma: no cover
    top, products, mask, first, out
):
    """Data owner: its share of the truncated value, minus its fresh mask."""
    one = _U(1)
    end = first + out.size
    p0, p1, own = products[0, first:end], products[1, first:end], mask[first:end]
    for i in range(out.size):
        out[i] = ((_U(top[i]) - one) & _U(p1[i])) - _U(p0[i]) - _U(own[i])


def minus_one() -> np.uint64:
    """-1 in 64-bit arithmetic, the ``sign`` of a subtraction."""
    return np.uint64(0xFFFFFFFFFFFFFFFF)
