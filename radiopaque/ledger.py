"""The ledger: which sessions exist, how far each has come, and the keys that still wait for use.

Every mask serves once, so a state must not be forgotten, whatever happens to the process or to the
machine, and a key must be gone once its session has started. Hence one embedded SQLite file with

* one statement for a change of state, which takes the state it expects as a condition;
* ``journal_mode=TRUNCATE`` and ``synchronous=FULL``: when a call returns, the change is on the
  disk. A write-ahead log would keep erased keys until some later checkpoint; a deleted journal
  might come back after a loss of power and undo the change, a truncated one is synchronised first;
* ``secure_delete``: an erased key is overwritten in the file. Disks keep old copies of blocks out
  of any program's reach: encrypt the disk;
* one process at a time, by a lock on a file beside it that the kernel drops with the process.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType
from typing import Final

from radiopaque.errors import (
    RadiopaqueError,
    SessionStateError,
    StoreError,
    UnknownSessionError,
)
from radiopaque.files import PRIVATE_FILE_MODE, make_private_directory
from radiopaque.wire import messages

_FORMAT: Final = 1
_SCHEMA: Final = """
CREATE TABLE party (name TEXT NOT NULL) STRICT;
CREATE TABLE session (
    id       BLOB PRIMARY KEY CHECK (length(id) = 16),
    state    TEXT NOT NULL,
    created  REAL NOT NULL,
    artefact BLOB NOT NULL CHECK (length(artefact) = 16),
    binding  BLOB CHECK (length(binding) = 32),
    peer     TEXT NOT NULL,
    secret   BLOB
) STRICT;
CREATE INDEX session_by_state ON session (state, peer, created);
"""
_COLUMNS: Final = "id, state, created, artefact, binding, peer"


class State(StrEnum):
    """How far a session has come."""

    FRESH = "FRESH"
    BOUND = "BOUND"
    PREPARING = "PREPARING"
    READY = "READY"
    RESERVED = "RESERVED"
    DEALT = "DEALT"
    STARTED = "STARTED"
    BURNT = "BURNT"


@dataclass(frozen=True, slots=True)
class Transitions:
    """One party's life of a session, as data.

    ``steps`` says of each allowed step whether it erases the secret. Every state may also go to
    BURNT, which erases. ``abandoned`` are states that no session can be in when the ledger is
    opened, unless the process died in the middle of it: such a session is burnt.
    """

    party: str
    initial: State
    steps: Mapping[tuple[State, State], bool]
    abandoned: frozenset[State]

    def erases(self, old: State, new: State) -> bool:
        """Whether a step erases the secret. Raises SessionStateError when it is no step."""
        if new is State.BURNT:
            return True
        if (old, new) not in self.steps:
            raise SessionStateError(
                f"a session of the {self.party} does not go from {old} to {new}"
            )
        return self.steps[old, new]


_KEEPS, _ERASES = False, True

DATA_OWNER: Final = Transitions(
    "data owner",
    State.FRESH,
    MappingProxyType(
        {
            (State.FRESH, State.BOUND): _KEEPS,  # before the offline message leaves
            (State.BOUND, State.STARTED): _ERASES,  # before the masked image leaves
        }
    ),
    frozenset({State.FRESH, State.STARTED}),
)
MODEL_OWNER: Final = Transitions(
    "model owner",
    State.PREPARING,
    MappingProxyType(
        {
            (State.PREPARING, State.READY): _KEEPS,  # both offline messages in files
            (State.READY, State.STARTED): _ERASES,  # before the first online message leaves
        }
    ),
    frozenset({State.PREPARING, State.STARTED}),
)
CRYPTO_PROVIDER: Final = Transitions(
    "crypto provider",
    State.RESERVED,
    MappingProxyType({(State.RESERVED, State.DEALT): _ERASES}),  # before the first correction
    frozenset({State.DEALT}),
)


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


class Ledger:
    """One party's ledger in the file ``path``; safe for threads, closed to other processes.

    All methods raise StoreError when the file cannot be read or written. A change that raised
    StoreError may or may not have happened; the session must be burnt or left alone.
    """

    def __init__(self, path: Path, transitions: Transitions) -> None:
        self._path = path
        self._transitions = transitions
        self._mutex = threading.Lock()
        make_private_directory(path.parent)
        self._lock = _take_lock(path)
        try:
            with self._reported():
                self._connection = _connect(path)
            self._check_format()
            self._burn_abandoned()
        except BaseException:
            os.close(self._lock)
            raise

    def close(self) -> None:
        """Let another process open the ledger. Closing again does nothing."""
        with self._mutex:
            if self._lock >= 0:
                self._connection.close()
                os.close(self._lock)
                self._lock = -1

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
    ) -> None:
        """Enter a new session in the initial state.

        Raises SessionStateError when the id is known, in whatever state: it serves once.
        """
        messages.session_id(session)
        messages.artefact_id(artefact)
        row = (session, self._transitions.initial, time.time(), artefact, binding, peer, secret)
        try:
            with self._transaction() as connection:
                connection.execute(
                    f"INSERT INTO session ({_COLUMNS}, secret) VALUES (?, ?, ?, ?, ?, ?, ?)",  # noqa: S608 - constant text
                    row,
                )
        except _AlreadyKnownError:
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
    ) -> Entry:
        """Move a session from ``expected`` to ``new``, if that is where it is, durably.

        ``binding`` and ``secret`` replace what was there when given. A step that erases overwrites
        the secret on disk and hands its last copy out in the returned entry. Of two callers, one
        succeeds. Raises SessionStateError and UnknownSessionError.
        """
        erases = self._transitions.erases(expected, new)
        if erases and secret is not None:
            raise SessionStateError(f"a session that becomes {new} keeps no secret; pass none")
        with self._transaction() as connection:
            before = connection.execute(
                f"SELECT {_COLUMNS}, secret FROM session WHERE id = ? AND state = ?",  # noqa: S608 - constant text
                (session, expected),
            ).fetchone()
            if before is None:
                raise self._refusal(connection, session, expected)
            kept = None if erases else secret if secret is not None else before[6]
            bound = binding if binding is not None else before[4]
            connection.execute(
                "UPDATE session SET state = ?, binding = ?, secret = ? WHERE id = ?",
                (new, bound, kept, session),
            )
        return Entry(
            session, new, before[2], before[3], bound, before[5], before[6] if erases else kept
        )

    def burn(self, session: bytes) -> None:
        """End a session in whatever state it is, and erase its secret.

        Raises UnknownSessionError.
        """
        with self._transaction() as connection:
            changed = connection.execute(
                "UPDATE session SET state = ?, secret = NULL WHERE id = ?", (State.BURNT, session)
            ).rowcount
            if not changed:
                raise self._unknown(session)

    def expire(self, state: State, seconds: float) -> int:
        """Burn the sessions that have been in a state since before so many seconds ago.

        ``seconds`` count from the session's entry. Returns how many.
        """
        with self._transaction() as connection:
            changed: int = connection.execute(
                "UPDATE session SET state = ?, secret = NULL WHERE state = ? AND created < ?",
                (State.BURNT, state, time.time() - seconds),
            ).rowcount
        return changed

    def get(self, session: bytes) -> Entry:
        """A session, without its secret. Raises UnknownSessionError."""
        found = self._select("WHERE id = ?", (session,))
        if not found:
            raise self._unknown(session)
        return found[0]

    def rows(self, state: State) -> list[Entry]:
        """All sessions in a state, oldest first, without their secrets."""
        return self._select("WHERE state = ? ORDER BY created, rowid", (state,))

    def count(self, state: State, peer: str | None = None) -> int:
        """How many sessions are in a state, of one peer or of all."""
        condition, values = "WHERE state = ?", [str(state)]
        if peer is not None:
            condition, values = f"{condition} AND peer = ?", [*values, peer]
        with self._mutex, self._reported():
            number: int = self._connection.execute(
                f"SELECT count(*) FROM session {condition}",  # noqa: S608 - constant text
                values,
            ).fetchone()[0]
        return number

    def _select(self, condition: str, values: tuple[object, ...]) -> list[Entry]:
        with self._mutex, self._reported():
            rows = self._connection.execute(
                f"SELECT {_COLUMNS} FROM session {condition}",  # noqa: S608 - constant text
                values,
            ).fetchall()
        return [Entry(row[0], State(row[1]), *row[2:]) for row in rows]

    def _refusal(
        self, connection: sqlite3.Connection, session: bytes, expected: State
    ) -> RadiopaqueError:
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

    def _check_format(self) -> None:
        """Create the tables in a new file, or check that an old one is of this kind."""
        with self._transaction() as connection:
            found = connection.execute("PRAGMA user_version").fetchone()[0]
            if found == 0:
                for statement in _SCHEMA.split(";"):
                    connection.execute(statement)
                connection.execute(f"PRAGMA user_version = {_FORMAT}")
                connection.execute("INSERT INTO party VALUES (?)", (self._transitions.party,))
            elif found != _FORMAT:
                raise StoreError(
                    f"ledger {self._path} has format {found}, this version reads {_FORMAT}; "
                    "use the version that wrote it"
                )
            party = connection.execute("SELECT name FROM party").fetchone()[0]
            if party != self._transitions.party:
                raise StoreError(
                    f"ledger {self._path} is that of a {party}, not of a "
                    f"{self._transitions.party}; give each party its own store"
                )

    def _burn_abandoned(self) -> None:
        with self._transaction() as connection:
            for state in self._transitions.abandoned:
                connection.execute(
                    "UPDATE session SET state = ?, secret = NULL WHERE state = ?",
                    (State.BURNT, state),
                )

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._mutex, self._reported():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    @contextmanager
    def _reported(self) -> Iterator[None]:
        """SQLite's errors as StoreError."""
        try:
            yield
        except sqlite3.IntegrityError as error:
            if error.sqlite_errorname == "SQLITE_CONSTRAINT_PRIMARYKEY":
                raise _AlreadyKnownError from None
            raise StoreError(f"ledger {self._path} refuses an entry: {error}") from error
        except sqlite3.Error as error:
            raise StoreError(
                f"ledger {self._path} cannot be used: {error}; check the disk, "
                "and restore no copy of it: sessions would serve twice"
            ) from error


