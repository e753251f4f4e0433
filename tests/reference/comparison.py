"""Truncation and ReLU by opening a masked value, element by element.

Notation: the opened value y^ = y + r mod 2^kin; alpha = y^ >> s, a its top bit; r' = r >> s, beta
its top bit; n = kin - 1 - s. A subscript names whose share it is: _d the data owner's, _o the model
owner's. A share of the model owner that the crypto provider sends is a *correction*.
"""

from __future__ import annotations

from typing import Any

from tests.reference import encoding
from tests.reference.encoding import pack
from tests.reference.session import Message, Session
from tests.reference.tensors import tensor

CHUNK = 6


def opening(run: Session, gate: int, source: int, kin: int) -> tuple[list[int], list[int]]:
    """(y^, r): what the model owner opens, and the mask that the crypto provider knows."""
    count = len(run.m[source].values)
    modulus = 1 << kin
    r_d = run.d.words(gate, "opening", count, run.bits)
    r_o = run.o.words(gate, "opening", count, run.bits)
    delta = [(m + r) % modulus for m, r in zip(run.m[source].values, r_d, strict=True)]
    run.offline[gate] = pack(delta, kin)
    opened = [
        (h + c + r) % modulus for h, c, r in zip(run.h[source].values, delta, r_o, strict=True)
    ]
    return opened, [(p + q) % modulus for p, q in zip(r_d, r_o, strict=True)]


def truncate(run: Session, gate: int, step: dict[str, Any]) -> None:
    """z = alpha - u - 2^(kin-2-s) with u = r' - (1 - a) v, v = beta 2^(kin-s)."""
    kin, s = step["gate"]["opened_bits"], step["gate"]["shift"]
    n = kin - 1 - s
    (source,) = step["inputs"]
    shape = tuple(step["shape"])
    opened, r = opening(run, gate, source, kin)
    count = len(r)
    shares_d = run.d.words(gate, "products", 2 * count, run.bits)
    fresh = run.fresh(gate, shape)
    corrections, tops, replies, half = [], [], [], []
    for i in range(count):
        # crypto provider
        high = r[i] >> s
        v = (high >> n) << (kin - s)
        r_share_d, v_share_d = shares_d[i::count]
        r_share_o, v_share_o = high - r_share_d, v - v_share_d
        corrections.append([r_share_o, v_share_o])
        # 1: model owner
        alpha = ((opened[i] + (1 << (kin - 2))) % (1 << kin)) >> s
        a = alpha >> n
        tops.append(a)
        z_o = alpha - (r_share_o - (1 - a) * v_share_o) - (1 << (kin - 2 - s))
        # 2: data owner
        z_d = -(r_share_d - (1 - a) * v_share_d)
        replies.append(z_d - fresh.values[i])
        half.append(z_o + replies[-1])
    run.corrections[gate] = encoding.words(planes(corrections), run.bits)
    run.to_data_owner.append(Message(gate, "TOP_BIT", 0, pack(tops, 1)))
    run.to_model_owner.append(Message(gate, "RERANDOMISED", 0, encoding.words(replies, run.bits)))
    run.m[gate] = run.known[gate] = fresh
    run.h[gate] = tensor(shape, half, run.bits)


def less(index: int, chunks: int) -> int:
    """f: lt_0 | eq_0 (lt_1 | eq_1 (...)); lt_j is bit 2j of the index, eq_j bit 2j + 1."""
    answer = 0
    for j in reversed(range(chunks)):
        lt, eq = index >> (2 * j) & 1, index >> (2 * j + 1) & 1
        answer = lt | (eq & answer)
    return answer


def chunk(value: int, j: int, n: int) -> int:
    """The j-th piece of 6 bits from the top of an n-bit number."""
    return value >> (n - CHUNK * (j + 1)) & 63


def look_up(tables: list[int], edge: int, alpha: int, n: int) -> int:
    """One party's level-1 bits lt_0, eq_0, lt_1, ... for the chunks of alpha; tables LT_0, LT_1.

    eq_j is entry alpha_j XOR the entry before; before the first stands 1, shared as ``edge``.
    """
    bits = 0
    for j, table in enumerate(tables):
        place = chunk(alpha, j, n)
        lt = table >> place & 1
        before = table >> (place - 1) & 1 if place else edge
        bits |= lt << (2 * j)
        if j < len(tables) - 1:
            bits |= (lt ^ before) << (2 * j + 1)
    return bits


def planes(elements: list[list[int]]) -> list[int]:
    """The first word of every element, then the second of every element, and so on."""
    return [word for plane in zip(*elements, strict=True) for word in plane]


