"""The model owner's side of the crypto provider: registering artefacts, fetching corrections."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from model_owner.hosting import HostedModel
from radiopaque.errors import UnknownModelError
from radiopaque.prg import SecretKey
from radiopaque.transport.cancellation import Cancellation
from radiopaque.transport.channel import Counters
from radiopaque.transport.grpc_client import Peer
from radiopaque.wire.frames import Frame
from radiopaque.wire.v1 import services_pb2 as pb


@dataclass(frozen=True)
class Order:
    """One session to be dealt."""

    model: HostedModel
    session: bytes
    key_o: SecretKey


class Dealer:
    """Calls the crypto provider on behalf of one model owner."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer
        self._lock = threading.Lock()
        self._registered: set[bytes] = set()

    def deal(
        self,
        order: Order,
        accept: Callable[[Frame], None],
        counters: Counters,
        deadline_seconds: float,
        cancellation: Cancellation,
    ) -> None:
        """Fetch a session's corrections and hand each frame to ``accept``.

        The artefact is registered first where this process has not done so; a crypto provider that
        has lost it says so before it touches the session, and gets it again. ``cancellation``
        breaks it off, also while the crypto provider is silent.
        """
        artefact = order.model.key.id.artefact
        if artefact not in self._registered:
            self._register(order.model, deadline_seconds, cancellation)
        request = pb.DealRequest(
            session=order.session, artefact=artefact, key_o=order.key_o.reveal()
        )
        try:
            self._fetch(request, accept, counters, deadline_seconds, cancellation)
        except UnknownModelError:
            self._register(order.model, deadline_seconds, cancellation)
            self._fetch(request, accept, counters, deadline_seconds, cancellation)

    def _fetch(
        self,
        request: pb.DealRequest,
        accept: Callable[[Frame], None],
        counters: Counters,
        deadline_seconds: float,
        cancellation: Cancellation,
    ) -> None:
        frames = self._peer.download_frames(
            "Deal", request, counters, deadline_seconds, cancellation
        )
        for frame in frames:
            accept(frame)

    def _register(
        self, model: HostedModel, deadline_seconds: float, cancellation: Cancellation
    ) -> None:
        request = pb.RegisterRequest(
            plan=model.plan_bytes,
            plan_digest=model.key.id.plan_digest,
            artefact=model.key.id.artefact,
            key_b=model.key.key_b.reveal(),
        )
        # counted apart: registering belongs to the artefact, not to the session that triggers it
        self._peer.call(
            "Register", request, pb.RegisterReply, Counters(), deadline_seconds, cancellation
        )
        with self._lock:
            self._registered.add(model.key.id.artefact)
