"""The doctor's look at a ledger in PostgreSQL; skipped where there is no server."""

from __future__ import annotations

from pathlib import Path

from radiopaque.ledger import MODEL_OWNER, Ledger, State
from radiopaque.ledger.postgresql import PostgresqlDatabase
from radiopaque.operations.doctor import ledgers
from radiopaque.operations.doctor.findings import Level, attempt
from tests.unit.ledger.test_postgresql import Server, new, psycopg, server
from tests.unit.operations.test_doctor import only

__all__ = ["server"]


def test_a_ledger_in_postgresql(server: Server, tmp_path: Path) -> None:
    conninfo = server.database()
    one = only(ledgers.ledger(tmp_path, conninfo))
    assert (one.level, one.text) == (Level.WARN, "the database is empty")
    assert ledgers.sessions(tmp_path, conninfo) == {}

    # examined while a party serves from it
    ledger = Ledger(PostgresqlDatabase(conninfo, "a"), MODEL_OWNER)
    used = new(ledger)
    ledger.advance(used, State.PREPARING, State.READY)
    ledger.advance(used, State.READY, State.STARTED)
    new(ledger)
    assert only(ledgers.ledger(tmp_path, conninfo)).level is Level.PASS
    assert ledgers.sessions(tmp_path, conninfo) == {State.PREPARING: 1, State.STARTED: 1}
    ledger.close()

    with psycopg.connect(conninfo, autocommit=True) as connection:
        connection.execute("UPDATE party SET format = format + 1")
        assert "this release reads" in only(ledgers.ledger(tmp_path, conninfo)).text
        connection.execute("UPDATE party SET format = format - 1")
        connection.execute("UPDATE session SET secret = 'k' WHERE state = 'STARTED'")
    one = only(ledgers.ledger(tmp_path, conninfo))
    assert (one.level, one.text[:10]) == (Level.FAIL, "1 sessions")


def test_a_server_that_is_down(tmp_path: Path) -> None:
    conninfo = "host=127.0.0.1 port=1 user=ledger dbname=ledger connect_timeout=2"
    one = only(attempt("ledger", lambda: ledgers.ledger(tmp_path, conninfo)))
    assert (one.level, "cannot be used" in one.text) == (Level.FAIL, True)
