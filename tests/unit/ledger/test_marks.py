"""Marks: what is kept of a peer's ledger, and how a copy of one's own is found out."""

from __future__ import annotations

import secrets
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from radiopaque.errors import (
    MessageSizeError,
    ResourceError,
    RestoredLedgerError,
    UnknownSessionError,
)
from radiopaque.ledger import DATA_OWNER, MARK_BYTES, NOTHING, Ledger, Mark, Seen, State

THEIRS = bytes(range(16))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store" / "sessions.sqlite"


@pytest.fixture
def ledger(path: Path) -> Iterator[Ledger]:
    with Ledger(path, DATA_OWNER) as ledger:
        yield ledger


def bound(ledger: Ledger, peer: str = "model") -> bytes:
    session = secrets.token_bytes(16)
    ledger.create(session, artefact=bytes(16), peer=peer, secret=b"key")
    ledger.advance(session, State.FRESH, State.BOUND)
    return session


def used(ledger: Ledger) -> bytes:
    session = bound(ledger)
    ledger.advance(session, State.BOUND, State.STARTED, seen=Seen("vendor", THEIRS, session))
    ledger.burn(session)
    return session


def test_a_mark_on_the_wire() -> None:
    mark = Mark(*(bytes([number]) * 16 for number in (1, 2, 3)))
    assert mark.encode() == b"\1" * 16 + b"\2" * 16 + b"\3" * 16
    assert Mark.decode(mark.encode()) == mark
    for size in (0, 1, MARK_BYTES - 1, MARK_BYTES + 1):
        with pytest.raises(MessageSizeError, match="the mark of a ledger has"):
            Mark.decode(bytes(size))


def test_an_epoch_stays_with_its_ledger(path: Path, tmp_path: Path) -> None:
    epochs = []
    for _ in range(2):
        with Ledger(path, DATA_OWNER) as ledger:
            epochs.append(ledger.epoch)
    with Ledger(tmp_path / "other" / "sessions.sqlite", DATA_OWNER) as ledger:
        epochs.append(ledger.epoch)
    assert epochs[0] == epochs[1] != epochs[2]


def test_the_newest_mark_of_each_ledger_of_a_peer_is_kept(ledger: Ledger) -> None:
    other = bytes(range(16, 32))
    assert ledger.mark("vendor") == Mark(ledger.epoch, NOTHING, NOTHING)
    first = used(ledger)
    assert ledger.mark("vendor") == Mark(ledger.epoch, THEIRS, first)
    second = used(ledger)
    third = bound(ledger)
    ledger.burn(third, Seen("vendor", other, third))
    assert ledger.mark("vendor", THEIRS) == Mark(ledger.epoch, THEIRS, second)
    assert ledger.mark("vendor") == Mark(ledger.epoch, other, third)
    assert ledger.mark("somebody") == Mark(ledger.epoch, NOTHING, NOTHING)


def test_a_peer_that_draws_epoch_after_epoch(ledger: Ledger) -> None:
    """None is forgotten, for its ledger might be put back; those that are known go on."""
    most = 1000
    with ledger._database.transaction() as connection:
        for _ in range(most - 1):
            connection.execute(
                "INSERT INTO mark VALUES (?, ?, ?, ?)",
                ("clinic", secrets.token_bytes(16), secrets.token_bytes(16), 1.0),
            )
    last = bound(ledger)
    assert ledger.mark("clinic", THEIRS) == Mark(ledger.epoch, THEIRS, NOTHING)
    ledger.burn(last, Seen("clinic", THEIRS, last))
    other = bytes(range(1, 17))
    for _ in range(2):
        with pytest.raises(ResourceError, match="1000 ledgers have used this certificate's name"):
            ledger.mark("clinic", other)
        assert ledger.mark("clinic", THEIRS) == Mark(ledger.epoch, THEIRS, last)
        assert ledger.mark("clinic") == Mark(ledger.epoch, THEIRS, last)
        assert ledger.mark("another", other) == Mark(ledger.epoch, other, NOTHING)


@pytest.mark.parametrize("epoch", [None, THEIRS])
def test_a_mark_is_asked_for_by_index(ledger: Ledger, epoch: bytes | None) -> None:
    asked: list[str] = []
    with ledger._database.transaction() as connection:
        assert isinstance(connection, sqlite3.Connection)
        connection.set_trace_callback(asked.append)
    ledger.mark("vendor", epoch)
    query = next(one for one in asked if "FROM mark" in one)
    with ledger._database.transaction() as connection:
        plan = connection.execute(f"EXPLAIN QUERY PLAN {query}").fetchall()
    assert [step[3].split(" USING ")[0] for step in plan] == ["SEARCH mark"]


def test_marks_that_fit(ledger: Ledger) -> None:
    session, waiting = used(ledger), bound(ledger)
    for mark in (
        Mark(THEIRS, ledger.epoch, session),
        Mark(THEIRS, ledger.epoch, NOTHING),
        Mark(THEIRS, NOTHING, waiting),
        Mark(THEIRS, bytes(range(1, 17)), secrets.token_bytes(16)),
    ):
        ledger.check_used(mark)
        ledger.check_known(mark)
    ledger.check_known(Mark(THEIRS, ledger.epoch, waiting))
    assert ledger.get(waiting).state is State.BOUND


@pytest.mark.parametrize("what", ["unknown", "waiting", "burnt before it was used"])
def test_marks_that_do_not_fit(ledger: Ledger, what: str) -> None:
    session = secrets.token_bytes(16) if what == "unknown" else bound(ledger)
    if what == "burnt before it was used":
        ledger.burn(session)
    waiting, others = bound(ledger), bound(ledger, "another model")
    mark = Mark(THEIRS, ledger.epoch, session)
    with pytest.raises(RestoredLedgerError, match="the data owner's ledger is older than"):
        ledger.check_used(mark, "model")
    assert ledger.get(waiting).state is State.BURNT
    assert ledger.get(others).state is State.BOUND
    # found out once: sessions that are prepared from now on serve
    ledger.check_used(mark)
    assert ledger.get(session).state is State.BURNT
    assert ledger.get(others).state is State.BOUND


def test_a_copy_that_lives_on_is_still_found_out(path: Path, tmp_path: Path) -> None:
    """However many sessions it uses, and however often it is opened, before a peer tells it."""
    with Ledger(path, DATA_OWNER) as ledger:
        bound(ledger)
        shutil.copy(path, tmp_path / "copy")
        newest = used(ledger)
        epoch = ledger.epoch
    shutil.copy(tmp_path / "copy", path)
    for _ in range(3):
        with Ledger(path, DATA_OWNER) as ledger:
            for _ in range(3):
                used(ledger)
            with pytest.raises(UnknownSessionError):
                ledger.get(newest)
    with (
        Ledger(path, DATA_OWNER) as ledger,
        pytest.raises(RestoredLedgerError, match="1 prepared session"),
    ):
        ledger.check_known(Mark(THEIRS, epoch, newest))
