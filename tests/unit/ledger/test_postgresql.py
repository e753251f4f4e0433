"""The ledger in PostgreSQL: the same behaviour, replicas, and what is refused.

Needs the server's programs (``initdb`` and ``postgres``) and psycopg; skipped without them.
"""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import count, pairwise
from pathlib import Path
from typing import Any

import pytest

from radiopaque.errors import ResourceError, RestoredLedgerError, SessionStateError, StoreError
from radiopaque.ledger import (
    CRYPTO_PROVIDER,
    DATA_OWNER,
    MODEL_OWNER,
    Ledger,
    Mark,
    Seen,
    State,
    Transitions,
)

psycopg = pytest.importorskip("psycopg")
from radiopaque.ledger import forgetting, postgresql, quotas  # noqa: E402
from radiopaque.ledger.postgresql import PostgresqlDatabase  # noqa: E402

PROGRAMS = [shutil.which(name) for name in ("initdb", "postgres")]
if not all(PROGRAMS):
    pytest.skip("no PostgreSQL server is installed", allow_module_level=True)

ARTEFACT = bytes(range(16))
PATHS = {
    "data owner": ["FRESH", "BOUND", "STARTED", "BURNT"],
    "model owner": ["PREPARING", "READY", "STARTED", "BURNT"],
    "crypto provider": ["RESERVED", "DEALT", "BURNT"],
}
NUMBERS = count()


def living() -> Iterator[tuple[int, int]]:
    """All processes that have not ended, and their parents'."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, parent = path.read_text().rpartition(")")[2].split()[:2]
            if state != "Z":
                yield int(path.parent.name), int(parent)


class Server:
    """A PostgreSQL server of its own, which can be killed and started again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        # PostgreSQL does not run as root
        self._user: dict[str, Any] = {"user": "nobody"} if os.getuid() == 0 else {}
        if self._user:
            os.chown(folder, pwd.getpwnam("nobody").pw_uid, -1)
        self._call(
            "initdb", "-A", "trust", "-U", "ledger", "-E", "UTF8", "-N", "-D", folder / "data"
        )
        self.start()

    def start(self, *settings: str) -> None:
        words = [shutil.which("postgres"), "-D", self.folder / "data", "-p", self.port]
        settings = ("recovery_init_sync_method=syncfs", *settings)
        words += ["-h", "127.0.0.1", "-k", self.folder, *(f"-c{one}" for one in settings)]
        with (self.folder.parent / "postgresql.log").open("ab") as log:
            self._process = subprocess.Popen(
                [str(word) for word in words], stdout=log, stderr=log, cwd="/", **self._user
            )
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            try:
                psycopg.connect(self.conninfo("postgres")).close()
                return
            except psycopg.OperationalError:
                time.sleep(0.05)
        log_end = (self.folder.parent / "postgresql.log").read_text()[-2000:]
        raise AssertionError(f"PostgreSQL did not start: {log_end}")

    def stop(self) -> None:
        """At once, without a checkpoint; returns when its own processes noticed that it is gone."""
        started = self.processes()
        self._process.kill()
        self._process.wait(30)
        deadline = time.monotonic() + 60
        while not started.isdisjoint(pid for pid, _ in living()):
            assert time.monotonic() < deadline, "PostgreSQL's processes outlive it"
            time.sleep(0.01)

    def processes(self) -> set[int]:
        """Its own, and those that it started: one serves each connection."""
        main = self._process.pid
        return {main, *(pid for pid, parent in living() if parent == main)}

    def conninfo(self, name: str) -> str:
        return f"host=127.0.0.1 port={self.port} user=ledger dbname={name}"

    def database(self) -> str:
        """A new database; how to connect to it."""
        name = f"ledger{next(NUMBERS)}"
        with psycopg.connect(self.conninfo("postgres"), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}".encode())
        return self.conninfo(name)

    def _call(self, program: str, *words: object) -> None:
        command = [str(shutil.which(program)), *map(str, words)]
        subprocess.run(command, check=True, capture_output=True, cwd="/", **self._user)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    # not below pytest's folder, which is closed to the user that the server runs as
    with tempfile.TemporaryDirectory(prefix="radiopaque-") as folder:
        Path(folder).chmod(0o711)
        (Path(folder) / "server").mkdir()
        server = Server(Path(folder) / "server")
        yield server
        server.stop()


Opening = Callable[..., Ledger]


