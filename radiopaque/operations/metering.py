"""What each caller used, added up by day in an SQLite file, for bills and capacity planning.

One row for a day, a caller, a method and a model: calls, sessions started, bytes, CPU seconds.
``radiopaque usage`` reads it, also while the party serves. It survives the process being killed; a
loss of power may take the last entries, since nobody's privacy rests on them.

CPU seconds are the whole process's, its worker processes' too, shared at each moment equally by the
calls under way. So they add up to what the process used while it served, whatever threads did it;
what one of several simultaneous calls took by itself is not measured.
"""

from __future__ import annotations

import os
import resource
import sqlite3
import threading
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, Final

from radiopaque.errors import StoreError
from radiopaque.files import PRIVATE_FILE_MODE
from radiopaque.telemetry import get_logger
from radiopaque.transport.admission import Call
from radiopaque.transport.observer import OK, Observer

FILE: Final = "usage.sqlite"
_FORMAT: Final = 1
_KEY: Final = "day, role, caller, method, model, version"
_SUMS: Final = ("calls", "failed", "sessions", "received_bytes", "sent_bytes", "cpu_seconds")
_SCHEMA: Final = f"""
CREATE TABLE IF NOT EXISTS usage (
    day TEXT, role TEXT, caller TEXT, method TEXT, model TEXT, version TEXT,
    calls INTEGER, failed INTEGER, sessions INTEGER,
    received_bytes INTEGER, sent_bytes INTEGER, cpu_seconds REAL,
    PRIMARY KEY ({_KEY})
) STRICT
"""
_ADD: Final = f"""
INSERT INTO usage VALUES ({", ".join("?" * 12)})
ON CONFLICT DO UPDATE SET {", ".join(f"{name} = {name} + excluded.{name}" for name in _SUMS)}
"""  # noqa: S608 - constant text

_log = get_logger(__name__)


def process_seconds() -> float:
    """CPU seconds of this process and of its children that have ended."""
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in used)


class Shares:
    """Divides what a clock counts among those that are present."""

    def __init__(self, clock: Callable[[], float] = process_seconds) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._present = 0
        self._each = 0.0
        self._last = 0.0

    def enter(self) -> float:
        """Begin to share; the answer is for :meth:`leave`."""
        with self._lock:
            self._advance()
            self._present += 1
            return self._each

    def leave(self, entered: float) -> float:
        """End, and hear one's share."""
        with self._lock:
            self._advance()
            self._present -= 1
            return self._each - entered

    def _advance(self) -> None:
        now = self._clock()
        if self._present:
            self._each += (now - self._last) / self._present
        self._last = now


class Meter(Observer):
    """Adds every call of one server to the file ``usage.sqlite`` in its store.

    Raises StoreError where the file cannot be opened. A call that cannot be entered later is
    logged: the service goes on.
    """

    def __init__(self, store: Path) -> None:
        path = store / FILE
        self._lock = threading.Lock()
        self._shares = Shares()
        self._entered: dict[int, float] = {}
        try:
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, PRIVATE_FILE_MODE))
            self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.execute("PRAGMA synchronous = NORMAL")
            self._connection.execute(_SCHEMA)
            self._connection.execute(f"PRAGMA user_version = {_FORMAT}")
        except (OSError, sqlite3.Error) as error:
            raise StoreError(
                f"cannot open the metering file {path}: {error}; move it away to begin a new one"
            ) from error

    def close(self) -> None:
        """Let go of the file."""
        with self._lock:
            self._connection.close()

    def begun(self, method: str, call: Call) -> None:
        self._entered[id(call)] = self._shares.enter()

    def ended(self, method: str, call: Call, outcome: str) -> None:
        seconds = self._shares.leave(self._entered.pop(id(call)))
        peer, about, counters = call.peer, call.about, call.counters
        day = datetime.fromtimestamp(call.began, UTC).date().isoformat()
        row = (
            *(day, str(peer.role), peer.name, method),
            *(about.get("model", ""), about.get("version", "")),
            *(1, int(outcome != OK), int("session" in about)),
            *(counters.received_bytes, counters.sent_bytes, seconds),
        )
        try:
            with self._lock:
                self._connection.execute(_ADD, row)
        except sqlite3.Error as error:
            _log.failure("a call could not be metered", error, method=method, peer=str(peer))


@dataclass(frozen=True, slots=True)
class Usage:
    """What one caller used with one method and model, over the days that were asked for.

    ``sessions``: for Infer those that were started, whatever came of them; for Prepare those that
    were made. ``failed``: calls that did not end well, of all ``calls``.
    """

    role: str
    caller: str
    method: str
    model: str
    version: str
    calls: int
    failed: int
    sessions: int
    received_bytes: int
    sent_bytes: int
    cpu_seconds: float


def read_usage(store: Path, first: date | None = None, last: date | None = None) -> list[Usage]:
    """The sums from ``first`` to ``last``, both included, in UTC. Raises StoreError."""
    path = store / FILE
    if not path.exists():
        raise StoreError(f"{path} does not exist; this party has not served yet")
    sums = ", ".join(f"sum({name})" for name in _SUMS)
    query = (
        f"SELECT role, caller, method, model, version, {sums} FROM usage "  # noqa: S608 - constant
        "WHERE day BETWEEN ? AND ? GROUP BY role, caller, method, model, version"
    )
    days: tuple[Any, ...] = (str(first or date.min), str(last or date.max))
    try:
        with closing(
            sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
        ) as connection:
            return [Usage(*row) for row in connection.execute(query, days)]
    except sqlite3.Error as error:
        raise StoreError(
            f"cannot read {path}: {error}; check that it is a metering file"
        ) from error
