"""Where a ledger is kept: an SQLite file (the default), or PostgreSQL for several replicas.

Both are used through the same few statements, written for both; parameters are ``?``. What differs
is here: how a change is made durable, how an erased secret leaves the disk, who else may write.
"""

from __future__ import annotations

import io
import os
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Protocol

from radiopaque.errors import StoreError
from radiopaque.files import PRIVATE_FILE_MODE, InUseError, make_private_directory, open_locked

FORMAT: Final = 3
SCHEMA: Final = """
CREATE TABLE session (
    id       {blob} PRIMARY KEY CHECK (length(id) = 16),
    state    TEXT NOT NULL,
    created  {real} NOT NULL,
    artefact {blob} NOT NULL CHECK (length(artefact) = 16),
    binding  {blob} CHECK (length(binding) = 32),
    peer     TEXT NOT NULL,
    secret   {blob},
    used     INTEGER NOT NULL DEFAULT 0,
    holder   TEXT NOT NULL
) {suffix};
CREATE INDEX session_by_state ON session (state, peer, created);
CREATE INDEX session_unused ON session (state, used, created)
    WHERE state = 'BURNT' AND used = 0;
CREATE INDEX session_told ON session (state, used, peer, created)
    WHERE state = 'BURNT' AND used = 2;
CREATE TABLE mark (
    peer     TEXT NOT NULL,
    epoch    {blob} NOT NULL CHECK (length(epoch) = 16),
    session  {blob} NOT NULL CHECK (length(session) = 16),
    kept     {real} NOT NULL,
    PRIMARY KEY (peer, epoch)
) {suffix};
CREATE INDEX mark_by_peer ON mark (peer, kept);
CREATE TABLE party (
    name     TEXT NOT NULL,
    format   INTEGER NOT NULL,
    epoch    {blob} NOT NULL CHECK (length(epoch) = 16)
) {suffix};
CREATE TABLE spent (
    peer     TEXT NOT NULL,
    at       {real} NOT NULL,
    amount   INTEGER NOT NULL
) {suffix};
CREATE INDEX spent_by_peer ON spent (peer, at);
"""


_ENDED: Final = bytes(8)
"""What a journal begins with that is not to be played back."""
_BLOCK_BYTES: Final = 1 << 16


class AlreadyKnownError(Exception):
    """A session id is in the ledger."""


class Cursor(Protocol):
    """What a statement gave."""

    @property
    def rowcount(self) -> int: ...

    def fetchone(self) -> Any: ...

    def fetchall(self) -> Any: ...


class Transaction(Protocol):
    """Statements of which all happen or none."""

    def execute(self, statement: str, values: Sequence[object] = ()) -> Cursor: ...


class Database(Protocol):
    """Raises StoreError where it cannot be used, AlreadyKnownError for a second session id.

    ``name`` says where it is, for messages. ``row_lock`` ends a SELECT whose rows are changed next.
    """

    name: str
    row_lock: str
    holder: str

    def transaction(self) -> Any:
        """A context that yields a Transaction and makes it durable. One thread at a time."""
        ...

    def make(self, epoch: bytes, party: str) -> None:
        """Create the tables where there are none."""
        ...

    def close(self) -> None: ...


