"""The comparison and the truncation on tensors; layouts as in :mod:`radiopaque.kernels.comparison`.

Every operation is over a whole block. Which memory is read follows from shapes: where a table is
looked up, all of its words are read, but for the 16 words of the public tie-break table.
"""

from __future__ import annotations

import torch
from torch import Tensor

from radiopaque.kernels.comparison import tie_break_table
from radiopaque.kernels.tensors.words import down, low, wide


def deal_comparison(
    r_d: Tensor,
    r_o: Tensor,
    mu_d: Tensor,
    mu_o: Tensor,
    rho_d: Tensor,
    rho_o: Tensor,
    opened_bits: int,
    shift: int,
    level1: Tensor,
    level2: Tensor,
    products: Tensor,
) -> None:
    """See :func:`radiopaque.kernels.comparison.deal_comparison`."""
    chunks, planes = level1.shape[0], level2.shape[0]
    n = opened_bits - 1 - shift
    r = down(low(wide(r_d) + wide(r_o), opened_bits), shift)
    one = torch.ones_like(r)
    for chunk in range(chunks):
        level1[chunk] ^= (one << _chunk(r, n, chunk)) - 1
    rho = wide(rho_d ^ rho_o) & 1
    beta = r >> n
    mu = wide(mu_d ^ mu_o)
    high = (mu >> 5) & (planes - 1)
    words = tie_break_table(chunks).tolist()
    table = torch.tensor(words, dtype=torch.int64, device=r.device)
    for plane in range(planes):
        entries = _permuted(table[high ^ plane], mu) ^ ((beta ^ rho) - 1)
        level2[plane] ^= entries.to(torch.int32)
    v = beta << (opened_bits - shift)
    for place, secret in enumerate((rho, r, r * rho, v, v * rho)):
        products[place] = secret - products[place]


def open_comparison(
    h: Tensor,
    offset: Tensor,
    mu: Tensor,
    level1: Tensor,
    first: int,
    opened_bits: int,
    shift: int,
    masked: Tensor,
    message: Tensor,
) -> None:
    """See :func:`radiopaque.kernels.comparison.open_comparison`."""
    n = opened_bits - 1 - shift
    here = slice(first, first + message.shape[1])
    alpha = down(low(wide(h) + wide(offset[here]), opened_bits), shift)
    word = alpha | (_selection(mu[here], level1) << (n + 1))
    word = word ^ _level1(word, level1[:, here], 1, n)
    masked[:] = word
    for byte in range(message.shape[0]):
        message[byte] = (word >> (8 * byte)) & 0xFF


def select_comparison(
    message: Tensor,
    mu: Tensor,
    level1: Tensor,
    level2: Tensor,
    first: int,
    n: int,
    received: Tensor,
    decision: Tensor,
    reply: Tensor,
) -> None:
    """See :func:`radiopaque.kernels.comparison.select_comparison`."""
    here = slice(first, first + reply.shape[0])
    opened = torch.zeros(reply.shape[0], dtype=torch.int64, device=reply.device)
    for byte in range(message.shape[0]):
        opened |= message[byte].to(torch.int64) << (8 * byte)
    received[:] = opened
    word = opened ^ (_selection(mu[here], level1) << (n + 1))
    word = word ^ _level1(word, level1[:, here], 0, n)
    own = _entry(word >> (n + 1), level2[:, here])
    decision[:] = own
    reply[:] = ((word ^ opened) >> (n + 1)) | (own << (2 * level1.shape[0] - 1))


def decide_comparison(
    masked: Tensor,
    reply: Tensor,
    level2: Tensor,
    first: int,
    n: int,
    index_bits: int,
    decision: Tensor,
    opened: Tensor,
) -> None:
    """See :func:`radiopaque.kernels.comparison.decide_comparison`."""
    here = slice(first, first + reply.shape[0])
    word, answer = wide(masked), wide(reply)
    index = low(answer, index_bits) ^ (word >> (n + 1))
    own = ((word >> n) & 1) ^ _entry(index, level2[:, here])
    decision[:] = own
    opened[:] = own ^ (answer >> index_bits)