@pytest.fixture
def opening(server: Server) -> Iterator[Opening]:
    """Opens one new database, as the replica of a name."""
    conninfo, opened = server.database(), []

    def open_as(transitions: Transitions = MODEL_OWNER, holder: str = "a") -> Ledger:
        opened.append(Ledger(PostgresqlDatabase(conninfo, holder), transitions))
        return opened[-1]

    yield open_as
    for ledger in opened:
        ledger.close()


def new(ledger: Ledger, peer: str = "clinic") -> bytes:
    session = secrets.token_bytes(16)
    ledger.create(session, artefact=ARTEFACT, peer=peer, secret=b"key")
    return session


ALL = (DATA_OWNER, MODEL_OWNER, CRYPTO_PROVIDER)


@pytest.mark.parametrize("transitions", ALL, ids=lambda one: one.party)
def test_the_life_of_a_session(opening: Opening, transitions: Transitions) -> None:
    ledger = opening(transitions)
    path = PATHS[transitions.party]
    for last in range(len(path)):
        session = new(ledger)
        with pytest.raises(SessionStateError, match="serves once"):
            ledger.create(session, artefact=ARTEFACT, peer="clinic")
        for old, following in list(pairwise(path))[:last]:
            entry = ledger.advance(session, State(old), State(following))
            # the key is handed out once, as it is erased
            assert entry.secret == (None if old in ("STARTED", "DEALT") else b"key")
            with pytest.raises(SessionStateError, match=f"is {following} at the"):
                ledger.advance(session, State(old), State(following))
        assert ledger.get(session).state == path[last]
    assert ledger.count(transitions.initial) == 1
    assert ledger.expire(transitions.initial, -1) == 1
    assert ledger.count(transitions.initial, "clinic") == 0
    with pytest.raises(StoreError, match="cannot be used"):
        ledger.create(secrets.token_bytes(16), artefact=ARTEFACT, peer="x", binding=bytes(31))