def relu(run: Session, gate: int, step: dict[str, Any]) -> None:
    """z = d (alpha - u) with d = 1 xor a xor beta xor [alpha_low < r'_low]."""
    kin, s = step["gate"]["opened_bits"], step["gate"]["shift"]
    n = kin - 1 - s
    chunks = n // CHUNK
    index_bits = 2 * chunks - 1
    (source,) = step["inputs"]
    shape = tuple(step["shape"])
    opened, r = opening(run, gate, source, kin)
    count = len(r)
    fresh = run.fresh(gate, shape)
    masks = {
        (role, quantity): streams.words(gate, quantity, count, width)
        for role, streams in (("d", run.d), ("o", run.o))
        for quantity, width in (("selection", 16), ("decision", 8))
    }
    level1 = run.d.words(gate, "level1", chunks * count, 64)
    level2_words = 2**index_bits // 32
    level2 = run.d.words(gate, "level2", level2_words * count, 32)
    products = run.d.words(gate, "products", 5 * count, run.bits)
    tables1, tables2, shares = [], [], []
    message1, message2, message3, message4, half = [], [], [], [], []
    for i in range(count):
        mu_d = masks["d", "selection"][i] % (1 << index_bits)
        mu_o = masks["o", "selection"][i] % (1 << index_bits)
        rho = (masks["d", "decision"][i] ^ masks["o", "decision"][i]) & 1
        level1_d = level1[i::count]
        level2_d = sum(word << (32 * w) for w, word in enumerate(level2[i::count]))
        products_d = products[i::count]
        # crypto provider
        high = r[i] >> s
        beta, low = high >> n, high % (1 << n)
        level1_o = [((1 << chunk(low, j, n)) - 1) ^ level1_d[j] for j in range(chunks)]
        level2_o = level2_d
        for index in range(2**index_bits):
            level2_o ^= (less(index ^ mu_d ^ mu_o, chunks) ^ beta ^ rho ^ 1) << index
        v = beta << (kin - s)
        secrets = (rho, high, high * rho, v, v * rho)
        products_o = [p - q for p, q in zip(secrets, products_d, strict=True)]
        tables1.append(level1_o)
        tables2.append([level2_o >> (32 * w) & 0xFFFFFFFF for w in range(level2_words)])
        shares.append(products_o)
        # 1: model owner
        alpha = opened[i] >> s
        a = alpha >> n
        bits_o = look_up(level1_o, 1, alpha, n) ^ mu_o
        message1.append(alpha | bits_o << (n + 1))
        # 2: data owner
        bits_d = look_up(level1_d, 0, alpha, n) ^ mu_d
        index = bits_d ^ bits_o
        decision_d = level2_d >> index & 1
        message2.append(bits_d | decision_d << index_bits)
        # 3: model owner, who alone adds a
        decision_o = (level2_o >> index & 1) ^ a
        message3.append(decision_o)
        # 4: data owner
        decision = decision_d ^ decision_o
        message4.append(_share_of_z(0, alpha, a, decision, products_d) - fresh.values[i])
        half.append(_share_of_z(alpha, alpha, a, decision, products_o) + message4[-1])
    run.corrections[gate] = b"".join(
        encoding.words(planes(words), bits)
        for words, bits in ((tables1, 64), (shares, run.bits), (tables2, 32))
    )
    width = n + 1 + index_bits
    assert width % 8 == 0
    message1_bytes = planes([list(word.to_bytes(width // 8, "little")) for word in message1])
    run.to_data_owner.append(Message(gate, "OPENING", 0, bytes(message1_bytes)))
    run.to_model_owner.append(Message(gate, "SELECTION", 0, pack(message2, index_bits + 1)))
    run.to_data_owner.append(Message(gate, "DECISION", 0, pack(message3, 1)))
    run.to_model_owner.append(Message(gate, "RERANDOMISED", 0, encoding.words(message4, run.bits)))
    run.m[gate] = run.known[gate] = fresh
    run.h[gate] = tensor(shape, half, run.bits)


def _share_of_z(
    constant: int, alpha: int, a: int, decision: int, products: tuple[int, ...] | list[int]
) -> int:
    """A share of z = d^ (alpha - u) + (1 - 2 d^) (alpha rho - u rho).

    ``constant`` is alpha for the model owner, who alone adds what is public, and 0 for the other.
    """
    rho, high, high_rho, v, v_rho = products
    u = high - (1 - a) * v
    u_rho = high_rho - (1 - a) * v_rho
    return decision * (constant - u) + (1 - 2 * decision) * (alpha * rho - u_rho)
