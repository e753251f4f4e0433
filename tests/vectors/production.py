"""The production code under the fixed keys of a vector, every message recorded."""

from __future__ import annotations

import hashlib
from typing import Any
from unittest import mock

import numpy as np
from numpy.typing import NDArray

from radiopaque.engine import crypto_provider, data_owner, model_owner
from radiopaque.engine.artefact import (
    ArtefactId,
    ArtefactKey,
    MaskedWeights,
    mask_weights,
    weight_mask_maps,
)
from radiopaque.engine.local import Devices
from radiopaque.engine.material import RegionReader, assemble
from radiopaque.errors import RadiopaqueError
from radiopaque.graph.plan import Plan, plan_digest
from radiopaque.graph.weights import Weights
from radiopaque.prg import SecretKey
from radiopaque.ring import ring_dtype
from radiopaque.transport.channel import Channel
from radiopaque.transport.memory import connect
from radiopaque.wire.frames import Frame, Kind, encode
from radiopaque.wire.plans import decode_plan, encode_plan
from tests.vectors.forms import plan_from_json


class Recorder:
    """A channel that keeps what passes it."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self.counters = channel.counters
        self.sent: list[Frame] = []
        self.received: list[Frame] = []

    def send(self, frame: Frame) -> None:
        """Keeps a copy of its own: the sender may use the payload's buffer again."""
        kept = Frame(frame.session, frame.gate, frame.kind, frame.block, bytes(frame.payload))
        self.sent.append(kept)
        self._channel.send(frame)

    def receive(self, more: bool = False) -> Frame:
        frame = self._channel.receive()
        self.received.append(frame)
        return frame

    def close(self, error: RadiopaqueError | None = None) -> None:
        self._channel.close(error)


class FixedSession:
    """One session under a vector's keys: what each party makes of it."""

    def __init__(self, inputs: dict[str, Any], devices: Devices | None = None) -> None:
        self.devices = devices or Devices()
        keys = {name: bytes.fromhex(value) for name, value in inputs["keys"].items()}
        self.plan: Plan = plan_from_json(inputs["plan"])
        self.plan_bytes = encode_plan(self.plan)
        assert decode_plan(self.plan_bytes) == self.plan
        self.session = keys["session"]
        self.artefact = ArtefactId(plan_digest(self.plan_bytes), keys["artefact"])
        self.artefact_key = ArtefactKey(self.artefact, SecretKey(keys["key_b"]))
        self._key_d, self._key_o = keys["key_d"], keys["key_o"]
        self.weights = Weights(
            _ring_arrays(self.plan, dict(self.plan.weight_shapes()), inputs["weights"]),
            _ring_arrays(self.plan, dict(self.plan.constant_shapes()), inputs["constants"]),
        )
        step = self.plan.input_step
        stored = np.array(inputs["image"], np.int64).reshape(step.shape)
        self.images: NDArray[np.float64] = stored / float(step.scale)

    def masked_weights(self) -> bytes:
        """F."""
        return mask_weights(self.plan, self.weights, self.artefact_key)

    def own_key(self) -> data_owner.SessionKey:
        """The data owner's session; its key is erased by the first run."""
        return data_owner.SessionKey(self.artefact, self.session, SecretKey(self._key_d))

    def offline_message(self) -> data_owner.OfflineMessage:
        """The data owner's deltas and re-masks."""
        masked = MaskedWeights.parse(self.plan, self.masked_weights(), self.devices.data_owner)
        return data_owner.prepare(self.plan, self.own_key(), masked)

    def correction_frames(self) -> list[Frame]:
        """What the crypto provider deals."""
        return list(
            crypto_provider.deal(
                crypto_provider.DealInputs(
                    self.plan,
                    self.artefact,
                    self.session,
                    SecretKey(self._key_d),
                    SecretKey(self._key_o),
                    weight_mask_maps(self.plan, self.artefact_key, self.devices.crypto_provider),
                    self.devices.crypto_provider,
                )
            )
        )

    def regions(self, kind: Kind, frames: list[Frame]) -> dict[int, NDArray[np.uint8]]:
        """An offline message as the model owner stores it."""
        reader = RegionReader(self.plan, self.session, kind)
        regions = assemble(self.plan, kind, [reader.accept(frame) for frame in frames])
        reader.finish()
        return regions

    def serving(
        self, corrections: list[Frame] | None = None, offline: list[Frame] | None = None
    ) -> model_owner.ModelOwnerRun:
        """The model owner with its material, or with other frames in its place."""
        if corrections is None:
            corrections = self.correction_frames()
        if offline is None:
            offline = list(self.offline_message().frames())
        return model_owner.ModelOwnerRun(
            model_owner.Model(self.plan, self.weights, self.devices.model_owner),
            self.artefact,
            self.session,
            SecretKey(self._key_o),
            model_owner.Material(
                self.regions(Kind.CORRECTION, corrections).items(),
                self.regions(Kind.OFFLINE, offline).items(),
            ),
        )

    def asking(self) -> data_owner.DataOwnerRun:
        """The data owner, ready for the image."""
        return data_owner.DataOwnerRun(
            self.plan,
            self.own_key(),
            self.offline_message().output_mask,
            device=self.devices.data_owner,
        )

    def infer(self) -> tuple[list[int], Recorder]:
        """The result's stored integers, and everything that went over the wire."""
        channel = Recorder(connect(self.serving().run))
        try:
            return stored_result(self.asking(), self.images, channel), channel
        finally:
            channel.close()


def stored_result(
    run: data_owner.DataOwnerRun, images: NDArray[np.float64], channel: Channel
) -> list[int]:
    """The result before its conversion to floats, which hold 53 bits only."""
    with mock.patch.object(data_owner, "decode", lambda stored, scale: stored):
        return [int(value) for value in run.infer(images, channel).reshape(-1)]


def produce(inputs: dict[str, Any], devices: Devices | None = None) -> dict[str, Any]:
    """A vector's outputs from its inputs."""
    fixed = FixedSession(inputs, devices)
    result, channel = fixed.infer()
    corrections = fixed.regions(Kind.CORRECTION, fixed.correction_frames())
    return {
        "plan_bytes": fixed.plan_bytes.hex(),
        "plan_digest": fixed.artefact.plan_digest.hex(),
        "masked_weights": fixed.masked_weights().hex(),
        "corrections": _hex(corrections),
        "offline": _hex(dict(fixed.offline_message().regions())),
        "data_owner_to_model_owner": [_listed(frame) for frame in channel.sent],
        "model_owner_to_data_owner": [_listed(frame) for frame in channel.received],
        "data_owner_frames_sha256": _digest(channel.sent),
        "model_owner_frames_sha256": _digest(channel.received),
        "result": result,
    }


def _ring_arrays(
    plan: Plan, shapes: dict[int, tuple[int, ...]], values: dict[str, list[int]]
) -> dict[int, NDArray[np.unsignedinteger]]:
    dtype = ring_dtype(plan.ring_bits)
    return {
        gate: np.array([v % (1 << plan.ring_bits) for v in values[str(gate)]], dtype).reshape(shape)
        for gate, shape in shapes.items()
    }


def _hex(regions: dict[int, NDArray[np.uint8]]) -> dict[str, str]:
    return {str(gate): region.tobytes().hex() for gate, region in regions.items()}


def _listed(frame: Frame) -> dict[str, Any]:
    return {
        "gate": frame.gate,
        "kind": frame.kind.name,
        "block": frame.block,
        "payload": bytes(frame.payload).hex(),
    }


def _digest(frames: list[Frame]) -> str:
    return hashlib.sha256(b"".join(encode(frame) for frame in frames)).hexdigest()