def test_one_winner_among_replicas(opening: Opening) -> None:
    replicas = [opening(holder=name) for name in "abc"]
    sessions = [new(replicas[0]) for _ in range(20)]
    for session in sessions:
        replicas[1].advance(session, State.PREPARING, State.READY)
    wins: list[bytes] = []
    refused: list[SessionStateError] = []
    together = threading.Barrier(6)

    def run(ledger: Ledger) -> None:
        together.wait()
        for session in sessions:
            try:
                ledger.advance(session, State.READY, State.STARTED)
                wins.append(session)
            except SessionStateError as error:
                refused.append(error)

    threads = [threading.Thread(target=run, args=(replicas[n % 3],)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(wins) == sorted(sessions)
    assert len(refused) == 5 * len(sessions)


def test_a_replica_burns_what_it_left_in_the_middle_and_nobody_elses(opening: Opening) -> None:
    first, second = opening(holder="a"), opening(holder="b")
    mine, others, ready, taken = new(first), new(second), new(first), new(first)
    for session in (ready, taken):
        first.advance(session, State.PREPARING, State.READY)
    second.advance(taken, State.READY, State.STARTED)
    first.close()
    again = opening(holder="a")
    assert again.get(mine).state is State.BURNT
    assert again.get(others).state is State.PREPARING
    assert again.get(ready).state is State.READY
    assert again.get(taken).state is State.STARTED


def charged(
    ledger: Ledger, images: int, now: float, quota: int = 5, peer: str = "c"
) -> float | None:
    """Start a session at this cost; None, or how long it has to wait."""
    session = new(ledger, peer)
    ledger.advance(session, State.PREPARING, State.READY)
    charge = quotas.Charge(images, quota, 60.0, now)
    try:
        ledger.advance(session, State.READY, State.STARTED, charge=charge)
    except ResourceError as error:
        return error.retry_seconds
    return None


def test_what_one_replica_counts_counts_at_all(opening: Opening) -> None:
    replicas = [opening(holder=name) for name in "ab"]
    assert [charged(ledger, 2, 100.0 + n) for n, ledger in enumerate(replicas)] == [None, None]
    assert [charged(ledger, 2, 110.0) for ledger in replicas] == [50.0, 50.0]
    assert charged(replicas[0], 5, 110.0, peer="other") is None
    replicas[0].close()
    assert charged(opening(holder="a"), 1, 110.0) is None
    assert charged(replicas[1], 1, 110.0) == 50.0


def test_one_replica_counts_at_a_time(opening: Opening) -> None:
    """What another is about to add is waited for: both would have seen room for one."""
    first, second = (opening(holder=name) for name in "ab")
    outcomes: list[float | None] = []
    other = threading.Thread(target=lambda: outcomes.append(charged(second, 1, 100.0, quota=1)))
    with first._database.transaction() as connection:
        charge = quotas.Charge(1, 1, 60.0, 100.0)
        quotas.count(connection, first._database.row_lock, "c", charge)
        other.start()
        other.join(0.5)
    other.join()
    assert outcomes == [60.0]


def test_two_processes_of_one_name_are_refused(opening: Opening) -> None:
    first = opening(holder="a")
    with pytest.raises(StoreError, match="another process serves as the replica 'a'"):
        opening(holder="a")
    first.close()
    opening(holder="a")


def test_another_partys_database_is_refused(opening: Opening) -> None:
    opening(MODEL_OWNER)
    with pytest.raises(StoreError, match="that of a model owner, not of a crypto provider"):
        opening(CRYPTO_PROVIDER, "b")


def test_marks_find_a_copy_that_was_put_back(opening: Opening) -> None:
    ledger = opening()
    session, other = new(ledger), new(ledger, "another clinic")
    theirs = bytes(range(16, 32))
    ledger.burn(session, Seen("clinic", theirs, session))
    assert ledger.mark("clinic", theirs) == Mark(ledger.epoch, theirs, session)
    assert ledger.mark("clinic") == Mark(ledger.epoch, theirs, session)
    assert ledger.mark("clinic", bytes(range(16))) == Mark(ledger.epoch, bytes(range(16)))
    waiting = new(ledger)
    unknown = Mark(theirs, ledger.epoch, secrets.token_bytes(16))
    with pytest.raises(RestoredLedgerError, match="a copy was put back"):
        ledger.check_used(unknown, "clinic")
    assert ledger.get(waiting).state is State.BURNT
    assert ledger.get(other).state is State.PREPARING
    ledger.check_used(unknown, "clinic")


def test_what_may_be_forgotten_is(opening: Opening, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forgetting, "_UNUSED_SECONDS", 0.0)
    monkeypatch.setattr(forgetting, "_MOST_TOLD", 2)
    monkeypatch.setattr(forgetting, "_MOST_EPOCHS", 0)
    ledger = opening()
    used, unused = new(ledger), new(ledger)
    ledger.advance(used, State.PREPARING, State.READY)
    ledger.advance(used, State.READY, State.STARTED)
    for session in (used, unused):
        ledger.burn(session)
    ledger.expire(State.READY, 60)
    assert [row.session for row in ledger.rows(State.BURNT)] == [used]
    for _ in range(3):
        with pytest.raises(RestoredLedgerError):
            ledger.check_used(Mark(ARTEFACT, ledger.epoch, secrets.token_bytes(16)), "clinic")
    assert ledger.count(State.BURNT) == 3
    with pytest.raises(ResourceError, match="get a certificate of another name"):
        ledger.mark("clinic", ARTEFACT)


def test_a_server_that_goes_away_is_found_again(server: Server, opening: Opening) -> None:
    """What was reported before it was killed is there afterwards."""
    ledger = opening()
    session = new(ledger)
    ledger.advance(session, State.PREPARING, State.READY)
    ledger.advance(session, State.READY, State.STARTED)
    server.stop()
    try:
        with pytest.raises(StoreError, match="restore no copy"):
            ledger.get(session)
    finally:
        server.start()
    assert ledger.get(session).state is State.STARTED


def test_a_server_that_does_not_wait_for_its_disk(
    opening: Opening, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = postgresql._value

    def value(connection: Any, statement: str, *values: Any) -> object:
        found = known(connection, statement, *values)
        return "off" if statement == "SHOW fsync" and found == "on" else found

    monkeypatch.setattr(postgresql, "_value", value)
    with pytest.raises(StoreError, match="set fsync = on"):
        opening()


def test_a_commit_waits_for_the_disk(opening: Opening) -> None:
    with opening()._database.transaction() as connection:
        assert connection.execute("SHOW synchronous_commit").fetchone() == ("on",)


def test_errors_carry_no_values(opening: Opening) -> None:
    ledger = opening()
    with pytest.raises(StoreError) as caught:
        ledger.create(
            secrets.token_bytes(16), artefact=ARTEFACT, peer="x", binding=b"short", secret=b"a key"
        )
    assert "a key" not in str(caught.value)
    assert b"a key".hex() not in str(caught.value)
    assert caught.value.__cause__ is None
