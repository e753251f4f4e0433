"""The ledger: which sessions exist, how far each has come, and the keys that still wait for use.

Every mask serves once, so a state must not be forgotten, whatever happens to the process or to the
machine, and a key must be gone once its session has started. Hence a change of state is one durable
transaction, which takes the state it expects as a condition (:mod:`radiopaque.ledger.databases`),
and a ledger that was put back from a copy finds out before it is used
(:mod:`radiopaque.ledger.marks`).
"""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from radiopaque.errors import (
    RadiopaqueError,
    RestoredLedgerError,
    SessionStateError,
    StoreError,
    UnknownSessionError,
)
from radiopaque.ledger import forgetting, quotas
from radiopaque.ledger.databases import (
    FORMAT,
    AlreadyKnownError,
    Database,
    SqliteFile,
    Transaction,
    wrong_format,
)
from radiopaque.ledger.marks import EPOCH_BYTES, NOTHING, Mark
from radiopaque.ledger.quotas import Charge
from radiopaque.ledger.states import State, Transitions
from radiopaque.wire import messages

_COLUMNS: Final = "id, state, created, artefact, binding, peer"


@dataclass(frozen=True, slots=True)
class Entry:
    """One session. ``secret`` is set only in what :meth:`Ledger.advance` returns."""

    session: bytes
    state: State
    created: float
    artefact: bytes
    binding: bytes | None
    peer: str
    secret: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Seen:
    """To be kept with a change: ``peer``'s ledger of ``epoch`` has used ``session``."""

    peer: str
    epoch: bytes
    session: bytes


