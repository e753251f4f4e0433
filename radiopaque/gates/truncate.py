"""Truncation alone: z = y >> s, stochastically rounded, with a fresh mask.

The model owner adds 2^(opened_bits - 2), so that the sign is known to be +; then the comparison of
:mod:`radiopaque.gates.relu` has a known outcome and z = alpha - u - 2^(opened_bits - 2 - s) with
u = r' - (1-a) v. Only a, the top bit of the opening, goes to the data owner.

Online:
  1. O -> D  TOP_BIT       a
  2. D -> O  RERANDOMISED  e = z_D - A; O sets h = z_O + e

Source: docs/protocol.md, section 7. Leaks: nothing; a is padded by r, e by A.
Round trips: 1. Bytes online, an element: 1/8 to D, one ring word to O. Offline: two ring words from
the crypto provider, delta from the data owner. Exact for |y| <= 2^(opened_bits - 2).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from radiopaque.gates.base import (
    Answering,
    Dealing,
    Dealt,
    DeviceStreams,
    Evaluating,
    Gate,
    GateCost,
    Prepared,
    Preparing,
    Raw,
    Site,
    fresh_mask,
    fresh_words,
)
from radiopaque.gates.opening import delta_bytes, delta_message, opening_mask, opening_offset
from radiopaque.graph.bands import Band
from radiopaque.graph.plan import Truncate
from radiopaque.kernels.bits import packed_size
from radiopaque.kernels.device import Array
from radiopaque.ring import RingArray
from radiopaque.wire.frames import Kind

PRODUCTS = 2  # r', v


@dataclass(frozen=True)
class _DataOwnerState:
    products: Array = field(repr=False)
    mask: Array = field(repr=False)


@dataclass(frozen=True)
class _ModelOwnerState:
    offset: Array = field(repr=False)
    products: Array = field(repr=False)
    kept: dict[int, Array] = field(default_factory=dict, repr=False)
    """Of a band between its messages: the own share of the truncated value."""


class TruncateGate(Gate):
    """y >> s. See the module's text."""

    replies = 1

    def cost(self, site: Site) -> GateCost:
        size, word = site.step.size, site.dtype.itemsize
        return GateCost(
            correction_bytes=size * PRODUCTS * word,
            offline_bytes=delta_bytes(site, _gate(site).opened_bits),
            to_model_owner_bytes=size * word,
            to_data_owner_bytes=sum(packed_size(block, 1) for block in site.block_sizes()),
            round_trips=1,
            truncations=size,
        )

    def deal(self, context: Dealing, site: Site, masks: Sequence[Array | None]) -> Dealt:
        gate, device = _gate(site), context.device
        products = _products(context.data_owner, site)
        device.deal_truncation(
            opening_mask(context.data_owner, site),
            opening_mask(context.model_owner, site),
            gate.opened_bits,
            gate.shift,
            products,
        )
        return Dealt(fresh_mask(context.data_owner, site), device.download(products))

    def prepare(self, context: Preparing, site: Site, masks: Sequence[Array]) -> Prepared:
        message = delta_message(context.streams, site, masks[0], _gate(site).opened_bits)
        return Prepared(fresh_mask(context.streams, site), message)

    def load_answer(
        self, streams: DeviceStreams, site: Site, output_mask: RingArray
    ) -> _DataOwnerState:
        return _DataOwnerState(_products(streams, site), fresh_words(streams, site))

    def answer(
        self, context: Answering, site: Site, state: _DataOwnerState, band: Band, stage: int
    ) -> None:
        device = context.device
        for block, piece in band.blocks:
            length = piece.stop - piece.start
            data = context.link.receive(site.number, Kind.TOP_BIT, block, packed_size(length, 1))
            share = device.empty(length, site.dtype)
            device.finish_truncation(
                device.unpack(data, length, 1, np.dtype(np.uint8)),
                state.products,
                state.mask,
                piece.start,
                share,
            )
            message = device.download(share).view(np.uint8)
            context.link.send(site.number, Kind.RERANDOMISED, block, message)

    def load_evaluate(
        self, streams: DeviceStreams, site: Site, corrections: Raw, offline: Raw
    ) -> _ModelOwnerState:
        return _ModelOwnerState(
            opening_offset(streams, site, offline, _gate(site).opened_bits),
            streams.device.upload(corrections.view(site.dtype).reshape(PRODUCTS, site.step.size)),
        )

    def open(
        self,
        context: Evaluating,
        site: Site,
        state: _ModelOwnerState,
        band: Band,
        value: Array,
    ) -> None:
        gate, device = _gate(site), context.device
        h = device.contiguous(value).reshape(-1)
        share = device.empty(band.size, site.dtype)
        for block, piece in band.blocks:
            here = band.local(piece)
            top = device.empty(piece.stop - piece.start, np.uint8)
            device.open_truncation(
                h[here],
                state.offset,
                state.products,
                piece.start,
                gate.opened_bits,
                gate.shift,
                top,
                share[here],
            )
            context.link.send(site.number, Kind.TOP_BIT, block, device.pack(top, 1))
        state.kept[band.number] = share

    def proceed(
        self, context: Evaluating, site: Site, state: _ModelOwnerState, band: Band, stage: int
    ) -> Array:
        out = state.kept.pop(band.number)
        for block, piece in band.blocks:
            other = context.link.receive_words(
                site.number, Kind.RERANDOMISED, block, piece.stop - piece.start, site.dtype
            )
            out[band.local(piece)] += context.device.upload(other)
        return out


def _gate(site: Site) -> Truncate:
    gate = site.step.gate
    if not isinstance(gate, Truncate):
        raise TypeError(f"{type(gate).__name__} is not a Truncate gate")
    return gate


def _products(streams: DeviceStreams, site: Site) -> Array:
    return streams.words(site.number, "products", (PRODUCTS, site.step.size), site.dtype)
