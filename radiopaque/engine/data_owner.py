"""The data owner's walks: the offline message, and the online answers.

Offline it knows all of its masks beforehand and computes its share of every linear gate. What is
left online depends on streams alone, so a prepared session is a key and the mask of the result.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from radiopaque.engine.artefact import ArtefactId, MaskedWeights
from radiopaque.engine.material import expected_state_bytes, region_frames
from radiopaque.engine.window import WINDOW_BYTES, Pending, Window
from radiopaque.errors import TensorError
from radiopaque.gates import halves, sites
from radiopaque.gates.base import (
    Answering,
    DeviceStreams,
    Preparing,
    Raw,
    Site,
    fresh_mask,
)
from radiopaque.gates.schedule import schedule
from radiopaque.graph.plan import FRESH_GATES, Plan
from radiopaque.kernels.cpu import CPU
from radiopaque.kernels.device import Array, Device
from radiopaque.prg import SecretKey, Streams
from radiopaque.ring import RingArray, decode, encode
from radiopaque.telemetry import recorder
from radiopaque.transport.channel import Channel
from radiopaque.transport.link import Link
from radiopaque.wire.frames import Frame, Kind


@dataclass(frozen=True)
class SessionKey:
    """A session as the data owner holds it: the public names and key_D."""

    artefact: ArtefactId
    session: bytes
    key_d: SecretKey = field(repr=False)

    def streams(self, device: Device = CPU) -> DeviceStreams:
        """The data owner's streams of this session."""
        own = Streams(self.key_d, self.artefact.plan_digest, self.session, "data-owner")
        return DeviceStreams(own, device)


@dataclass(frozen=True)
class OfflineMessage:
    """The mask of a session's result, and its deltas and re-masks, computed as they are sent.

    Sent once: the ledger must hold the binding digest durably before the first frame leaves. The
    key must live until the last one has.
    """

    plan: Plan = field(repr=False)
    key: SessionKey
    weights: MaskedWeights = field(repr=False)
    output_mask: RingArray = field(repr=False)

    def regions(self) -> Iterator[tuple[int, Raw]]:
        """(gate, region) in plan order: a walk on the masks, no further than it is asked for.

        Costs one plaintext-sized ring convolution a layer.
        """
        context = Preparing(self.key.streams(self.weights.device), self.weights.maps)
        masks: dict[int, Array] = {}
        freed = self.plan.last_uses()
        for site in sites(self.plan):
            with recorder.span("prepare", site.number):
                prepared = halves(site.step.gate).prepare(
                    context, site, [masks[i] for i in site.step.inputs]
                )
            masks[site.number] = prepared.mask
            for value in freed[site.number]:
                del masks[value]
            if prepared.message is not None:
                yield site.number, prepared.message

    def frames(self) -> Iterator[Frame]:
        """The OFFLINE frames in plan order."""
        for gate, region in self.regions():
            yield from region_frames(self.key.session, gate, Kind.OFFLINE, region)


def prepare(plan: Plan, key: SessionKey, weights: MaskedWeights) -> OfflineMessage:
    """A session's offline message, of which only the mask of the result is computed yet."""
    return OfflineMessage(plan, key, weights, _output_mask(plan, key, weights))


def _output_mask(plan: Plan, key: SessionKey, weights: MaskedWeights) -> RingArray:
    """The mask of the result: a walk from the last fresh masks, which depend on no other gate."""
    last = len(plan.steps) - 1
    needed = {last}
    for number in range(last, -1, -1):
        if number in needed and not isinstance(plan.steps[number].gate, FRESH_GATES):
            needed.update(plan.steps[number].inputs)
    context = Preparing(key.streams(weights.device), weights.maps)
    masks: dict[int, Array] = {}
    freed = plan.last_uses()
    for site in sites(plan):
        if site.number in needed:
            gate = site.step.gate
            if isinstance(gate, FRESH_GATES):
                masks[site.number] = fresh_mask(context.streams, site)
            else:
                inputs = [masks[i] for i in site.step.inputs]
                masks[site.number] = halves(gate).prepare(context, site, inputs).mask
        for value in freed[site.number]:
            masks.pop(value, None)
    return weights.device.download(masks[last])


class DataOwnerRun:
    """A session about to meet its image: as many of its streams as the window takes are expanded.

    Make it after the ledger says STARTED and the key is erased from it; it runs once, because its
    window is walked once. The key is erased when all streams are expanded, at the latest when
    the run is over or closed.
    """

    def __init__(
        self,
        plan: Plan,
        key: SessionKey,
        output_mask: RingArray,
        window_bytes: int = WINDOW_BYTES,
        device: Device = CPU,
    ) -> None:
        self._plan = plan
        self._events = schedule(plan).data_owner
        self._device = device
        self._session = key.session
        self._window = Window(_loading(plan, key.streams(device), key, output_mask), window_bytes)

    @property
    def peak_bytes(self) -> int:
        """Most bytes of prepared gates that were in memory at once."""
        return self._window.peak_bytes

    def close(self) -> None:
        """Free the streams that are left. A run that has begun does it too."""
        self._window.close()

    def infer(self, images: NDArray[np.floating], channel: Channel) -> NDArray[np.float64]:
        """The network's outputs for preprocessed images, both in the shapes of the plan.

        Raises TensorError before anything is sent for a tensor of another shape, NaN, or values
        beyond the compiled range, and SessionStateError when it is run again; ProtocolError and
        TransportError end the session.
        """
        encoded = encode_images(self._plan, images)
        device = self._device
        link = Link(channel, self._session)
        context = Answering(link, device.upload(encoded), device)
        with self._window:
            for event in self._events:
                site = event.site
                state = self._window.take(site.number)
                link.more = event.more
                with recorder.span("answer", site.number):
                    halves(site.step.gate).answer(context, site, state, event.band, event.stage)
                # before the next one is waited for
                del state
                if event.last_answer:
                    self._window.free(site.number)
        if context.result is None:
            raise TypeError("the plan has no output gate")
        return decode(context.result, self._plan.output_step.scale)


def _loading(
    plan: Plan, streams: DeviceStreams, key: SessionKey, output_mask: RingArray
) -> Generator[Pending]:
    try:
        for site in sites(plan):
            load = partial(_load, streams, site, output_mask)
            yield Pending(site.number, expected_state_bytes(site), load)
    finally:
        key.key_d.erase()


def _load(streams: DeviceStreams, site: Site, output_mask: RingArray) -> Any:
    with recorder.span("load", site.number):
        return halves(site.step.gate).load_answer(streams, site, output_mask)


def encode_images(plan: Plan, images: NDArray[np.floating]) -> RingArray:
    """Check and encode the network's input."""
    step = plan.input_step
    if images.shape != step.shape:
        raise TensorError(
            f"the model takes a tensor of shape {list(step.shape)}, got {list(images.shape)}"
        )
    return encode(images, step.scale, plan.ring_bits, step.limit)