class Ledger:
    """One party's ledger in the file ``path``; safe for threads, closed to other processes.

    With a :class:`Database` instead, wherever that is. All methods raise StoreError when it cannot
    be read or written. A change that raised StoreError may or may not have happened; the session
    must be burnt or left alone.
    """

    def __init__(self, path: Path | Database, transitions: Transitions) -> None:
        self._database: Database = SqliteFile(path) if isinstance(path, Path) else path
        self._transitions = transitions
        try:
            self._database.make(secrets.token_bytes(EPOCH_BYTES), transitions.party)
            self.epoch = self._check_party()
            self._burn_abandoned()
        except BaseException:
            self._database.close()
            raise

    def close(self) -> None:
        """Let another process open the ledger. Closing again does nothing."""
        self._database.close()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def create(
        self,
        session: bytes,
        *,
        artefact: bytes,
        peer: str,
        binding: bytes | None = None,
        secret: bytes | None = None,
        seen: Seen | None = None,
    ) -> None:
        """Enter a new session in the initial state.

        Raises SessionStateError when the id is known, in whatever state: it serves once.
        """
        messages.session_id(session)
        messages.artefact_id(artefact)
        try:
            with self._database.transaction() as connection:
                self._insert(
                    connection,
                    Entry(
                        session,
                        self._transitions.initial,
                        time.time(),
                        artefact,
                        binding,
                        peer,
                        secret,
                    ),
                )
                _keep(connection, seen)
        except AlreadyKnownError:
            raise SessionStateError(
                f"{_name(session)} is known to the {self._transitions.party} already; "
                "a session serves once, prepare another"
            ) from None

    def advance(
        self,
        session: bytes,
        expected: State,
        new: State,
        *,
        binding: bytes | None = None,
        secret: bytes | None = None,
        seen: Seen | None = None,
        charge: Charge | None = None,
    ) -> Entry:
        """Move a session from ``expected`` to ``new``, if that is where it is, durably.

        ``binding`` and ``secret`` replace what was there when given. A step that erases overwrites
        the secret on disk and hands its last copy out in the returned entry. Of two callers, one
        succeeds. ``charge`` is counted with it, or neither is done: then ResourceError says when it
        fits. Raises SessionStateError and UnknownSessionError.
        """
        erases = self._transitions.erases(expected, new)
        if erases and secret is not None:
            raise SessionStateError(f"a session that becomes {new} keeps no secret; pass none")
        lock = self._database.row_lock
        with self._database.transaction() as connection:
            before = connection.execute(
                f"SELECT {_COLUMNS}, secret, used FROM session WHERE id = ? AND state = ?{lock}",  # noqa: S608 - constant text
                (session, expected),
            ).fetchone()
            if before is None:
                raise self._refusal(connection, session, expected)
            if charge is not None:
                quotas.count(connection, lock, before[5], charge)
            kept = None if erases else secret if secret is not None else before[6]
            bound = binding if binding is not None else before[4]
            used = 1 if self._transitions.uses(expected, new) else before[7]
            connection.execute(
                "UPDATE session SET state = ?, binding = ?, secret = ?, used = ?, holder = ? "
                "WHERE id = ?",
                (new, bound, kept, used, self._database.holder, session),
            )
            _keep(connection, seen)
        return Entry(
            session, new, before[2], before[3], bound, before[5], before[6] if erases else kept
        )

    def burn(self, session: bytes, seen: Seen | None = None) -> None:
        """End a session in whatever state it is, and erase its secret.

        Raises UnknownSessionError.
        """
        with self._database.transaction() as connection:
            changed = connection.execute(
                "UPDATE session SET state = ?, secret = NULL WHERE id = ?", (State.BURNT, session)
            ).rowcount
            if not changed:
                raise self._unknown(session)
            _keep(connection, seen)

    def expire(self, state: State, seconds: float) -> int:
        """Burn the sessions that have been in a state since before so many seconds ago.

        ``seconds`` count from the session's entry. Returns how many. What ended unused is forgotten
        an hour after its entry, some of it at a time, by the parties that may do so.
        """
        with self._database.transaction() as connection:
            changed: int = connection.execute(
                "UPDATE session SET state = ?, secret = NULL WHERE state = ? AND created < ?",
                (State.BURNT, state, time.time() - seconds),
            ).rowcount
            if self._transitions.forgets:
                forgetting.forget_unused(connection, time.time())
        return changed

    def get(self, session: bytes) -> Entry:
        """A session, without its secret. Raises UnknownSessionError."""
        found = self._select("WHERE id = ?", (session,))
        if not found:
            raise self._unknown(session)
        return found[0]

    def rows(self, state: State) -> list[Entry]:
        """All sessions in a state, oldest first, without their secrets."""
        return self._select("WHERE state = ? ORDER BY created, id", (state,))

    def sessions(self, *states: State) -> set[bytes]:
        """The ids of all sessions that are in one of these states."""
        condition = " OR ".join(["state = ?"] * len(states))
        with self._database.transaction() as connection:
            found = connection.execute(
                f"SELECT id FROM session WHERE {condition}",  # noqa: S608 - constant text
                tuple(map(str, states)),
            ).fetchall()
        return {row[0] for row in found}

    def count(self, state: State, peer: str | None = None) -> int:
        """How many sessions are in a state, of one peer or of all."""
        condition, values = "WHERE state = ?", [str(state)]
        if peer is not None:
            condition, values = f"{condition} AND peer = ?", [*values, peer]
        with self._database.transaction() as connection:
            number: int = connection.execute(
                f"SELECT count(*) FROM session {condition}",  # noqa: S608 - constant text
                values,
            ).fetchone()[0]
        return number

    def mark(self, peer: str, epoch: bytes | None = None) -> Mark:
        """What to tell a peer: of its ledger of ``epoch``, or of the one that it used last.

        Raises ResourceError for an ``epoch`` beyond those of which marks are kept.
        """
        values: tuple[object, ...] = (peer,)
        condition = "peer = ? ORDER BY kept DESC LIMIT 1"
        if epoch is not None:
            condition, values = "peer = ? AND epoch = ?", (peer, epoch)
        with self._database.transaction() as connection:
            found = connection.execute(
                f"SELECT epoch, session FROM mark WHERE {condition}",  # noqa: S608 - constant text
                values,
            ).fetchone()
            if found is None and epoch is not None:
                forgetting.check_room(connection, peer)
        return Mark(self.epoch, *(found or (epoch or NOTHING, NOTHING)))

    def check_used(self, mark: Mark, peer: str | None = None) -> None:
        """Find out from what a peer says whether this ledger is a copy that was put back.

        ``mark.seen`` must be used here. Where it is not, all sessions that wait are burnt, of
        ``peer`` or of all, and RestoredLedgerError is raised; once, since the mark is then entered
        as used.
        """
        self._check(mark, "used > 0", peer)

    def check_known(self, mark: Mark, peer: str | None = None) -> None:
        """The same for a mark that must be known here, in whatever state."""
        self._check(mark, "1 = 1", peer)

    def _check(self, mark: Mark, condition: str, peer: str | None) -> None:
        if mark.peer_epoch != self.epoch or mark.seen == NOTHING:
            return
        with self._database.transaction() as connection:
            fits = connection.execute(
                f"SELECT 1 FROM session WHERE id = ? AND {condition}",  # noqa: S608 - constant text
                (mark.seen,),
            ).fetchone()
            if fits is not None:
                return
            burnt = self._burn_waiting(connection, peer)
            self._enter_as_used(connection, mark.seen, peer or "")
        raise RestoredLedgerError(
            f"the {self._transitions.party}'s ledger is older than what its peer has seen of it "
            f"({_name(mark.seen)}): a copy was put back; {burnt} prepared session(s) that might "
            "have served before are burnt. Prepare new ones; restore no copy of a ledger"
        )

    def _burn_waiting(self, connection: Transaction, peer: str | None) -> int:
        burnt = 0
        for state in self._transitions.waiting:
            condition, values = "state = ?", [str(State.BURNT), str(state)]
            if peer is not None:
                condition, values = "state = ? AND peer = ?", [*values, peer]
            burnt += connection.execute(
                f"UPDATE session SET state = ?, secret = NULL WHERE {condition}",  # noqa: S608 - constant text
                values,
            ).rowcount
        return burnt

    def _enter_as_used(self, connection: Transaction, session: bytes, peer: str) -> None:
        """So that a peer's word counts once, of its newest ones: others are found out anew."""
        changed = connection.execute(
            "UPDATE session SET used = ? WHERE id = ?", (forgetting.TOLD, session)
        ).rowcount
        if not changed:
            entry = Entry(session, State.BURNT, time.time(), NOTHING, None, peer)
            self._insert(connection, entry, used=forgetting.TOLD)
        forgetting.forget_told(connection, peer)

    def _insert(self, connection: Transaction, entry: Entry, used: int = 0) -> None:
        connection.execute(
            f"INSERT INTO session ({_COLUMNS}, secret, used, holder) "  # noqa: S608 - constant text
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                entry.session,
                entry.state,
                entry.created,
                entry.artefact,
                entry.binding,
                entry.peer,
                entry.secret,
                used,
                self._database.holder,
            ),
        )

    def _select(self, condition: str, values: tuple[object, ...]) -> list[Entry]:
        with self._database.transaction() as connection:
            rows = connection.execute(
                f"SELECT {_COLUMNS} FROM session {condition}",  # noqa: S608 - constant text
                values,
            ).fetchall()
        return [Entry(row[0], State(row[1]), *row[2:]) for row in rows]

    def _refusal(self, connection: Transaction, session: bytes, expected: State) -> RadiopaqueError:
        row = connection.execute("SELECT state FROM session WHERE id = ?", (session,)).fetchone()
        if row is None:
            return self._unknown(session)
        return SessionStateError(
            f"{_name(session)} is {row[0]} at the {self._transitions.party}, not {expected}; "
            "a session serves once, prepare another"
        )

    def _unknown(self, session: bytes) -> UnknownSessionError:
        return UnknownSessionError(
            f"{_name(session)} is not known to the {self._transitions.party}; prepare another"
        )

    def _check_party(self) -> bytes:
        """Check that the ledger is of this kind. Returns its epoch."""
        name, party = self._database.name, self._transitions.party
        with self._database.transaction() as connection:
            found = connection.execute("SELECT name, format, epoch FROM party").fetchone()
        if found[1] != FORMAT:
            raise wrong_format(name, found[1])
        if found[0] != party:
            raise StoreError(
                f"{name} is that of a {found[0]}, not of a {party}; give each party its own store"
            )
        epoch: bytes = found[2]
        return epoch

    def _burn_abandoned(self) -> None:
        with self._database.transaction() as connection:
            for state in self._transitions.abandoned:
                connection.execute(
                    "UPDATE session SET state = ?, secret = NULL WHERE state = ? AND holder = ?",
                    (State.BURNT, state, self._database.holder),
                )


def open_ledger(store: Path, transitions: Transitions, conninfo: str | None, name: str) -> Ledger:
    """The ledger of a server: a file in its store, or, with ``conninfo``, PostgreSQL.

    ``name`` is that of the replica. Raises ConfigError where the extra is not installed, and where
    keys would travel to another machine without verified TLS.
    """
    if conninfo is None:
        return Ledger(store / "sessions.sqlite", transitions)
    from radiopaque.ledger.postgresql import PostgresqlDatabase

    return Ledger(PostgresqlDatabase(conninfo, name), transitions)


def _keep(connection: Transaction, seen: Seen | None) -> None:
    """Keep a peer's newest mark, in the transaction of the change that it comes with."""
    if seen is None:
        return
    connection.execute(
        "INSERT INTO mark (peer, epoch, session, kept) VALUES (?, ?, ?, ?) "
        "ON CONFLICT (peer, epoch) DO UPDATE SET session = excluded.session, kept = excluded.kept",
        (seen.peer, seen.epoch, seen.session, time.time()),
    )


def _name(session: bytes) -> str:
    return f"session {session.hex()[:8]}"
