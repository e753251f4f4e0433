"""Which streams of the data owner would have made this view from another image?

For every image and every behaviour of the model owner there is exactly one answer: the map from
pads to messages is a bijection (docs/protocol.md, section 10.1). :func:`explain` computes it gate
by gate, which is that section's proof as a program.
"""

from __future__ import annotations

import numpy as np

from radiopaque.engine import artefact as artefacts
from radiopaque.gates import Site, sites
from radiopaque.gates.local import apply_local
from radiopaque.graph import plan as p
from radiopaque.kernels.cpu import CPU
from radiopaque.ring import RingArray
from radiopaque.wire.frames import Kind
from tests.protocol.fields import (
    INDEX_BITS,
    Payloads,
    ReluCorrection,
    Words,
    look_up,
    masked_words,
    mod,
    numbers,
    payloads,
    shared_product,
)
from tests.protocol.sessions import Pads, Session

ONE = np.uint64(1)


def explain(session: Session, image: RingArray) -> Pads:
    """The data owner's streams that turn ``image`` into this session's messages."""
    plan, k = session.plan, session.plan.ring_bits
    seen = payloads([*session.corrections, *session.offline, *session.to_model_owner])
    said = payloads(session.to_data_owner)
    b_maps = artefacts.weight_mask_maps(plan, session.artefact)
    f_maps = artefacts.MaskedWeights.parse(plan, session.masked_weights).maps
    own = session.model_owner_streams()
    pads: Pads = {}
    masks: dict[int, RingArray] = {}
    for site in sites(plan):
        gate, g, size = site.step.gate, site.number, site.step.size
        inputs = [masks[i] for i in site.step.inputs]
        if isinstance(gate, p.Input):
            mask = mod(site.in_bands(CPU, image), k) - numbers(seen[g, Kind.IMAGE], size, k)
            pads[g, "mask"] = mask
        elif isinstance(gate, p.LINEAR_GATES):
            share = mod(b_maps[g](inputs[0]), k) - numbers(seen[g, Kind.CORRECTION], size, k)
            pads[g, "product"] = share
            masks[g] = _words(site, mod(f_maps[g](inputs[0]), k) + share).reshape(site.step.shape)
            continue
        elif isinstance(gate, p.Remask):
            fresh = mod(inputs[0], k) - numbers(seen[g, Kind.OFFLINE], size, k)
            mask = site.in_bands(CPU, fresh.reshape(site.step.shape))
            pads[g, "mask"] = mask
        elif isinstance(gate, p.Truncate | p.Relu):
            kin = gate.opened_bits
            opened = mod(site.in_bands(CPU, inputs[0]), k)
            r_d = mod(numbers(seen[g, Kind.OFFLINE], size, kin) - opened, kin)
            pads[g, "opening"] = r_d
            r = mod(r_d + mod(own.words(g, "opening", (size,), site.dtype), k), kin)
            r >>= np.uint64(gate.shift)
            if isinstance(gate, p.Truncate):
                share = _truncation(site, gate, seen, said, r, pads)
            else:
                mu_o = mod(own.words(g, "selection", (size,), np.uint16), 9)
                rho_o = mod(own.words(g, "decision", (size,), np.uint8), 1)
                share = _comparison(site, gate, seen, said, (r, mu_o, rho_o), pads)
            mask = share - numbers(seen[g, Kind.RERANDOMISED], size, k)
            pads[g, "mask"] = mask
        else:
            if not isinstance(gate, p.Output):
                masks[g] = apply_local(CPU, site, inputs)
            continue
        masks[g] = site.arranged(CPU, _words(site, mask))
    return {name: mod(values, 64) for name, values in pads.items()}


def _words(site: Site, values: Words) -> RingArray:
    return mod(values, site.ring_bits).astype(site.dtype)


def _truncation(
    site: Site, gate: p.Truncate, seen: Payloads, said: Payloads, r: Words, pads: Pads
) -> Words:
    g, size, k = site.number, site.step.size, site.ring_bits
    n = np.uint64(gate.opened_bits - 1 - gate.shift)
    secrets = np.stack([r, (r >> n) << n + ONE])
    shares = secrets - numbers(seen[g, Kind.CORRECTION], 2 * size, k).reshape(2, size)
    pads[g, "products"] = shares
    return (ONE - numbers(said[g, Kind.TOP_BIT], size, 1)) * shares[1] - shares[0]


def _comparison(
    site: Site,
    gate: p.Relu,
    seen: Payloads,
    said: Payloads,
    drawn: tuple[Words, Words, Words],
    pads: Pads,
) -> Words:
    g, size = site.number, site.step.size
    r, mu_o, rho_o = drawn
    n = gate.compared_bits
    index = INDEX_BITS[n]
    correction = ReluCorrection.read(seen[g, Kind.CORRECTION], site, n)
    opening = masked_words(said[g, Kind.OPENING], size)
    alpha, o_bits = mod(opening, n + 1), opening >> np.uint64(n + 1)
    reply = numbers(seen[g, Kind.SELECTION], size, index + 1)
    d_bits, answer = mod(reply, index), reply >> np.uint64(index)

    tables = np.empty_like(correction.level1)
    for chunk in range(len(tables)):
        tables[chunk] = (ONE << (r >> np.uint64(n - 6 * (chunk + 1)) & np.uint64(63))) - ONE
    level1 = tables ^ correction.level1
    pads[g, "level1"] = level1

    mu_d = d_bits ^ look_up(level1, 0, alpha, n)
    pads[g, "selection"] = mu_d
    mu = mu_d ^ mod(mu_o, index)

    # the data owner's answer is one entry of its level-2 table, and so fixes rho
    chosen = d_bits ^ o_bits
    beta = r >> np.uint64(n)
    entry = _entry(correction.level2, chosen) ^ answer
    rho = entry ^ _less(chosen ^ mu, index) ^ beta ^ ONE
    pads[g, "decision"] = rho ^ rho_o
    every = np.arange(1 << index, dtype=np.uint64)
    table = _less(every ^ mu[:, None], index) ^ (beta ^ rho ^ ONE)[:, None]
    packed = np.packbits(table.astype(np.uint8), axis=1, bitorder="little").view("<u4")
    pads[g, "level2"] = packed.T ^ correction.level2

    v = beta << np.uint64(n + 1)
    values = np.stack([rho, r, r * rho, v, v * rho])
    pads[g, "products"] = values - correction.products
    decision = answer ^ numbers(said[g, Kind.DECISION], size, 1)
    return shared_product(0, pads[g, "products"].astype(np.uint64), alpha, decision, n)


def _entry(tables: Words, index: Words) -> Words:
    word = np.take_along_axis(tables, (index >> np.uint64(5)).astype(np.int64)[None], axis=0)
    return word[0] >> (index & np.uint64(31)) & ONE


def _less(index: Words, bits: int) -> Words:
    """f: less in the first chunk, or equal there and less in the rest."""
    less = np.zeros_like(index)
    for chunk in reversed(range((bits + 1) // 2)):
        equal = index >> np.uint64(2 * chunk + 1) & ONE
        less = index >> np.uint64(2 * chunk) & ONE | equal & less
    return less
