"""The three parties as functions that share nothing but channels.

Each gets the public names of a session and its own secrets, and learns everything else from frames.
The same functions run as threads over memory channels and as processes over sockets. Keys and the
masked weights travel in control frames here; in the services they are calls of their own.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from radiopaque.engine import artefact as artefacts
from radiopaque.engine import crypto_provider as dealing
from radiopaque.engine import data_owner as asking
from radiopaque.engine import model_owner as serving
from radiopaque.engine.artefact import ArtefactId, ArtefactKey, MaskedWeights
from radiopaque.engine.material import RegionReader, assemble
from radiopaque.gates.base import Raw
from radiopaque.graph.plan import Plan, plan_digest
from radiopaque.graph.weights import Weights
from radiopaque.prg import ID_BYTES, KEY_BYTES, SecretKey
from radiopaque.transport import memory
from radiopaque.transport.channel import Channel
from radiopaque.transport.link import payload_pieces
from radiopaque.wire.frames import Frame, Kind
from radiopaque.wire.plans import decode_plan
from tests.vectors.production import stored_result

DEADLINE_SECONDS = 60.0


@dataclass(frozen=True)
class Public:
    """What all three parties know of a session before it begins."""

    plan_bytes: bytes
    artefact: bytes
    session: bytes

    @property
    def plan(self) -> Plan:
        """The plan, checked by each party for itself."""
        return decode_plan(self.plan_bytes)

    @property
    def artefact_id(self) -> ArtefactId:
        """The plan's digest and the artefact's id."""
        return ArtefactId(plan_digest(self.plan_bytes), self.artefact)

    def frame(self, kind: Kind, payload: bytes | memoryview, block: int = 0) -> Frame:
        """A control frame of this session."""
        return Frame(self.session, 0, kind, block, payload)


def run_crypto_provider(public: Public, data_owner: Channel, model_owner: Channel) -> None:
    """Has nothing of its own: keys come from the two others, corrections go to one of them."""
    key_d = bytes(data_owner.receive().payload)
    keys = bytes(model_owner.receive().payload)
    key_o, key_b = keys[:KEY_BYTES], keys[KEY_BYTES:]
    artefact = ArtefactKey(public.artefact_id, SecretKey(key_b))
    inputs = dealing.DealInputs(
        public.plan,
        public.artefact_id,
        public.session,
        SecretKey(key_d),
        SecretKey(key_o),
        artefacts.weight_mask_maps(public.plan, artefact),
    )
    for frame in dealing.deal(inputs):
        model_owner.send(frame)
    model_owner.send(public.frame(Kind.DONE, b""))


def run_model_owner(
    public: Public,
    weights: Weights,
    key_b: bytes,
    key_o: bytes,
    crypto_provider: Channel,
    data_owner: Channel,
) -> None:
    """Has the weights and two keys."""
    plan = public.plan
    crypto_provider.send(public.frame(Kind.START, key_o + key_b))
    artefact = ArtefactKey(public.artefact_id, SecretKey(key_b))
    masked = artefacts.mask_weights(plan, weights, artefact)
    for block, piece in payload_pieces(len(masked)):
        data_owner.send(public.frame(Kind.READY, masked[piece], block))
    data_owner.send(public.frame(Kind.DONE, b""))
    offline = _receive_regions(public, Kind.OFFLINE, data_owner)
    corrections = _receive_regions(public, Kind.CORRECTION, crypto_provider)
    serving.ModelOwnerRun(
        serving.Model(plan, weights),
        public.artefact_id,
        public.session,
        SecretKey(key_o),
        serving.Material(corrections.items(), offline.items()),
    ).run(data_owner)


def run_data_owner(
    public: Public,
    images: NDArray[np.float64],
    key_d: bytes,
    crypto_provider: Channel,
    model_owner: Channel,
) -> list[int]:
    """Has the image and one key; returns the result's stored integers."""
    plan = public.plan
    crypto_provider.send(public.frame(Kind.START, key_d))
    masked = b""
    while (frame := model_owner.receive()).kind is not Kind.DONE:
        masked += frame.payload
    own = asking.SessionKey(public.artefact_id, public.session, SecretKey(key_d))
    message = asking.prepare(plan, own, MaskedWeights.parse(plan, masked))
    for frame in message.frames():
        model_owner.send(frame)
    model_owner.send(public.frame(Kind.DONE, b""))
    run = asking.DataOwnerRun(plan, own, message.output_mask)
    return stored_result(run, images, model_owner)


def _receive_regions(public: Public, kind: Kind, channel: Channel) -> dict[int, Raw]:
    reader = RegionReader(public.plan, public.session, kind)
    payloads = []
    while (frame := channel.receive()).kind is not Kind.DONE:
        payloads.append(reader.accept(frame))
    reader.finish()
    return assemble(public.plan, kind, payloads)


def run_threads(
    public: Public, weights: Weights, images: NDArray[np.float64], keys: dict[str, bytes]
) -> list[int]:
    """All three as threads, connected pairwise in memory."""
    assert {len(key) for key in keys.values()} == {KEY_BYTES}
    assert len(public.session) == ID_BYTES
    data_provider, provider_data = memory.pair(DEADLINE_SECONDS)
    model_provider, provider_model = memory.pair(DEADLINE_SECONDS)
    data_model, model_data = memory.pair(DEADLINE_SECONDS)
    with ThreadPoolExecutor(3) as pool:
        dealt = pool.submit(run_crypto_provider, public, provider_data, provider_model)
        served = pool.submit(
            run_model_owner,
            public,
            weights,
            keys["key_b"],
            keys["key_o"],
            model_provider,
            model_data,
        )
        asked = pool.submit(
            run_data_owner, public, images, keys["key_d"], data_provider, data_model
        )
        for future in (dealt, served, asked):
            future.result(DEADLINE_SECONDS)
    return asked.result()
