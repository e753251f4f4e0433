"""The crypto provider's service: Register, Reserve, Deal.

It is not contacted between the moment an image exists and the moment its result is out. Both other
parties make their own keys and send them here; nothing here draws a key for anybody.

Life of a session here: RESERVED (key_D kept) -> DEALT (durable, key_D erased) before the first
correction leaves -> BURNT when the stream is over, however it ended.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

from crypto_provider.artefacts import Artefacts, Registered
from radiopaque.certificates import Role
from radiopaque.engine.artefact import ArtefactId, ArtefactKey
from radiopaque.engine.crypten.dealing import deal as deal_crypten
from radiopaque.engine.crypten.plan import CryptenPlan
from radiopaque.engine.crypto_provider import DealInputs, deal
from radiopaque.errors import AccessError, ResourceError
from radiopaque.files import open_store
from radiopaque.kernels.cpu import CPU
from radiopaque.kernels.device import Device
from radiopaque.ledger import CRYPTO_PROVIDER, Ledger, Seen, State
from radiopaque.operations.stock import Stock
from radiopaque.prg import SecretKey
from radiopaque.telemetry import get_logger
from radiopaque.transport.grpc_server import Call, Handler
from radiopaque.transport.places import Places
from radiopaque.wire import messages
from radiopaque.wire.frames import Frame
from radiopaque.wire.v1 import services_pb2 as pb

_log = get_logger(__name__)


class CryptoProvider:
    """One crypto provider: its registered artefacts and its ledger of sessions."""

    def __init__(
        self,
        store: Path,
        *,
        most_models: int,
        model_bytes: int,
        most_reserved: int,
        most_reserved_per_clinic: int,
        reservation_seconds: float,
        concurrent_deals: int,
        device: Device = CPU,
        ledger: Ledger | None = None,
    ) -> None:
        open_store(store)
        self._artefacts = Artefacts(
            store / "artefacts", most=most_models, model_bytes=model_bytes, device=device
        )
        self._ledger = ledger or Ledger(store / "sessions.sqlite", CRYPTO_PROVIDER)
        self._most_reserved = most_reserved
        self._most_reserved_per_clinic = most_reserved_per_clinic
        self._reservation_seconds = reservation_seconds
        self._admitting = threading.Lock()
        self._dealing = Places(concurrent_deals, "dealings")

    def handlers(self) -> Mapping[str, Handler]:
        """The service's table: what serves each method, and for which role."""
        return {
            "Register": Handler(self.register, frozenset({Role.MODEL_OWNER})),
            "Reserve": Handler(self.reserve, frozenset({Role.DATA_OWNER})),
            "Deal": Handler(self.deal, frozenset({Role.MODEL_OWNER})),
        }

    def stock(self) -> Stock:
        """Sessions that are not over."""
        return Stock({state: self._ledger.count(state) for state in (State.RESERVED, State.DEALT)})

    def close(self) -> None:
        """Let go of the ledger."""
        self._ledger.close()

    def register(self, request: pb.RegisterRequest, call: Call) -> pb.RegisterReply:
        """A model owner's plan and key_B, once per artefact."""
        artefact = ArtefactId(
            messages.digest(request.plan_digest, "plan digest"),
            messages.artefact_id(request.artefact),
        )
        key = ArtefactKey(artefact, SecretKey(messages.key(request.key_b, "key_B")))
        self._artefacts.register(call.peer.name, request.plan, key)
        _log.info("model registered", artefact=artefact.artefact, peer=str(call.peer))
        return pb.RegisterReply()

    def reserve(self, request: pb.ReserveRequest, call: Call) -> pb.ReserveReply:
        """A data owner's key_D for one session."""
        session = messages.session_id(request.session)
        messages.digest(request.plan_digest, "plan digest")
        key = messages.key(request.key_d, "key_D")
        epoch = messages.epoch(request.epoch)
        with self._admitting:
            self._check_limits(call.peer.name)
            mark = self._ledger.mark(call.peer.name, epoch)
            self._ledger.create(
                session,
                artefact=messages.artefact_id(request.artefact),
                peer=call.peer.name,
                binding=request.plan_digest,
                secret=key,
                seen=Seen(call.peer.name, epoch, session),
            )
        return pb.ReserveReply(mark=mark.encode())

    def _check_limits(self, clinic: str) -> None:
        self._ledger.expire(State.RESERVED, self._reservation_seconds)
        for waiting, most in (
            (self._ledger.count(State.RESERVED), self._most_reserved),
            (self._ledger.count(State.RESERVED, clinic), self._most_reserved_per_clinic),
        ):
            if waiting >= most:
                raise ResourceError(
                    f"{waiting} sessions wait to be dealt, the limit here; try again in "
                    f"{self._reservation_seconds:g} s, when reservations that nobody used expire"
                )

    def _corrections(
        self, registered: Registered, session: bytes, key_o: SecretKey, call: Call
    ) -> Iterator[Frame]:
        """Those of a session that is DEALT from now on."""
        plan, artefact = registered.plan, registered.key.id
        maps = self._artefacts.maps(artefact.artefact)
        key_d = SecretKey(self._ledger.advance(session, State.RESERVED, State.DEALT).secret or b"")
        call.about["session"] = session.hex()[:8]
        try:
            if isinstance(plan, CryptenPlan):
                check = call.cancellation.check
                yield from deal_crypten(plan, artefact, session, key_d, key_o, check)
            else:
                device = self._artefacts.device
                yield from deal(DealInputs(plan, artefact, session, key_d, key_o, maps, device))
        finally:
            key_d.erase()

    def deal(self, request: pb.DealRequest, call: Call) -> Iterator[Frame]:
        """The corrections of a reserved session, to the model owner of its artefact, once."""
        session = messages.session_id(request.session)
        key_o = SecretKey(messages.key(request.key_o, "key_O"))
        registered = self._artefacts.get(messages.artefact_id(request.artefact))
        if registered.owner != call.peer.name:
            raise AccessError("this artefact belongs to another model owner; deal for your own")
        row = self._ledger.get(session)
        artefact = registered.key.id
        if (row.artefact, row.binding) != (artefact.artefact, artefact.plan_digest):
            raise AccessError(
                f"session {session.hex()[:8]} was reserved for another model; prepare another"
            )
        # Not only when the next one reserves: a copy of the ledger may have been put back.
        self._ledger.expire(State.RESERVED, self._reservation_seconds)
        try:
            with self._dealing.place(call):
                call.about.update(model=registered.plan.name, version=registered.plan.version)
                yield from self._corrections(registered, session, key_o, call)
        finally:
            key_o.erase()
            self._ledger.burn(session)
        _log.info(
            "session dealt",
            session=session,
            peer=str(call.peer),
            sent_bytes=call.counters.sent_bytes,
        )