class SqliteFile:
    """One embedded file; one process at a time.

    * ``journal_mode=PERSIST`` and ``synchronous=FULL``: when a call returns, the change is on the
      disk. A write-ahead log would keep erased keys until some later checkpoint; a deleted journal
      might come back after a loss of power and undo the change, the one that stays is marked as
      ended, and synchronised, first;
    * ``secure_delete``: an erased key is overwritten in the file, and here in the journal, which
      has pages as they were before a change. Disks keep old copies of blocks out of any program's
      reach: encrypt the disk;
    * a lock on a file beside it that the kernel drops with the process.
    """

    row_lock = ""
    holder = ""

    def __init__(self, path: Path) -> None:
        self.name = f"ledger {path}"
        self._journal = path.with_name(path.name + "-journal")
        self._mutex = threading.Lock()
        make_private_directory(path.parent)
        self._lock = _take_lock(path)
        try:
            # which undoes what was interrupted
            with self._reported(), _cleared(self._journal):
                self.connection = _connect(path)
        except BaseException:
            os.close(self._lock)
            raise

    def make(self, epoch: bytes, party: str) -> None:
        with self.transaction() as connection:
            found = connection.execute("PRAGMA user_version").fetchone()[0]
            if found not in (0, FORMAT):
                raise wrong_format(self.name, found)
            if found == 0:
                schema = SCHEMA.format(blob="BLOB", real="REAL", suffix="STRICT")
                for statement in schema.split(";"):
                    connection.execute(statement)
                connection.execute(f"PRAGMA user_version = {FORMAT}")
                connection.execute("INSERT INTO party VALUES (?, ?, ?)", (party, FORMAT, epoch))

    def close(self) -> None:
        """Let another process open the ledger. Closing again does nothing."""
        with self._mutex:
            if self._lock >= 0:
                self.connection.close()
                os.close(self._lock)
                self._lock = -1

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        with self._mutex, self._reported():
            before = self.connection.total_changes
            self.connection.execute("BEGIN IMMEDIATE")
            try:
                yield self.connection
                self.connection.execute("COMMIT")
            except BaseException:
                if self.connection.in_transaction:
                    self.connection.execute("ROLLBACK")
                raise
            finally:
                if self.connection.total_changes != before:
                    with _cleared(self._journal):
                        pass

    @contextmanager
    def _reported(self) -> Iterator[None]:
        """SQLite's errors as StoreError."""
        try:
            yield
        except sqlite3.IntegrityError as error:
            if error.sqlite_errorname == "SQLITE_CONSTRAINT_PRIMARYKEY":
                raise AlreadyKnownError from None
            raise StoreError(f"{self.name} refuses an entry: {error}") from error
        except sqlite3.Error as error:
            raise StoreError(
                f"{self.name} cannot be used: {error}; check the disk, "
                "and restore no copy of it: sessions would serve twice"
            ) from error


@contextmanager
def _cleared(path: Path) -> Iterator[None]:
    """Overwrites the pages in a journal afterwards, also if SQLite removes it meanwhile."""
    try:
        journal = path.open("r+b", buffering=0) if path.exists() else None
    except OSError as error:
        raise _not_overwritten(path, error) from error
    if journal is None:
        yield
        return
    with journal:
        yield
        try:
            _overwrite(journal)
        except OSError as error:
            raise _not_overwritten(path, error) from error


def _not_overwritten(path: Path, error: OSError) -> StoreError:
    return StoreError(f"{path} cannot be overwritten: {error.strerror}; check the disk")


def _overwrite(journal: io.FileIO) -> None:
    """With zeros, if it has ended: one that has not still undoes its change."""
    status = os.fstat(journal.fileno())
    if status.st_nlink and journal.read(len(_ENDED)) != _ENDED:
        return
    journal.seek(0)
    for start in range(0, status.st_size, _BLOCK_BYTES):
        journal.write(bytes(min(_BLOCK_BYTES, status.st_size - start)))
    os.fdatasync(journal.fileno())
    if status.st_size > _BLOCK_BYTES:
        journal.truncate(0)


def wrong_format(name: str, found: object) -> StoreError:
    return StoreError(
        f"{name} has format {found}, this version reads {FORMAT}; use the version that wrote it, "
        "or move it away: sessions that are prepared are then made anew, nothing else is lost"
    )


def _take_lock(path: Path) -> int:
    """Lock the ledger for this process; the returned descriptor holds the lock."""
    lock = path.with_name(path.name + ".lock")
    try:
        descriptor = open_locked(lock)
    except InUseError as error:
        holder = error.begins.decode("ascii", "replace").strip() or "unknown"
        raise StoreError(
            f"ledger {path} is in use by process {holder}; stop that one first, "
            "or give this one another store"
        ) from error
    except OSError as error:
        raise StoreError(f"cannot create {lock}: {error.strerror}") from error
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
        "journal_mode = PERSIST",
        "synchronous = FULL",
        "secure_delete = ON",
        "temp_store = MEMORY",
        "trusted_schema = OFF",
    ):
        connection.execute(f"PRAGMA {setting}")
    return connection
