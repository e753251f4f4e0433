"""Preparing sessions and running them: the clinic's part of the protocol over the network.

Life of a session here: FRESH (key_D drawn) -> BOUND (to the digest of plan, artefact and F; durable
before the offline message leaves, which is sent once) -> STARTED (durable, key erased from disk,
before the masked image leaves) -> BURNT. Whatever interrupts a session burns it; images are retried
on fresh material only.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_owner.artefacts import LocalModel
from radiopaque.engine import data_owner as engine
from radiopaque.errors import SessionError, SessionStateError
from radiopaque.ledger import DATA_OWNER, Ledger, State
from radiopaque.prg import KEY_BYTES, SecretKey, new_id
from radiopaque.ring import RingArray, ring_dtype
from radiopaque.transport.channel import Channel, Counters
from radiopaque.transport.grpc_client import Peer
from radiopaque.transport.link import Link
from radiopaque.wire import messages
from radiopaque.wire.frames import Kind
from radiopaque.wire.v1 import services_pb2 as pb


@dataclass(frozen=True)
class Prepared:
    """What preparing one session took, in bytes of messages for each direction."""

    session: bytes
    seconds: float
    bytes: dict[str, int]


@dataclass(frozen=True)
class Answer:
    """The network's outputs [n, ...] and what the online phase took."""

    session: bytes
    outputs: NDArray[np.float64]
    online_seconds: float
    prepare_seconds: float
    round_trips: int
    online_bytes: dict[str, int]


class Sessions:
    """All sessions of one clinic with one vendor and one crypto provider."""

    def __init__(
        self, store: Path, model_owner: Peer, crypto_provider: Peer, deadline_seconds: float
    ) -> None:
        self._ledger = Ledger(store / "sessions.sqlite", DATA_OWNER)
        self._model_owner = model_owner
        self._crypto_provider = crypto_provider
        self._deadline = deadline_seconds

    def close(self) -> None:
        """Let go of the ledger."""
        self._ledger.close()

    def stock(self, model: LocalModel) -> int:
        """Prepared sessions of a model."""
        return len(self._bound(model))

    def prepare(self, model: LocalModel) -> Prepared:
        """Make one session's material at all three parties. No image is needed for it."""
        started = time.perf_counter()
        artefact, plan = model.offer.id, model.offer.plan
        key = engine.SessionKey(artefact, new_id(), SecretKey.generate())
        dealer, vendor = Counters(), Counters()
        self._ledger.create(
            key.session,
            artefact=artefact.artefact,
            peer=model.offer.name,
            secret=key.key_d.reveal(),
        )
        try:
            self._reserve(key, dealer)
            message = engine.prepare(plan, key, model.weights)
            secret = key.key_d.reveal() + message.output_mask.tobytes()
            self._ledger.advance(
                key.session, State.FRESH, State.BOUND, binding=model.binding, secret=secret
            )
            reply = self._model_owner.upload(
                "Prepare", _offline(model, message), pb.PrepareReply, vendor, self._deadline
            )
        except BaseException:
            self._ledger.burn(key.session)
            raise
        finally:
            key.key_d.erase()
        return Prepared(
            key.session,
            time.perf_counter() - started,
            {
                "crypto_provider_to_model_owner": reply.crypto_provider_to_model_owner_bytes,
                "model_owner_to_crypto_provider": reply.model_owner_to_crypto_provider_bytes,
                "crypto_provider_to_data_owner": dealer.received_bytes,
                "data_owner_to_crypto_provider": dealer.sent_bytes,
                "data_owner_to_model_owner": vendor.sent_bytes,
                "model_owner_to_data_owner": vendor.received_bytes,
            },
        )

    def infer(self, model: LocalModel, images: NDArray[np.floating]) -> Answer:
        """Run one prepared session on preprocessed images [n, c, h, w].

        Raises SessionStateError where none is prepared, TensorError before anything is sent;
        ProtocolError and TransportError burn the session.
        """
        engine.encode_images(model.offer.plan, images)
        while True:
            bound = self._bound(model)
            if not bound:
                raise SessionStateError("no session is prepared for this model; prepare one first")
            try:
                return self._run(model, bound[0], images)
            except _RefusedError as refused:
                # the vendor does not have this material any more; nothing of the image has left
                if len(bound) == 1:
                    raise refused.reason from None

    def _run(self, model: LocalModel, session: bytes, images: NDArray[np.floating]) -> Answer:
        plan = model.offer.plan
        opened = time.perf_counter()
        channel = self._model_owner.open("Infer", self._deadline)
        try:
            link = Link(channel, session)
            link.send(0, Kind.START)
            secret = self._ledger.advance(session, State.BOUND, State.STARTED).secret or b""
            run = engine.DataOwnerRun(
                plan,
                engine.SessionKey(model.offer.id, session, SecretKey(secret[:KEY_BYTES])),
                _output_mask(model, secret),
            )
            del secret
            _wait_ready(link)
            before = channel.counters.snapshot()
            began = time.perf_counter()
            outputs = run.infer(images, channel)
            finished = time.perf_counter()
        except BaseException:
            self._ledger.burn(session)
            _close_later(channel)
            raise
        self._ledger.burn(session)
        _close_later(channel)
        online = channel.counters - before
        return Answer(
            session,
            outputs,
            finished - began,
            began - opened,
            online.round_trips,
            {
                "data_owner_to_model_owner": online.sent_bytes,
                "model_owner_to_data_owner": online.received_bytes,
            },
        )

    def _bound(self, model: LocalModel) -> list[bytes]:
        return [
            row.session
            for row in self._ledger.rows(State.BOUND)
            if row.artefact == model.offer.id.artefact and row.binding == model.binding
        ]

    def _reserve(self, key: engine.SessionKey, counters: Counters) -> None:
        request = pb.ReserveRequest(
            session=key.session,
            plan_digest=key.artefact.plan_digest,
            artefact=key.artefact.artefact,
            key_d=key.key_d.reveal(),
        )
        self._crypto_provider.call("Reserve", request, pb.ReserveReply, counters, self._deadline)


class _RefusedError(Exception):
    """The vendor refused a session before the image was masked."""

    def __init__(self, reason: SessionError) -> None:
        super().__init__(str(reason))
        self.reason = reason


def _wait_ready(link: Link) -> None:
    try:
        link.receive(0, Kind.READY, 0, 0)
    except SessionError as error:
        raise _RefusedError(error) from None


def _close_later(channel: Channel) -> None:
    """End the stream without waiting for the vendor's goodbye, and alike whatever happened:

    what the vendor sees of the end must not depend on the result.
    """
    threading.Thread(target=channel.close, name="radiopaque-close", daemon=True).start()


def _offline(model: LocalModel, message: engine.OfflineMessage) -> Iterator[pb.PrepareRequest]:
    yield pb.PrepareRequest(
        header=pb.PrepareHeader(
            session=message.session,
            plan_digest=model.offer.id.plan_digest,
            artefact=model.offer.id.artefact,
            binding=model.binding,
        )
    )
    for frame in message.frames():
        yield pb.PrepareRequest(frame=messages.from_frame(frame))


def _output_mask(model: LocalModel, secret: bytes) -> RingArray:
    plan = model.offer.plan
    words = np.frombuffer(secret, np.uint8, offset=KEY_BYTES).view(ring_dtype(plan.ring_bits))
    return words.reshape(plan.output_step.shape)