class _AlreadyKnownError(Exception):
    """A session id is in the ledger."""


def _name(session: bytes) -> str:
    return f"session {session.hex()[:8]}"


def _take_lock(path: Path) -> int:
    """Lock the ledger for this process; the returned descriptor holds the lock."""
    lock = path.with_name(path.name + ".lock")
    try:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, PRIVATE_FILE_MODE)
    except OSError as error:
        raise StoreError(f"cannot create {lock}: {error.strerror}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = os.read(descriptor, 20).decode("ascii", "replace").strip() or "unknown"
        os.close(descriptor)
        raise StoreError(
            f"ledger {path} is in use by process {holder}; stop that one first, "
            "or give this one another store"
        ) from error
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n".encode("ascii"), 0)
    return descriptor


def _connect(path: Path) -> sqlite3.Connection:
    try:
        # SQLite would create it with the rights of the process's umask.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, PRIVATE_FILE_MODE))
    except OSError as error:
        raise StoreError(f"cannot open ledger {path}: {error.strerror}") from error
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    for setting in (
        "journal_mode = TRUNCATE",
        "synchronous = FULL",
        "secure_delete = ON",
        "temp_store = MEMORY",
        "trusted_schema = OFF",
    ):
        connection.execute(f"PRAGMA {setting}")
    return connection
