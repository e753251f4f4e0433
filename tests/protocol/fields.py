"""A party's view as fields of bits that must be uniform, each with what its receiver can add to it.

A message is a one-time pad only together with everything else that its receiver has. So besides
every message as it arrives there are the quantities that the receiver can compute from several
messages and its own streams: each is uniform because of one mask, and shows a value without it.
Arithmetic here is numpy on 64-bit words, apart from the code under test; local gates, the linear
maps of public or own tensors and the order of bands are the product's.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from radiopaque.engine import artefact as artefacts
from radiopaque.gates import Site, halves, sites
from radiopaque.gates.base import Evaluating
from radiopaque.graph import plan as p
from radiopaque.kernels.cpu import CPU
from radiopaque.wire.frames import Frame, Kind
from tests.protocol.sessions import Session, schedule

Words = NDArray[np.uint64]
Payloads = dict[tuple[int, Kind], NDArray[np.uint8]]
Share = Generator["Field", None, Words]
"""Fields, and the party's share in the end."""
INDEX_BITS = {18: 5, 24: 7, 30: 9}
_PRODUCTS = ("rho", "r'", "r' rho", "v", "v rho")


@dataclass(frozen=True)
class Field:
    """Numbers of ``width`` bits at one gate. ``xor``: the group in which two are compared."""

    name: str
    gate: int
    width: int
    values: Words = field(repr=False)
    xor: bool = False


def payloads(frames: Iterable[Frame]) -> Payloads:
    """All blocks of each message, joined."""
    parts: dict[tuple[int, Kind], list[bytes]] = {}
    for frame in frames:
        parts.setdefault((frame.gate, frame.kind), []).append(bytes(frame.payload))
    return {key: np.frombuffer(b"".join(blocks), np.uint8) for key, blocks in parts.items()}


