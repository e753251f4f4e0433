"""Checks of a party's ledger file, read while the party may be using it, and of its stock."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Final

from radiopaque.errors import StoreError
from radiopaque.ledger import State
from radiopaque.operations.doctor.findings import Finding, fail, fine, warn

FILE: Final = "sessions.sqlite"
_AHEAD_SECONDS: Final = 300.0
_DO_NOT_RESTORE: Final = "restore no copy of it: move the store away and prepare anew"


def ledger(store: Path) -> Iterator[Finding]:
    """Whether the file is whole, writable and keeps no key that it should have erased."""
    path = store / FILE
    if not path.exists():
        yield warn("ledger", f"{path} does not exist", "it is made when the party is first used")
        return
    if not (os.access(path, os.W_OK) and os.access(store, os.W_OK)):
        yield fail("ledger", f"{path} cannot be written", "let the party's user own its store")
        return
    try:
        with closing(
            sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
        ) as connection:
            connection.execute("PRAGMA busy_timeout = 10000")
            yield from _sanity(connection)
    except sqlite3.Error as error:
        yield fail("ledger", f"{path} cannot be read: {error}", _DO_NOT_RESTORE)


def _sanity(connection: sqlite3.Connection) -> Iterator[Finding]:
    whole = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    if whole != "ok":
        yield fail("ledger", f"the file is damaged: {whole}", _DO_NOT_RESTORE)
        return
    kept = connection.execute(
        "SELECT count(*) FROM session WHERE state IN (?, ?) AND secret IS NOT NULL",
        (State.STARTED, State.BURNT),
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


def sessions(store: Path) -> Mapping[State, int]:
    """How many are in each state but BURNT. Raises StoreError."""
    path = store / FILE
    if not path.exists():
        return {}
    states = [state for state in State if state is not State.BURNT]
    query = "SELECT count(*) FROM session WHERE state = ?"
    try:
        with closing(
            sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
        ) as connection:
            counts = {state: connection.execute(query, (state,)).fetchone()[0] for state in states}
    except sqlite3.Error as error:
        raise StoreError(f"{path} cannot be read: {error}; {_DO_NOT_RESTORE}") from error
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