def finish_comparison(
    masked: Tensor,
    opened: Tensor,
    products: Tensor,
    other: Tensor,
    first: int,
    n: int,
    model_owner: bool,
    out: Tensor,
) -> None:
    """See :func:`radiopaque.kernels.comparison.finish_comparison`; in words of the ring."""
    here = slice(first, first + out.shape[0])
    rho, r, r_rho, v, v_rho = products[:, here]
    alpha = low(wide(masked), n + 1).to(out.dtype)
    above = (alpha >> n) - 1  # all ones where the top bit is 0
    d = -opened.to(out.dtype)  # all ones where d^ is 1
    u = r - (above & v)
    flipped = alpha * rho - (r_rho - (above & v_rho))
    plain = alpha - u if model_owner else -u
    share = (plain & d) + ((flipped ^ d) - d)
    out[:] = share + other if model_owner else share - other


def deal_truncation(
    r_d: Tensor, r_o: Tensor, opened_bits: int, shift: int, products: Tensor
) -> None:
    """See :func:`radiopaque.kernels.comparison.deal_truncation`."""
    r = down(low(wide(r_d) + wide(r_o), opened_bits), shift)
    v = down(r, opened_bits - 1 - shift) << (opened_bits - shift)
    for place, secret in enumerate((r, v)):
        products[place] = secret - products[place]


def open_truncation(
    h: Tensor,
    offset: Tensor,
    products: Tensor,
    first: int,
    opened_bits: int,
    shift: int,
    top: Tensor,
    share: Tensor,
) -> None:
    """See :func:`radiopaque.kernels.comparison.open_truncation`."""
    here = slice(first, first + top.shape[0])
    centre = 1 << (opened_bits - 2)
    total = wide(h) + wide(offset[here]) + centre
    alpha = down(low(total, opened_bits), shift)
    a = down(alpha, opened_bits - 1 - shift)
    top[:] = a
    p0, p1 = products[:, here]
    share[:] = alpha - p0 + ((a - 1) & p1) - (centre >> shift)


def finish_truncation(top: Tensor, products: Tensor, mask: Tensor, first: int, out: Tensor) -> None:
    """See :func:`radiopaque.kernels.comparison.finish_truncation`."""
    here = slice(first, first + out.shape[0])
    p0, p1 = products[:, here]
    out[:] = ((top.to(out.dtype) - 1) & p1) - p0 - mask[here]


def _chunk(word: Tensor, n: int, chunk: int) -> Tensor:
    """Six bits of the n low ones, counted from the top."""
    return (word >> (n - 6 * (chunk + 1))) & 63


def _selection(mu: Tensor, level1: Tensor) -> Tensor:
    """As many bits of a party's mask as there are level-1 bits."""
    return low(wide(mu), 2 * level1.shape[0] - 1)


def _level1(word: Tensor, level1: Tensor, edge: int, n: int) -> Tensor:
    """A party's level-1 bits, above bit n; see ``_add_level1`` of the compiled loops."""
    last = level1.shape[0] - 1
    found = torch.zeros_like(word)
    for chunk, less in enumerate(level1):
        place, at = _chunk(word, n, chunk), n + 1 + 2 * chunk
        found |= ((less >> place) & 1) << at
        if chunk < last:
            equal = less ^ (less << 1) ^ edge
            found |= ((equal >> place) & 1) << (at + 1)
    return found


def _entry(index: Tensor, level2: Tensor) -> Tensor:
    """A party's level-2 bit at each index; all words of a table are read."""
    high, place = index >> 5, index & 31
    found = torch.zeros_like(index)
    for plane, words in enumerate(level2):
        found |= (wide(words) >> place) & (high == plane)
    return found


def _permuted(table: Tensor, mu: Tensor) -> Tensor:
    """Bit ``i`` of the result is bit ``i ^ mu`` of a 32-bit table; the low 5 bits of mu count."""
    for place, kept in enumerate((0x55555555, 0x33333333, 0x0F0F0F0F, 0x00FF00FF, 0x0000FFFF)):
        gap = 1 << place
        step = (table ^ (table >> gap)) & kept & -((mu >> place) & 1)
        table = table ^ (step | (step << gap))
    return table