def numbers(raw: NDArray[np.uint8], count: int, width: int) -> Words:
    """``count`` numbers of ``width`` bits, least significant bit first."""
    if width in (8, 16, 32, 64):
        return raw[: count * width // 8].view(f"<u{width // 8}").astype(np.uint64)
    bits = np.unpackbits(raw, count=count * width, bitorder="little").reshape(count, width)
    places = np.uint64(1) << np.arange(width, dtype=np.uint64)
    return (bits * places).sum(axis=1, dtype=np.uint64)


def mod(values: NDArray[np.unsignedinteger], bits: int) -> Words:
    """Flat 64-bit words modulo 2**bits; of XOR masks the low bits count."""
    return values.reshape(-1).astype(np.uint64) & np.uint64((1 << bits) - 1)


def look_up(tables: Words, edge: int, alpha: Words, n: int) -> Words:
    """(lt_0, eq_0, lt_1, ...) as bits 0, 1, 2, ... from level-1 tables [chunks, size].

    ``edge`` is the party's share of the entry before the first: 1 at the model owner.
    """
    one = np.uint64(1)
    bits = np.zeros(alpha.size, np.uint64)
    for chunk, table in enumerate(tables):
        place = alpha >> np.uint64(n - 6 * (chunk + 1)) & np.uint64(63)
        lt = table >> place & one
        bits |= lt << np.uint64(2 * chunk)
        if chunk < len(tables) - 1:
            before = np.where(place > 0, table >> (place - (place > 0)) & one, np.uint64(edge))
            bits |= (lt ^ before) << np.uint64(2 * chunk + 1)
    return bits


def masked_words(raw: NDArray[np.uint8], size: int) -> Words:
    """The words of an opening, which come as byte planes, lowest first."""
    planes = raw.reshape(-1, size).astype(np.uint64)
    places = 8 * np.arange(len(planes), dtype=np.uint64)
    words: Words = (planes << places[:, None]).sum(axis=0, dtype=np.uint64)
    return words


@dataclass(frozen=True)
class ReluCorrection:
    """A comparison's correction, taken apart; each [planes, size]."""

    level1: Words
    products: Words
    level2: Words

    @classmethod
    def read(cls, raw: NDArray[np.uint8], site: Site, n: int) -> ReluCorrection:
        size, index, k = site.step.size, INDEX_BITS[n], site.ring_bits
        chunks = n // 6
        first = size * chunks * 8
        second = first + size * 5 * k // 8
        return cls(
            numbers(raw[:first], size * chunks, 64).reshape(chunks, size),
            numbers(raw[first:second], size * 5, k).reshape(5, size),
            numbers(raw[second:], size * 2**index // 32, 32).reshape(-1, size),
        )


def shared_product(
    public: Words | int, products: Words, alpha: Words, decision: Words, n: int
) -> Words:
    """A party's share of z = d (alpha - u); ``public`` is 1 for the model owner."""
    low = np.uint64(1) - (alpha >> np.uint64(n) & np.uint64(1))
    rho, r, r_rho, v, v_rho = products
    u, u_rho = r - low * v, r_rho - low * v_rho
    plain = decision * (alpha * np.uint64(public) - u)
    return plain + (np.uint64(1) - decision - decision) * (alpha * rho - u_rho)


def model_owner_fields(session: Session) -> Iterator[Field]:
    """Everything in the model owner's view that must be uniform."""
    received = payloads([*session.corrections, *session.offline, *session.to_model_owner])
    sent = payloads(session.to_data_owner)
    streams, k = session.model_owner_streams(), session.plan.ring_bits
    b_maps = artefacts.weight_mask_maps(session.plan, session.artefact)
    context = Evaluating(None, session.model.maps, session.model.constants)  # type: ignore[arg-type]
    shares: dict[int, NDArray[np.unsignedinteger]] = {}
    for site in sites(session.plan):
        gate, g, size = site.step.gate, site.number, site.step.size
        inputs = [shares[i] for i in site.step.inputs]
        if isinstance(gate, p.Input):
            out = numbers(received[g, Kind.IMAGE], size, k)
            yield Field("image less mask", g, k, out)
            out = _arranged(site, out)
        elif isinstance(gate, p.LINEAR_GATES):
            correction = numbers(received[g, Kind.CORRECTION], size, k)
            yield Field("product", g, k, correction)
            yield Field("B * h plus product", g, k, mod(b_maps[g](inputs[0]), k) + correction)
            out = mod(session.model.maps[g](inputs[0]), k) + correction
        elif isinstance(gate, p.Remask):
            message = numbers(received[g, Kind.OFFLINE], size, k)
            yield Field("re-mask", g, k, message)
            out = mod(inputs[0], k) + message
            yield Field("share after re-mask", g, k, mod(out, k))
        elif isinstance(gate, p.Truncate | p.Relu):
            delta = numbers(received[g, Kind.OFFLINE], size, gate.opened_bits)
            yield Field("delta", g, gate.opened_bits, delta)
            masked = mod(site.in_bands(CPU, inputs[0]), k) + delta
            yield Field("h plus delta", g, gate.opened_bits, mod(masked, gate.opened_bits))
            opened = masked + mod(streams.words(g, "opening", (size,), site.dtype), k)
            message = numbers(received[g, Kind.RERANDOMISED], size, k)
            yield Field("re-randomised share", g, k, message)
            if isinstance(gate, p.Truncate):
                own = yield from _truncation(site, gate, received, sent, opened)
            else:
                decision = streams.words(g, "decision", (size,), np.uint8)
                mu = streams.words(g, "selection", (size,), np.uint16)
                mu_o, rho_o = mod(mu, 9), mod(decision, 1)
                own = yield from _comparison(site, gate, received, sent, mu_o, rho_o)
            out = own + message
            yield Field("share after re-randomising", g, k, mod(out, k))
            out = _arranged(site, out)
        elif isinstance(gate, p.Output):
            continue
        else:
            shares[g] = halves(gate).evaluate(context, site, None, inputs)
            continue
        shares[g] = mod(out, k).astype(site.dtype).reshape(site.step.shape)


def _arranged(site: Site, words: Words) -> NDArray[np.unsignedinteger]:
    return site.arranged(CPU, mod(words, site.ring_bits).astype(site.dtype))


def _truncation(
    site: Site, gate: p.Truncate, received: Payloads, sent: Payloads, opened: Words
) -> Share:
    g, size, k = site.number, site.step.size, site.ring_bits
    products = numbers(received[g, Kind.CORRECTION], 2 * size, k).reshape(2, size)
    for plane, name in zip(products, ("r'", "v"), strict=True):
        yield Field(f"truncation correction {name}", g, k, plane)
    kin, s = np.uint64(gate.opened_bits), np.uint64(gate.shift)
    centre = np.uint64(1) << kin - np.uint64(2)
    alpha = mod(opened + centre, gate.opened_bits) >> s
    low = np.uint64(1) - numbers(sent[g, Kind.TOP_BIT], size, 1)
    return alpha - products[0] + low * products[1] - (centre >> s)


def _comparison(
    site: Site, gate: p.Relu, received: Payloads, sent: Payloads, mu_o: Words, rho_o: Words
) -> Share:
    g, size = site.number, site.step.size
    n, k = gate.compared_bits, site.ring_bits
    index = INDEX_BITS[n]
    correction = ReluCorrection.read(received[g, Kind.CORRECTION], site, n)
    yield Field("level 1", g, 64, correction.level1.reshape(-1), xor=True)
    yield Field("level 2", g, 32, correction.level2.reshape(-1), xor=True)
    for plane, name in zip(correction.products, _PRODUCTS, strict=True):
        yield Field(f"correction {name}", g, k, plane)
    reply = numbers(received[g, Kind.SELECTION], size, index + 1)
    yield Field("selection", g, index + 1, reply, xor=True)
    opening = masked_words(sent[g, Kind.OPENING], size)
    alpha = mod(opening, n + 1)
    selector = mod(reply, index) ^ look_up(correction.level1, 1, alpha, n)
    yield Field("selection with own tables", g, index, selector, xor=True)
    decision = reply >> np.uint64(index) ^ numbers(sent[g, Kind.DECISION], size, 1)
    yield Field("decision with own mask", g, 1, decision ^ rho_o, xor=True)
    opened = mod(reply, index) ^ opening >> np.uint64(n + 1)
    yield Field("selection with own mask", g, index, opened ^ mod(mu_o, index), xor=True)
    return shared_product(1, correction.products, alpha, decision, n)


def data_owner_fields(session: Session) -> Iterator[Field]:
    """Everything in the data owner's view that must be uniform (of the result: its masked bits)."""
    received, sent = payloads(session.to_data_owner), payloads(session.to_model_owner)
    streams, k = session.data_owner_streams(), session.plan.ring_bits
    start = 0
    for g, shape in session.plan.weight_shapes():
        size = int(np.prod(shape))
        raw = np.frombuffer(session.masked_weights, np.uint8)[start : start + size * k // 8]
        yield Field("masked weights", g, k, numbers(raw, size, k))
        start += size * k // 8
    for site in sites(session.plan):
        gate, g, size = site.step.gate, site.number, site.step.size
        if isinstance(gate, p.Output):
            result = numbers(received[g, Kind.RESULT], size, gate.bits)
            yield Field("masked result", g, gate.bits, result)
        if not isinstance(gate, p.Truncate | p.Relu):
            continue
        kin, s = gate.opened_bits, np.uint64(gate.shift)
        r_d = mod(streams.words(g, "opening", (size,), site.dtype), kin)
        if isinstance(gate, p.Truncate):
            top = numbers(received[g, Kind.TOP_BIT], size, 1)
            yield Field("top bit", g, 1, top, xor=True)
            own = mod(r_d + (np.uint64(1) << np.uint64(kin - 2)), kin) >> np.uint64(kin - 1)
            yield Field("top bit with own mask", g, 1, top ^ own, xor=True)
            continue
        n = gate.compared_bits
        index = INDEX_BITS[n]
        opening = masked_words(received[g, Kind.OPENING], size)
        yield Field("opening", g, n + 1 + index, opening)
        yield Field("opening less own mask", g, n + 1, mod(opening - (r_d >> s), n + 1))
        reply = numbers(sent[g, Kind.SELECTION], size, index + 1)
        mu_d = mod(streams.words(g, "selection", (size,), np.uint16), index)
        selector = mod(reply, index) ^ opening >> np.uint64(n + 1) ^ mu_d
        yield Field("opened selection with own mask", g, index, selector, xor=True)
        decision = numbers(received[g, Kind.DECISION], size, 1)
        yield Field("decision bit", g, 1, decision, xor=True)
        rho_d = mod(streams.words(g, "decision", (size,), np.uint8), 1)
        opened = decision ^ reply >> np.uint64(index) ^ rho_d
        yield Field("opened decision with own mask", g, 1, opened, xor=True)


def crypto_provider_fields(session: Session) -> Iterator[Field]:
    """Keys and ids: all that the crypto provider gets besides the public plan."""
    named = {
        "key_D": session.key_d,
        "key_O": session.key_o,
        "key_B": session.artefact.key_b.reveal(),
        "session id": session.session,
        "artefact id": session.artefact.id.artefact,
    }
    for name, value in named.items():
        yield Field(name, 0, 8, np.frombuffer(value, np.uint8).astype(np.uint64), xor=True)


def byte_fields(plan: p.Plan, frames: Iterable[Frame]) -> Iterator[Field]:
    """Every payload as bytes, by kind; a last byte with padding bits is left out."""
    widths = {(due.gate, due.kind): due.count * due.width for due in schedule(plan)}
    for (gate, kind), raw in payloads(frames).items():
        whole = raw[: widths[gate, kind] // 8].astype(np.uint64)
        yield Field(f"bytes of {kind.name}", gate, 8, whole, xor=True)


def model_owner_view(session: Session) -> Iterator[Field]:
    """All that the model owner hears, as it is and with what it can add to it."""
    yield from model_owner_fields(session)
    for frames in (session.corrections, session.offline, session.to_model_owner):
        yield from byte_fields(session.plan, frames)


def data_owner_view(session: Session) -> Iterator[Field]:
    """All that the data owner hears, as it is and with what it can add to it."""
    yield from data_owner_fields(session)
    yield from byte_fields(session.plan, session.to_data_owner)
