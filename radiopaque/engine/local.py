"""All three parties in one process, over the in-memory channel: for tests and evaluation.

The same gates, kernels, messages and counters as over the network; only the processes are missing.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from radiopaque.engine import artefact as artefacts
from radiopaque.engine import crypto_provider, data_owner, model_owner
from radiopaque.engine.material import RegionReader, assemble
from radiopaque.gates.base import Raw
from radiopaque.graph.plan import Plan, plan_digest
from radiopaque.graph.weights import Weights
from radiopaque.kernels.cpu import CPU
from radiopaque.kernels.device import Device
from radiopaque.prg import SecretKey, new_id
from radiopaque.transport.channel import Channel, Counters
from radiopaque.transport.memory import connect
from radiopaque.wire.frames import Frame, Kind
from radiopaque.wire.plans import encode_plan


@dataclass(frozen=True)
class LocalResult:
    """Outputs, in the shape of the plan's last step, and what the run cost."""

    outputs: NDArray[np.float64] = field(repr=False)
    counters: Counters
    online_seconds: float
    offline_seconds: float
    prepare_seconds: float


@dataclass(frozen=True)
class Devices:
    """Where each party computes."""

    crypto_provider: Device = CPU
    model_owner: Device = CPU
    data_owner: Device = CPU

    @classmethod
    def all(cls, device: Device) -> Devices:
        """The same for each."""
        return cls(device, device, device)


class LocalDeployment:
    """One artefact with its three parties; every :meth:`infer` is a session of its own."""

    def __init__(self, plan: Plan, weights: Weights, devices: Devices | None = None) -> None:
        self.plan = plan
        self.devices = devices or Devices()
        self.key = artefacts.ArtefactKey.generate(plan_digest(encode_plan(plan)))
        self.model = model_owner.Model(plan, weights, self.devices.model_owner)
        self.mask_maps = artefacts.weight_mask_maps(plan, self.key, self.devices.crypto_provider)
        self.masked = artefacts.MaskedWeights.parse(
            plan, artefacts.mask_weights(plan, weights, self.key), self.devices.data_owner
        )

    def infer(self, images: NDArray[np.floating]) -> LocalResult:
        """One inference from dealing to the decoded outputs."""
        plan, artefact, devices = self.plan, self.key.id, self.devices
        data_owner.encode_images(plan, images)
        session, key_d, key_o = new_id(), SecretKey.generate(), SecretKey.generate()
        started = time.perf_counter()
        own = data_owner.SessionKey(artefact, session, key_d)
        message = data_owner.prepare(plan, own, self.masked)
        offline = _assemble(plan, session, Kind.OFFLINE, message.frames())
        inputs = crypto_provider.DealInputs(
            plan, artefact, session, key_d, key_o, self.mask_maps, devices.crypto_provider
        )
        corrections = _assemble(plan, session, Kind.CORRECTION, crypto_provider.deal(inputs))
        dealt = time.perf_counter()
        material = model_owner.Material(corrections.items(), offline.items())
        with (
            closing(
                model_owner.ModelOwnerRun(self.model, artefact, session, key_o, material)
            ) as serving,
            closing(
                data_owner.DataOwnerRun(plan, own, message.output_mask, device=devices.data_owner)
            ) as asking,
        ):
            prepared = time.perf_counter()
            channel: Channel = connect(serving.run)
            try:
                outputs = asking.infer(images, channel)
            finally:
                channel.close()
            finished = time.perf_counter()
        return LocalResult(
            outputs, channel.counters, finished - prepared, dealt - started, prepared - dealt
        )


def infer(plan: Plan, weights: Weights, images: NDArray[np.floating]) -> LocalResult:
    """Compile-and-forget form of :class:`LocalDeployment` for one inference."""
    return LocalDeployment(plan, weights).infer(images)


def _assemble(plan: Plan, session: bytes, kind: Kind, frames: Iterator[Frame]) -> dict[int, Raw]:
    reader = RegionReader(plan, session, kind)
    regions = assemble(plan, kind, (reader.accept(frame) for frame in frames))
    reader.finish()
    return regions
