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
    Site,
)
from radiopaque.gates.relu import fresh_mask
from radiopaque.graph.plan import Output
from radiopaque.kernels.bits import packed_size, unpack
from radiopaque.kernels.device import Array
from radiopaque.ring import RingArray, signed
from radiopaque.wire.frames import Kind


class InputGate(Gate):
    """The image enters as x - A."""

    def cost(self, site: Site) -> GateCost:
        return GateCost(to_model_owner_bytes=site.step.size * site.dtype.itemsize)

    def deal(self, context: Dealing, site: Site, masks: Sequence[Array | None]) -> Dealt:
        return Dealt(fresh_mask(context.data_owner, site))

    def prepare(self, context: Preparing, site: Site, masks: Sequence[Array]) -> Prepared:
        return Prepared(fresh_mask(context.streams, site))

    def load_answer(self, streams: DeviceStreams, site: Site, output_mask: RingArray) -> Array:
        return fresh_mask(streams, site)

    def answer(self, context: Answering, site: Site, state: Array) -> None:
        masked = (context.image - state).reshape(-1)
        for block, piece in site.blocks():
            message = context.device.download(masked[piece]).view(np.uint8)
            context.link.send(site.number, Kind.IMAGE, block, message)

    def evaluate(
        self, context: Evaluating, site: Site, state: Any, values: Sequence[Array]
    ) -> Array:
        device = context.device
        out = device.empty(site.step.size, site.dtype)
        for block, piece in site.blocks():
            length = piece.stop - piece.start
            out[piece] = device.upload(
                context.link.receive_words(site.number, Kind.IMAGE, block, length, site.dtype)
            )
        return out.reshape(site.step.shape)


class OutputGate(Gate):
    """The result leaves as some bits of h."""

    def cost(self, site: Site) -> GateCost:
        bits = _output(site).bits
        size = sum(packed_size(piece.stop - piece.start, bits) for _, piece in site.blocks())
        return GateCost(to_data_owner_bytes=size, round_trips=1)

    def deal(self, context: Dealing, site: Site, masks: Sequence[Array | None]) -> Dealt:
        return Dealt(masks[0])

    def prepare(self, context: Preparing, site: Site, masks: Sequence[Array]) -> Prepared:
        return Prepared(masks[0])

    def load_answer(self, streams: DeviceStreams, site: Site, output_mask: RingArray) -> RingArray:
        return output_mask.reshape(-1)

    def answer(self, context: Answering, site: Site, state: RingArray) -> None:
        gate = _output(site)
        stored = np.empty(site.step.size, np.int64)
        half = np.uint64(1 << gate.position >> 1)
        for block, piece in site.blocks():
            length = piece.stop - piece.start
            size = packed_size(length, gate.bits)
            data = context.link.receive(site.number, Kind.RESULT, block, size)
            top = unpack(data, length, gate.bits, np.dtype(np.uint64))
            value = (top << np.uint64(gate.position)) + half + state[piece].astype(np.uint64)
            stored[piece] = signed(value, gate.position + gate.bits)
        context.result = stored.reshape(site.step.shape)

    def evaluate(
        self, context: Evaluating, site: Site, state: Any, values: Sequence[Array]
    ) -> Array:
        gate, device = _output(site), context.device
        h = values[0].reshape(-1)
        for block, piece in site.blocks():
            message = device.pack(device.shifted(h[piece], gate.position), gate.bits)
            context.link.send(site.number, Kind.RESULT, block, message)
        return values[0]


class RemaskGate(Gate):
    """A derived mask is exchanged for a fresh one, offline."""

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
        self, context: Evaluating, site: Site, state: Array, values: Sequence[Array]
    ) -> Array:
        return values[0] + state


def _output(site: Site) -> Output:
    gate = site.step.gate
    if not isinstance(gate, Output):
        raise TypeError(f"{type(gate).__name__} is not an Output gate")
    return gate
