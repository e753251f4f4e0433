"""Preparing sessions and running them: the clinic's part of the protocol over the network.

Life of a session here: FRESH (key_D drawn) -> BOUND (in stock, to the digest of plan, artefact and
F, when the vendor has all of it) -> STARTED (durable, key erased from disk, before the masked image
leaves) -> BURNT. Whatever interrupts a fresh or a started session burns it; images are retried on
fresh material only. An audit of the crypto provider takes sessions by way of OPENED, without an
image: from the stock, or before they get there.

Threads may share a clinic's sessions: each session is in the hands of one of them at a time.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_owner.artefacts import LocalModel
from data_owner.dealer_audit import Audited, audit, chosen, drawn, open_session
from data_owner.engines import Infer, Opened
from data_owner.goodbyes import Goodbyes
from data_owner.preparing import Prepared, Preparer
from data_owner.starting import RefusedError, begin
from radiopaque.audit import AuditLog
from radiopaque.audit.log import Event
from radiopaque.engine.data_owner import SessionKey
from radiopaque.errors import ProtocolError, SessionStateError, TransportError
from radiopaque.ledger import DATA_OWNER, Ledger, Seen, State
from radiopaque.prg import SecretKey, new_id
from radiopaque.telemetry import traces
from radiopaque.transport.grpc_client import Peer
from radiopaque.transport.link import Link


@dataclass(frozen=True)
class Reserved:
    """A session that is kept for one caller; ``prepared`` where it was made for it."""

    session: bytes
    prepared: Prepared | None = None


@dataclass(frozen=True)
class Answer:
    """The network's outputs [n, ...] and what the online phase took.

    ``prepared`` is set where no session was in stock and one was made for this answer.
    """

    session: bytes
    outputs: NDArray[np.float64]
    online_seconds: float
    prepare_seconds: float
    round_trips: int
    online_bytes: dict[str, int]
    prepared: Prepared | None = None


class Sessions:
    """All sessions of one clinic with one vendor and one crypto provider."""

    def __init__(
        self,
        store: Path,
        model_owner: Peer,
        crypto_provider: Peer,
        deadline_seconds: float,
        window_bytes: int,
        party: str,
    ) -> None:
        self._ledger = Ledger(store / "sessions.sqlite", DATA_OWNER)
        try:
            self._audit = AuditLog(store / "audit", party)
        except BaseException:
            self._ledger.close()
            raise
        self._model_owner = model_owner
        self._crypto_provider = crypto_provider
        self._deadline = deadline_seconds
        self._window_bytes = window_bytes
        self._preparer = Preparer(self._ledger, model_owner, crypto_provider, deadline_seconds)
        self._mutex = threading.Lock()
        self._held: set[bytes] = set()
        self._goodbyes = Goodbyes()

    def finish(self) -> None:
        """Let the vendor see the ends of inferences that are done."""
        self._goodbyes.wait()

    def close(self) -> None:
        """Let go of the ledger and the audit log."""
        self._ledger.close()
        self._audit.close()

    def pause(self, seconds: float) -> None:
        """Wait, and let a lost connection be made again meanwhile."""
        until = time.monotonic() + seconds
        for peer in (self._model_owner, self._crypto_provider):
            peer.await_back(max(0.001, until - time.monotonic()))
        time.sleep(max(0.0, until - time.monotonic()))

    def stock(self, model: LocalModel) -> int:
        """Prepared sessions of a model that nobody is using."""
        with self._mutex:
            return len(self._free(model))

    def prepare(self, model: LocalModel, audit_share: float = 0.0) -> Prepared:
        """Make one session's material at all three parties. No image is needed for it.

        With the probability ``audit_share`` it is then opened to the vendor, as :meth:`audit` does.
        """
        session = self._hold(new_id())
        try:
            return self._make(model, session, audit_share)
        finally:
            self._release(session)

    def discard_stale(self, name: str, offered: Collection[bytes]) -> None:
        """Burn sessions for artefacts of a model that the vendor does not offer any more."""
        for row in self._ledger.rows(State.BOUND):
            if row.peer == name and row.artefact not in offered:
                self._ledger.burn(row.session)

    @contextmanager
    def reserve(
        self, model: LocalModel, count: int, preparing: Callable[[], None] = lambda: None
    ) -> Iterator[list[Reserved]]:
        """Keep ``count`` sessions for the caller, before the images that they are for are read.

        Takes those in stock, and makes the rest; ``preparing`` is called before each of these.
        Sessions that are not used go back into stock.
        """
        reserved: list[Reserved] = []
        try:
            while len(reserved) < count:
                session = self._take(model)
                if session is not None:
                    reserved.append(Reserved(session))
                    continue
                preparing()
                session = self._hold(new_id())
                reserved.append(Reserved(session))
                reserved[-1] = Reserved(session, self._make(model, session))
            yield reserved
        finally:
            for item in reserved:
                self._release(item.session)

    def infer(self, model: LocalModel, reserved: Reserved, images: NDArray[np.floating]) -> Answer:
        """Run a session on preprocessed images [n, c, h, w].

        Where the vendor has lost it, the oldest one in stock takes its place; none is made, since
        the crypto provider is not contacted while an image waits. Raises TensorError before
        anything is sent, SessionStateError where none is left. ProtocolError burns the session;
        TransportError does once the image was masked with it, and before leaves it in stock.
        """
        model.engine.check(images)
        session: bytes | None = reserved.session
        while session is not None:
            try:
                with self._audit.attempt("Infer", **self._about(model, session)) as ended:
                    with _traced("infer", model, session):
                        answer = self._run(model, session, images)
                    ended["sent_bytes"] = answer.online_bytes["data_owner_to_model_owner"]
                    ended["received_bytes"] = answer.online_bytes["model_owner_to_data_owner"]
                made = reserved.prepared if session == reserved.session else None
                return replace(answer, prepared=made)
            except RefusedError:
                # nothing of the image has left
                self._ledger.burn(session)
            finally:
                # the reserved one stays with its holder, who may hold it until others are done
                if session != reserved.session:
                    self._release(session)
            session = self._take(model)
        raise SessionStateError(
            "the vendor refused every prepared session of this model; "
            "prepare new ones (radiopaque data-owner prepare) and submit again"
        )

    def audit(self, model: LocalModel, share: float) -> Audited:
        """Open a random share of the stock to the vendor, who checks what was dealt; they are gone.

        The stock is in nobody else's hands meanwhile. Raises DealerError where a session is wrong,
        when the whole stock is gone; ConfigError for the share, SessionStateError where there is no
        stock, and TransportError, which ends the audit.
        """
        with self._whole_stock(model) as stock:
            return self._audited(model, stock, chosen(stock, share), State.BOUND)

    def _audited(
        self, model: LocalModel, stock: list[bytes], picked: list[bytes], state: State
    ) -> Audited:
        return audit(stock, picked, lambda one: self._open(model, one, state), self._ledger.burn)

    def _open(self, model: LocalModel, session: bytes, state: State) -> None:
        """One session for the audit; gone then, unless it was in stock and the vendor away."""
        with self._audit.attempt("Audit", **self._about(model, session)) as ended:
            channel = self._model_owner.open("Audit", self._deadline)
            try:
                open_session(channel, self._ledger, session, state)
            finally:
                try:
                    self._burn_unless_bound(session)
                finally:
                    channel.close()
                    ended["sent_bytes"] = channel.counters.sent_bytes
                    ended["received_bytes"] = channel.counters.received_bytes

    def _about(self, model: LocalModel, session: bytes) -> Event:
        """What the audit log says of a session."""
        return Event(
            peer=f"model-owner at {self._model_owner.address}",
            model=model.offer.name,
            version=model.offer.version,
            session=session.hex()[:8],
        )

    def _make(self, model: LocalModel, session: bytes, audit_share: float = 0.0) -> Prepared:
        """A session that ends in stock, or opened where it is drawn.

        Nothing else than getting to the end puts it in stock: neither a crypto provider that stalls
        nor a process that is killed can take it past the draw.
        """
        artefact = model.offer.id
        key = SessionKey(artefact, session, SecretKey.generate())
        self._ledger.create(
            session,
            artefact=artefact.artefact,
            peer=model.offer.name,
            secret=key.key_d.reveal(),
        )
        try:
            prepared, kept = self._prepare(model, key)
            if drawn(audit_share):
                with self._whole_stock(model) as others:
                    audited = self._audited(model, [*others, session], [session], State.FRESH)
                return replace(prepared, opened=audited.opened > 0)
            secret = key.key_d.reveal() + kept
            self._ledger.advance(
                session, State.FRESH, State.BOUND, binding=model.binding, secret=secret
            )
            return prepared
        except TransportError:
            self._ledger.burn(session)
            self._preparer.give_back(session)
            raise
        except BaseException:
            self._ledger.burn(session)
            raise
        finally:
            key.key_d.erase()

    def _prepare(self, model: LocalModel, key: SessionKey) -> tuple[Prepared, bytes]:
        """At the crypto provider and at the vendor; and what to keep beside key_D."""
        with self._audit.attempt("Prepare", **self._about(model, key.session)) as ended:
            with _traced("prepare", model, key.session):
                prepared, kept = self._preparer.prepare(model, key)
            ended["sent_bytes"] = prepared.bytes["data_owner_to_model_owner"]
            ended["received_bytes"] = prepared.bytes["model_owner_to_data_owner"]
            return prepared, kept

    def _run(self, model: LocalModel, session: bytes, images: NDArray[np.floating]) -> Answer:
        with model.engine.open(self._deadline, self._window_bytes) as opened:
            return self._run_opened(opened, session, images)

    def _run_opened(self, opened: Opened, session: bytes, images: NDArray[np.floating]) -> Answer:
        asked = time.perf_counter()
        channel = self._model_owner.open("Infer", self._deadline)
        try:
            seen = begin(Link(channel, session), self._ledger, session)
            opened.wait_ready()
            infer = self._start(opened, seen)
            before = channel.counters.snapshot()
            began = time.perf_counter()
            outputs = infer(images, channel)
            finished = time.perf_counter()
        except ProtocolError:
            self._ledger.burn(session)
            raise
        finally:
            try:
                self._burn_unless_bound(session)
            finally:
                self._goodbyes.say(channel)
        online = channel.counters - before
        return Answer(
            session,
            outputs,
            finished - began,
            began - asked,
            online.round_trips,
            {
                "data_owner_to_model_owner": online.sent_bytes,
                "model_owner_to_data_owner": online.received_bytes,
            },
        )

    def _start(self, opened: Opened, seen: Seen) -> Infer:
        """The session in memory, its key erased from the disk, before the image is masked.

        ``seen``: the vendor's ledger has the session as started.
        """
        entry = self._ledger.advance(seen.session, State.BOUND, State.STARTED, seen=seen)
        secret = entry.secret or b""
        return opened.start(seen.session, secret)

    def _burn_unless_bound(self, session: bytes) -> None:
        if self._ledger.get(session).state is not State.BOUND:
            self._ledger.burn(session)

    def _take(self, model: LocalModel) -> bytes | None:
        """The oldest session in stock, held from now on."""
        with self._mutex:
            free = self._free(model)
            if free:
                self._held.add(free[0])
            return free[0] if free else None

    def _hold(self, session: bytes) -> bytes:
        """Keep a session from other threads, also one that the vendor has not received yet."""
        with self._mutex:
            self._held.add(session)
        return session

    def _release(self, session: bytes) -> None:
        with self._mutex:
            self._held.discard(session)

    @contextmanager
    def _whole_stock(self, model: LocalModel) -> Iterator[list[bytes]]:
        """All sessions in stock, held meanwhile."""
        with self._mutex:
            stock = self._free(model)
            self._held.update(stock)
        try:
            yield stock
        finally:
            for session in stock:
                self._release(session)

    def _free(self, model: LocalModel) -> list[bytes]:
        return [
            row.session
            for row in self._ledger.rows(State.BOUND)
            if row.artefact == model.offer.id.artefact
            and row.binding == model.binding
            and row.session not in self._held
        ]


def _traced(name: str, model: LocalModel, session: bytes) -> AbstractContextManager[None]:
    offer = model.offer
    return traces.span(name, session=session, model=offer.name, model_version=offer.version)
