"""The two ends of a plan and the exchange of a mask: input, output, remask.

Input: the data owner sends h = x - A, A a fresh mask. One ring word an element, no round trip of
its own (the first reply and the result make one).

Output: the model owner sends ``bits`` bits of h from bit ``position`` up; the data owner, who knows
the mask m, computes (h_bits 2^q + 2^(q-1) + m) mod 2^(q + bits), signed. At most half a unit off.
Only those bits of the result exist outside the sharing.

Remask: the crypto provider does not know a mask that contains F. The data owner draws a fresh A and
sends m - A offline; the model owner adds it to its h. Free online.

Source: docs/protocol.md, sections 2, 7. Leaks: the output's bits to the data owner; nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

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
    Reach,
    Site,
    fresh_mask,
    fresh_words,
)
from radiopaque.graph.bands import Band, Rows
from radiopaque.graph.plan import Output
from radiopaque.kernels.bits import packed_size, unpack
from radiopaque.kernels.device import Array
from radiopaque.ring import RingArray, signed
from radiopaque.wire.frames import Kind


class InputGate(Gate):
    """The image enters as x - A."""

    replies = 1

    def cost(self, site: Site) -> GateCost:
        return GateCost(to_model_owner_bytes=site.step.size * site.dtype.itemsize)

    def deal(self, context: Dealing, site: Site, masks: Sequence[Array | None]) -> Dealt:
        return Dealt(fresh_mask(context.data_owner, site))

    def prepare(self, context: Preparing, site: Site, masks: Sequence[Array]) -> Prepared:
        return Prepared(fresh_mask(context.streams, site))

    def load_answer(self, streams: DeviceStreams, site: Site, output_mask: RingArray) -> Array:
        return fresh_words(streams, site)

    def answer(self, context: Answering, site: Site, state: Array, band: Band, stage: int) -> None:
        device, image = context.device, context.image
        part = image if band.rows is None else image[band.rows.where]
        masked = device.contiguous(part).reshape(-1) - state[band.start : band.stop]
        for block, piece in band.blocks:
            message = device.download(masked[band.local(piece)]).view(np.uint8)
            context.link.send(site.number, Kind.IMAGE, block, message)

    def proceed(self, context: Evaluating, site: Site, state: Any, band: Band, stage: int) -> Array:
        device = context.device
        out = device.empty(band.size, site.dtype)
        for block, piece in band.blocks:
            length = piece.stop - piece.start
            out[band.local(piece)] = device.upload(
                context.link.receive_words(site.number, Kind.IMAGE, block, length, site.dtype)
            )
        return out


class OutputGate(Gate):
    """The result leaves as some bits of h."""

    replies = 0

    def cost(self, site: Site) -> GateCost:
        bits = _output(site).bits
        size = sum(packed_size(block, bits) for block in site.block_sizes())
        return GateCost(to_data_owner_bytes=size, round_trips=1)

    def deal(self, context: Dealing, site: Site, masks: Sequence[Array | None]) -> Dealt:
        return Dealt(masks[0])

    def prepare(self, context: Preparing, site: Site, masks: Sequence[Array]) -> Prepared:
        return Prepared(masks[0])

    def load_answer(self, streams: DeviceStreams, site: Site, output_mask: RingArray) -> RingArray:
        return output_mask

    def answer(
        self, context: Answering, site: Site, state: RingArray, band: Band, stage: int
    ) -> None:
        gate = _output(site)
        if context.result is None:
            context.result = np.empty(site.step.shape, np.int64)
        here = ... if band.rows is None else band.rows.where
        mask = state[here].reshape(-1).astype(np.uint64)
        stored = np.empty(band.size, np.int64)
        half = np.uint64(1 << gate.position >> 1)
        for block, piece in band.blocks:
            length, own = piece.stop - piece.start, band.local(piece)
            size = packed_size(length, gate.bits)
            data = context.link.receive(site.number, Kind.RESULT, block, size)
            top = unpack(data, length, gate.bits, np.dtype(np.uint64))
            value = (top << np.uint64(gate.position)) + half + mask[own]
            stored[own] = signed(value, gate.position + gate.bits)
        context.result[here] = stored.reshape(context.result[here].shape)

    def open(self, context: Evaluating, site: Site, state: Any, band: Band, value: Array) -> None:
        gate, device = _output(site), context.device
        h = device.contiguous(value).reshape(-1)
        for block, piece in band.blocks:
            top = device.shifted(h[band.local(piece)], gate.position)
            context.link.send(site.number, Kind.RESULT, block, device.pack(top, gate.bits))


class RemaskGate(Gate):
    """A derived mask is exchanged for a fresh one, offline."""

    def reach(self, site: Site) -> Reach:
        return Reach.ROWS

    def cost(self, site: Site) -> GateCost:
        return GateCost(offline_bytes=site.step.size * site.dtype.itemsize)

    def deal(self, context: Dealing, site: Site, masks: Sequence[Array | None]) -> Dealt:
        return Dealt(fresh_mask(context.data_owner, site))

    def prepare(self, context: Preparing, site: Site, masks: Sequence[Array]) -> Prepared:
        fresh = fresh_mask(context.streams, site)
        difference = (masks[0] - fresh).reshape(-1)
        return Prepared(fresh, context.streams.device.download(difference).view(np.uint8))

    def load_evaluate(
        self, streams: DeviceStreams, site: Site, corrections: Raw, offline: Raw
    ) -> Array:
        return streams.device.upload(offline.view(site.dtype).reshape(site.step.shape))

    def evaluate(
        self,
        context: Evaluating,
        site: Site,
        state: Array,
        values: Sequence[Array],
        rows: Rows | None = None,
    ) -> Array:
        return values[0] + (state if rows is None else state[rows.where])


def _output(site: Site) -> Output:
    gate = site.step.gate
    if not isinstance(gate, Output):
        raise TypeError(f"{type(gate).__name__} is not an Output gate")
    return gate
