"""The model owner's service: models and their masked weights, preparing sessions, inference.

Life of a session here: PREPARING -> READY (both offline messages on disk, key_O and the file key in
the ledger) -> STARTED (durable, keys erased, before the first message leaves) -> BURNT. A session
serves one stream of one clinic once: an inference, or, as OPENED instead of STARTED, an audit of
the crypto provider (:mod:`model_owner.dealer_audit`).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from model_owner import dealer_audit
from model_owner.admission import Admission, Limits
from model_owner.dealer import Dealer, Order
from model_owner.hosting import Hosted, HostedModel
from model_owner.material import MaterialStore, MaterialWriter, SessionMaterial
from model_owner.policy import Policy, Rules
from radiopaque.certificates import Role
from radiopaque.engine.artefact import binding_digest
from radiopaque.errors import (
    MessageOrderError,
    PlanDigestError,
    RadiopaqueError,
    RestoredLedgerError,
    UnknownSessionError,
)
from radiopaque.files import open_store
from radiopaque.ledger import MODEL_OWNER, Entry, Ledger, Mark, Seen, State
from radiopaque.ledger.quotas import Charge
from radiopaque.operations.stock import Stock
from radiopaque.prg import KEY_BYTES, SecretKey
from radiopaque.telemetry import get_logger
from radiopaque.transport.channel import Channel, Counters
from radiopaque.transport.grpc_server import Call, Handler
from radiopaque.transport.link import Link
from radiopaque.transport.places import Places
from radiopaque.wire import messages
from radiopaque.wire.frames import Frame, Kind
from radiopaque.wire.v1 import services_pb2 as pb

_CHUNK_BYTES = 1 << 20
_PLACE_SECONDS = 1.0
"""How long an inference, or an audit, which computes as much, waits for another one to end."""
_CLINIC = frozenset({Role.DATA_OWNER})
_log = get_logger(__name__)


@dataclass(frozen=True)
class _Asked:
    """A session that a clinic's START names, its model, and the epoch of the clinic's ledger."""

    row: Entry
    model: HostedModel
    epoch: bytes
    channel: Channel
    call: Call


class ModelOwner:
    """One model owner: hosted models, ledger, prepared material, and its crypto provider."""

    def __init__(
        self,
        store: Path,
        hosted: Hosted,
        dealer: Dealer,
        limits: Limits,
        ledger: Ledger | None = None,
        rules: Rules | None = None,
    ) -> None:
        open_store(store)
        self._hosted = hosted
        self._dealer = dealer
        rules = rules or Rules()
        rules.check_outputs(hosted.loaded())
        self._ledger = ledger or Ledger(store / "sessions.sqlite", MODEL_OWNER)
        self._policy = Policy(rules)
        self._material = MaterialStore(store / "material")
        self._admission = Admission(self._ledger, self._material, hosted, limits)
        self._inferring = Places(limits.concurrent_inferences, "inferences")

    def handlers(self) -> Mapping[str, Handler]:
        """The service's table: what serves each method, and for which role."""
        table = {
            "ListModels": Handler(self.list_models, _CLINIC),
            "FetchPlan": Handler(self.fetch_plan, _CLINIC),
            "FetchMaskedWeights": Handler(self.fetch_masked_weights, _CLINIC),
            "Prepare": Handler(self.prepare, _CLINIC),
            "Infer": Handler(self.infer, _CLINIC),
            "Audit": Handler(self.audit, _CLINIC),
        }
        return self._policy.guarded(table)

    def stock(self) -> Stock:
        """Sessions that are not over, and the disk space of their material."""
        states = (State.PREPARING, State.READY, State.STARTED, State.OPENED)
        sessions = {state: self._ledger.count(state) for state in states}
        return Stock(sessions, self._material.size(), self._admission.limits.material_bytes)

    def close(self) -> None:
        """Let go of the ledger."""
        self._ledger.close()

    def list_models(self, request: pb.ListModelsRequest, call: Call) -> pb.ListModelsReply:
        """What is offered to this clinic."""
        return pb.ListModelsReply(
            models=[
                pb.ModelEntry(
                    name=model.name,
                    version=model.version,
                    plan_digest=model.key.id.plan_digest,
                    artefact=model.key.id.artefact,
                )
                for model in self._hosted.all()
            ]
        )

    def fetch_plan(self, request: pb.FetchPlanRequest, call: Call) -> pb.FetchPlanReply:
        """A model's public plan and what names its artefact."""
        model = self._hosted.by_name(request.name, request.version)
        return pb.FetchPlanReply(
            plan=model.plan_bytes,
            plan_digest=model.key.id.plan_digest,
            artefact=model.key.id.artefact,
            weights_digest=model.masked_weights_digest,
            name=model.name,
            version=model.version,
        )

    def fetch_masked_weights(
        self, request: pb.FetchMaskedWeightsRequest, call: Call
    ) -> Iterator[pb.Chunk]:
        """F of an artefact: the weights under their mask, the clinic's half of the model."""
        model = self._hosted.by_artefact(messages.artefact_id(request.artefact))
        call.about.update(model.about)
        data = memoryview(model.masked_weights)
        for offset in range(0, len(data), _CHUNK_BYTES):
            yield pb.Chunk(offset=offset, data=bytes(data[offset : offset + _CHUNK_BYTES]))

    def prepare(self, requests: Iterable[pb.PrepareRequest], call: Call) -> pb.PrepareReply:
        """One session: the clinic's offline message here, corrections from the crypto provider."""
        parts = iter(requests)
        first = next(parts, None)
        if first is None or first.WhichOneof("part") != "header":
            raise MessageOrderError("preparing a session begins with its header")
        model = self._check_header(first.header)
        call.about.update(model.about)
        session = first.header.session
        key_o, key_file = SecretKey.generate(), SecretKey.generate()
        keys = (key_o, key_file)
        try:
            with self._admission.preparing(first.header, model, call.peer.name, keys):
                reply = self._collect(Order(model, session, key_o), key_file, parts, call)
            call.about["session"] = session.hex()[:8]
        finally:
            key_o.erase()
            key_file.erase()
        _log.info("session prepared", session=session, peer=str(call.peer), model=model.name)
        return reply

    def infer(self, channel: Channel, call: Call) -> None:
        """START, READY, and the online messages of one session."""
        asked = self._begin(channel, call)
        row, model = asked.row, asked.model
        with self._inferring.place(call, _PLACE_SECONDS), _logged("inference broken off", asked):
            charge = self._policy.charge(model.host.plan.batch)
            window = self._admission.limits.window_bytes
            with (
                model.host.open(call.deadline_seconds, window) as begin,
                self._spent(asked, State.STARTED, charge) as (key_o, material, mark),
            ):
                run = begin(row.session, key_o, material)
                channel.send(Frame(row.session, 0, Kind.READY, 0, mark.encode()))
                run(channel)
        _log.info(
            "inference served",
            session=row.session,
            peer=str(call.peer),
            model=model.name,
            received_bytes=call.counters.received_bytes,
            sent_bytes=call.counters.sent_bytes,
        )

    def audit(self, channel: Channel, call: Call) -> None:
        """START, READY, KEY, VERDICT: a session that never starts, and whether it was dealt right.

        Where it was not, the stream ends with DealerError instead of VERDICT.
        """
        asked = self._begin(channel, call)
        row, model = asked.row, asked.model
        link = Link(channel, row.session)
        with self._inferring.place(call, _PLACE_SECONDS), _logged("audit broken off", asked):
            with self._spent(asked, State.OPENED) as (key_o, material, mark):
                link.send(0, Kind.READY, 0, mark.encode())
                key_d = SecretKey(link.receive(0, Kind.KEY, 0, KEY_BYTES).tobytes())
                try:
                    opened = dealer_audit.Opened(model, row.session, key_d, key_o)
                    dealer_audit.check(opened, material.load(model.host.plan))
                finally:
                    key_d.erase()
            # nothing of the session is left here
            link.send(0, Kind.VERDICT)
        _log.info("session audited", session=row.session, peer=str(call.peer), model=model.name)

    def _begin(self, channel: Channel, call: Call) -> _Asked:
        """What the clinic's first message asks for. Raises what speaks against it."""
        start = channel.receive()
        if (start.gate, start.kind, start.block) != (0, Kind.START, 0):
            raise MessageOrderError(
                "a session begins with START, gate 0, block 0; "
                f"got {start.kind.name} of gate {start.gate}, block {start.block}"
            )
        mark = Mark.decode(bytes(start.payload))
        row = self._session_of(call.peer.name, start.session)
        self._check_ledger(mark, call.peer.name)
        model = self._hosted.by_artefact(row.artefact)
        call.about.update(model.about)
        return _Asked(row, model, mark.epoch, channel, call)

    def _session_of(self, clinic: str, session: bytes) -> Entry:
        """A clinic's own session. Other clinics' are answered like those that never were."""
        with suppress(UnknownSessionError):
            row = self._ledger.get(session)
            if row.peer == clinic:
                return row
        raise UnknownSessionError(
            f"session {session.hex()[:8]} of this clinic is not known here; prepare another"
        )

    def _check_ledger(self, mark: Mark, clinic: str) -> None:
        """Refuse where the clinic has seen a session of its start that is not started here.

        A clinic that lies about it loses sessions of its own alone.
        """
        try:
            self._ledger.check_used(mark, clinic)
        except RestoredLedgerError as error:
            _log.warning("the ledger is a copy that was put back", error=str(error))
            raise

    @contextmanager
    def _spent(
        self, asked: _Asked, state: State, charge: Charge | None = None
    ) -> Iterator[tuple[SecretKey, SessionMaterial, Mark]]:
        """A session in its last state: key_O, its material, and what to tell the clinic.

        ``charge`` is what it costs. The session is gone with the block.
        """
        session, peer = asked.row.session, asked.row.peer
        mark = self._ledger.mark(peer, asked.epoch)
        secret = self._ledger.advance(session, State.READY, state, charge=charge).secret or b""
        asked.call.about["session"] = session.hex()[:8]
        key_o, key_file = SecretKey(secret[:KEY_BYTES]), SecretKey(secret[KEY_BYTES:])
        del secret
        before = asked.channel.counters.received_bytes
        try:
            yield key_o, SessionMaterial(self._material, session, key_file), mark
        finally:
            key_o.erase()
            key_file.erase()
            # whatever came after START left a ledger in which the session is used
            came = asked.channel.counters.received_bytes > before
            self._ledger.burn(session, Seen(peer, asked.epoch, session) if came else None)
            self._material.delete(session)

    def _check_header(self, header: pb.PrepareHeader) -> HostedModel:
        messages.session_id(header.session)
        model = self._hosted.by_artefact(messages.artefact_id(header.artefact))
        if header.plan_digest != model.key.id.plan_digest:
            raise PlanDigestError(
                f"the plan digest {header.plan_digest.hex()[:16]} is not that of {model.name} "
                f"{model.version}; fetch the model again"
            )
        if header.binding != binding_digest(model.key.id, model.masked_weights_digest):
            raise PlanDigestError(
                "the session is bound to other masked weights; fetch the model again"
            )
        return model

    def _collect(
        self, order: Order, key_file: SecretKey, parts: Iterator[pb.PrepareRequest], call: Call
    ) -> pb.PrepareReply:
        """Both offline messages onto disk, at the same time."""
        plan = order.model.host.plan
        counters = Counters()
        seconds = 0.0
        failures: list[BaseException] = []

        def fetch() -> None:
            nonlocal seconds
            started = time.perf_counter()
            try:
                with self._writer(order, Kind.CORRECTION, key_file) as writer:
                    self._dealer.deal(
                        order, writer.accept, counters, call.deadline_seconds, call.cancellation
                    )
                    writer.finish()
            except BaseException as error:
                failures.append(error)
            seconds = time.perf_counter() - started

        fetching = threading.Thread(target=fetch, name="radiopaque-deal", daemon=True)
        fetching.start()
        try:
            with self._material.writer(plan, order.session, Kind.OFFLINE, key_file) as writer:
                for part in parts:
                    if failures:
                        raise failures.pop()
                    if part.WhichOneof("part") != "frame":
                        raise MessageOrderError("only frames follow the header of a session")
                    writer.accept(messages.to_frame(part.frame))
                writer.finish()
        except BaseException:
            call.cancellation.cancel()
            raise
        finally:
            fetching.join()
        if failures:
            raise failures.pop()
        return pb.PrepareReply(
            crypto_provider_to_model_owner_bytes=counters.received_bytes,
            model_owner_to_crypto_provider_bytes=counters.sent_bytes,
            dealer_seconds=seconds,
        )

    def _writer(self, order: Order, kind: Kind, key_file: SecretKey) -> MaterialWriter:
        return self._material.writer(order.model.host.plan, order.session, kind, key_file)


@contextmanager
def _logged(event: str, asked: _Asked) -> Iterator[None]:
    """Log what ends a session before its time."""
    try:
        yield
    except RadiopaqueError as error:
        kind, peer = type(error).__name__, str(asked.call.peer)
        _log.warning(event, session=asked.row.session, peer=peer, error=kind)
        raise
