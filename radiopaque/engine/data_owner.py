"""The data owner's walks: the offline message, and the online answers.

Offline it knows all of its masks beforehand and computes its share of every linear gate. What is
left online depends on streams alone, so a prepared session is a key and the mask of the result.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from radiopaque.engine.artefact import ArtefactId, MaskedWeights
from radiopaque.engine.material import region_frames
from radiopaque.errors import SessionStateError, TensorError
from radiopaque.gates import halves, sites
from radiopaque.gates.base import Answering, Preparing, Raw
from radiopaque.graph.plan import Plan
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

    def streams(self) -> Streams:
        """The data owner's streams of this session."""
        return Streams(self.key_d, self.artefact.plan_digest, self.session, "data-owner")


@dataclass(frozen=True)
class OfflineMessage:
    """Deltas and re-masks of one session, by gate, and the mask of the result.

    Sent once: the ledger must hold the binding digest durably before the first frame leaves.
    """

    session: bytes
    regions: dict[int, Raw] = field(repr=False)
    output_mask: RingArray = field(repr=False)

    def frames(self) -> Iterator[Frame]:
        """The OFFLINE frames in plan order."""
        for gate, region in self.regions.items():
            yield from region_frames(self.session, gate, Kind.OFFLINE, region)


def prepare(plan: Plan, key: SessionKey, weights: MaskedWeights) -> OfflineMessage:
    """Walk the plan on the masks. Costs one plaintext-sized ring convolution a layer."""
    context = Preparing(key.streams(), weights.maps)
    masks: dict[int, RingArray] = {}
    regions: dict[int, Raw] = {}
    freed = plan.last_uses()
    for site in sites(plan):
        with recorder.span("prepare", site.number):
            prepared = halves(site.step.gate).prepare(
                context, site, [masks[i] for i in site.step.inputs]
            )
        masks[site.number] = prepared.mask
        for value in freed[site.number]:
            del masks[value]
        if prepared.message is not None:
            regions[site.number] = prepared.message
    return OfflineMessage(key.session, regions, masks[len(plan.steps) - 1])


class DataOwnerRun:
    """A session about to meet its image: all streams expanded, in memory.

    Make it after the ledger says STARTED and the key is erased from it; it runs once, because
    every gate answers once.
    """

    def __init__(self, plan: Plan, key: SessionKey, output_mask: RingArray) -> None:
        self._plan = plan
        self._session = key.session
        self._spent = False
        streams = key.streams()
        self._states: dict[int, Any] = {}
        for site in sites(plan):
            with recorder.span("load", site.number):
                state = halves(site.step.gate).load_answer(streams, site, output_mask)
            if state is not None:
                self._states[site.number] = state
        key.key_d.erase()

    def infer(self, images: NDArray[np.floating], channel: Channel) -> NDArray[np.float64]:
        """The network's outputs for preprocessed images, both in the shapes of the plan.

        Raises TensorError before anything is sent for a tensor of another shape, NaN, or values
        beyond the compiled range, and SessionStateError when it is run again; ProtocolError and
        TransportError end the session.
        """
        encoded = encode_images(self._plan, images)
        if self._spent:
            raise SessionStateError("this session was already run; prepare another session")
        self._spent = True
        context = Answering(Link(channel, self._session), encoded)
        for site in sites(self._plan):
            with recorder.span("answer", site.number):
                halves(site.step.gate).answer(context, site, self._states.pop(site.number, None))
        if context.result is None:
            raise TypeError("the plan has no output gate")
        return decode(context.result, self._plan.output_step.scale)


def encode_images(plan: Plan, images: NDArray[np.floating]) -> RingArray:
    """Check and encode the network's input."""
    step = plan.input_step
    if images.shape != step.shape:
        raise TensorError(
            f"the model takes a tensor of shape {list(step.shape)}, got {list(images.shape)}"
        )
    return encode(images, step.scale, plan.ring_bits, step.limit)
