"""What a ledger forgets, so that asking does not fill its disk, and what it never does."""

from __future__ import annotations

import secrets
import sqlite3
import time
from itertools import count
from pathlib import Path

import pytest

from radiopaque.errors import RestoredLedgerError, UnknownSessionError
from radiopaque.ledger import (
    CRYPTO_PROVIDER,
    DATA_OWNER,
    MODEL_OWNER,
    NOTHING,
    Ledger,
    Mark,
    State,
    Transitions,
    forgetting,
)
from tests.unit.ledger.test_ledger import bring_to, new_session

HOUR = 3600.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, as the ledger sees it; no two entries have the same."""
    now, ticks = [time.time()], count()
    monkeypatch.setattr(time, "time", lambda: now[0] + next(ticks) * 1e-3)
    return now


def known(ledger: Ledger, session: bytes) -> bool:
    try:
        ledger.get(session)
    except UnknownSessionError:
        return False
    return True


@pytest.mark.parametrize(
    ("transitions", "used", "forgets"),
    [
        (MODEL_OWNER, "STARTED", True),
        (MODEL_OWNER, "OPENED", True),
        (CRYPTO_PROVIDER, "DEALT", True),
        (DATA_OWNER, "STARTED", False),
    ],
    ids=["model owner", "model owner, audit", "crypto provider", "data owner"],
)
def test_what_ended_unused_is_forgotten_after_an_hour(
    tmp_path: Path, clock: list[float], transitions: Transitions, used: str, forgets: bool
) -> None:
    """At the clinic it is not: the crypto provider may name a session of which nothing came."""
    with Ledger(tmp_path / "sessions.sqlite", transitions) as ledger:
        served = bring_to(ledger, transitions.party, used)
        unused = new_session(ledger)
        for session in (served, unused):
            ledger.burn(session)
        waiting = new_session(ledger)
        clock[0] += HOUR / 2
        young = new_session(ledger)
        ledger.burn(young)
        ledger.expire(State.READY, 9 * HOUR)
        assert known(ledger, unused)
        clock[0] += HOUR / 2 + 60
        ledger.expire(State.READY, 9 * HOUR)
        assert known(ledger, unused) is not forgets
        assert all(known(ledger, one) for one in (served, young, waiting))
        # what is named as used is, whatever else was forgotten
        ledger.check_used(Mark(bytes(range(16)), ledger.epoch, served))
        with pytest.raises(RestoredLedgerError):
            ledger.check_used(Mark(bytes(range(16)), ledger.epoch, unused))


def test_a_thousand_are_forgotten_at_a_time(tmp_path: Path, clock: list[float]) -> None:
    with Ledger(tmp_path / "sessions.sqlite", MODEL_OWNER) as ledger:
        with ledger._database.transaction() as connection:
            for _ in range(1500):
                connection.execute(
                    "INSERT INTO session VALUES (?, 'BURNT', 1.0, ?, NULL, 'it', NULL, 0, '')",
                    (secrets.token_bytes(16), NOTHING),
                )
        for left in (500, 0):
            ledger.expire(State.READY, HOUR)
            assert ledger.count(State.BURNT) == left


def test_a_peer_that_lies_about_marks_fills_nothing(
    tmp_path: Path, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its newest words count once, as before; older ones are found out anew."""
    monkeypatch.setattr(forgetting, "_MOST_TOLD", 3)
    with Ledger(tmp_path / "sessions.sqlite", MODEL_OWNER) as ledger:
        served = bring_to(ledger, "model owner", "STARTED")
        ledger.burn(served)
        own = [new_session(ledger, peer="liar") for _ in range(2)]
        told = own + [secrets.token_bytes(16) for _ in range(4)]
        for peer, sessions in (("liar", told), ("clinic", [secrets.token_bytes(16)])):
            for session in sessions:
                with pytest.raises(RestoredLedgerError):
                    ledger.check_used(Mark(bytes(16), ledger.epoch, session), peer)
        assert ledger.count(State.BURNT, "liar") == 3
        assert ledger.count(State.BURNT, "clinic") == 2
        for session in (*told[-3:], served):
            ledger.check_used(Mark(bytes(16), ledger.epoch, session), "liar")
        with pytest.raises(RestoredLedgerError):
            ledger.check_used(Mark(bytes(16), ledger.epoch, told[0]), "liar")


def test_it_is_looked_for_by_index(tmp_path: Path) -> None:
    asked: list[str] = []
    with Ledger(tmp_path / "sessions.sqlite", MODEL_OWNER) as ledger:
        with ledger._database.transaction() as connection:
            assert isinstance(connection, sqlite3.Connection)
            connection.set_trace_callback(asked.append)
        ledger.expire(State.READY, HOUR)
        with pytest.raises(RestoredLedgerError):
            ledger.check_used(Mark(bytes(16), ledger.epoch, bytes(range(16))), "clinic")
        with ledger._database.transaction() as connection:
            plans = [
                str(step[3])
                for query in asked
                if query.startswith("DELETE")
                for step in connection.execute(f"EXPLAIN QUERY PLAN {query}").fetchall()
            ]
    assert any("session_unused" in step for step in plans)
    assert sum("session_told" in step for step in plans) == 2
    assert not [step for step in plans if step.startswith("SCAN session")]
