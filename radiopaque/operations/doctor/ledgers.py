"""Checks of a party's ledger file, read while the party may be using it, and of its stock."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final

from radiopaque.errors import StoreError
from radiopaque.ledger import State
from radiopaque.ledger.databases import FORMAT, Transaction
from radiopaque.operations.doctor.findings import Finding, fail, fine, warn

FILE: Final = "sessions.sqlite"
_AHEAD_SECONDS: Final = 300.0
_WAIT_SECONDS: Final = 10.0
_DO_NOT_RESTORE: Final = "restore no copy of it: move the store away and prepare anew"

Reader = Transaction | sqlite3.Connection


def ledger(store: Path, database: str | None = None) -> Iterator[Finding]:
    """Whether the ledger is whole, writable and keeps no key that it should have erased.

    ``database`` is where it is in PostgreSQL, instead of the file in ``store``; raises StoreError
    and ConfigError where that cannot be used.
    """
    if database is not None:
        with _database(database) as statements:
            yield from _database_sanity(statements)
        return
    path = store / FILE
    if not path.exists():
        yield warn("ledger", f"{path} does not exist", "it is made when the party is first used")
        return
    if not (os.access(path, os.W_OK) and os.access(store, os.W_OK)):
        yield fail("ledger", f"{path} cannot be written", "let the party's user own its store")
        return
    try:
        with _file(path) as connection:
            yield from _file_sanity(connection)
    except sqlite3.Error as error:
        yield fail("ledger", f"{path} cannot be read: {error}", _DO_NOT_RESTORE)


def sessions(store: Path, database: str | None = None) -> Mapping[State, int]:
    """How many are in each state but BURNT. Raises StoreError, for PostgreSQL also ConfigError."""
    if database is not None:
        with _database(database) as statements:
            return _counts(statements) if _made(statements) else {}
    path = store / FILE
    if not path.exists():
        return {}
    try:
        with _file(path) as connection:
            return _counts(connection)
    except sqlite3.Error as error:
        raise StoreError(f"{path} cannot be read: {error}; {_DO_NOT_RESTORE}") from error


def _file(path: Path) -> closing[sqlite3.Connection]:
    uri = f"{path.absolute().as_uri()}?mode=ro"
    return closing(sqlite3.connect(uri, uri=True, timeout=_WAIT_SECONDS))


@contextmanager
def _database(conninfo: str) -> Iterator[Transaction]:
    """Under the name of a replica that nobody serves as; that the server waits for its disk and
    takes writes is checked when it is opened."""
    from radiopaque.ledger.postgresql import PostgresqlDatabase

    database = PostgresqlDatabase(conninfo, f"doctor {os.getpid()}")
    try:
        with database.transaction() as statements:
            yield statements
    finally:
        database.close()


def _file_sanity(connection: sqlite3.Connection) -> Iterator[Finding]:
    whole = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    if whole != "ok":
        yield fail("ledger", f"the file is damaged: {whole}", _DO_NOT_RESTORE)
    else:
        yield from _sanity(connection, "PRAGMA user_version")


def _database_sanity(statements: Transaction) -> Iterator[Finding]:
    if _made(statements):
        yield from _sanity(statements, "SELECT format FROM party")
    else:
        yield warn("ledger", "the database is empty", "it is filled when the party is first used")


def _made(statements: Transaction) -> bool:
    return bool(statements.execute("SELECT to_regclass('session') IS NOT NULL").fetchone()[0])


def _sanity(connection: Reader, format_query: str) -> Iterator[Finding]:
    found = connection.execute(format_query).fetchone()[0]
    if found != FORMAT:
        yield fail(
            "ledger",
            f"it has format {found}, this release reads {FORMAT}",
            "use the release that wrote it, or move it away: sessions are then prepared anew",
        )
        return
    kept = connection.execute(
        "SELECT count(*) FROM session WHERE state IN (?, ?, ?) AND secret IS NOT NULL",
        (State.STARTED, State.OPENED, State.BURNT),
    ).fetchone()[0]
    if kept:
        yield fail(
            "ledger",
            f"{kept} sessions that were used still have their key",
            "report this as a vulnerability (SECURITY.md), and move the store away",
        )
        return
    ahead = connection.execute(
        "SELECT count(*) FROM session WHERE created > ?", (time.time() + _AHEAD_SECONDS,)
    ).fetchone()[0]
    if ahead:
        yield warn(
            "ledger",
            f"{ahead} sessions were made in the future: the clock went back",
            "set the clock; such sessions expire late",
        )
    else:
        yield fine("ledger", "whole, writable, no key of a used session in it")


def _counts(connection: Reader) -> Mapping[State, int]:
    query = "SELECT count(*) FROM session WHERE state = ?"
    states = [state for state in State if state is not State.BURNT]
    counts = {state: connection.execute(query, (state,)).fetchone()[0] for state in states}
    return {state: count for state, count in counts.items() if count}


def material_bytes(store: Path) -> int:
    """Disk space of prepared material."""
    total = 0
    folder = store / "material"
    for entry in folder.iterdir() if folder.exists() else ():
        try:
            total += entry.stat().st_size
        except FileNotFoundError:  # sessions end while this looks
            continue
    return total


def stock(waiting: int, most: int, what: str) -> Iterator[Finding]:
    """How near a limit of waiting sessions is."""
    text = f"{waiting} of at most {most} sessions {what}"
    if waiting >= 0.9 * most:
        yield warn("stock", text, "raise the limit in [limits], or let sessions be used")
    else:
        yield fine("stock", text)
