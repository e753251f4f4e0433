"""SQLite's rollback journal: it undoes what was interrupted, and keeps no key afterwards."""

from __future__ import annotations

import shutil
import sqlite3
import time
from pathlib import Path

import pytest

from radiopaque.errors import StoreError
from radiopaque.ledger import DATA_OWNER, Ledger, State, databases
from radiopaque.ledger.databases import SqliteFile
from tests.unit.ledger.test_ledger import bring_to, file_of, new_session

SECRET = b"a key that is to be gone for good"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store" / "sessions.sqlite"


def journal(path: Path) -> bytes:
    return path.with_name(path.name + "-journal").read_bytes()


def change(ledger: Ledger, rows: int, fail: bool = False) -> None:
    with ledger._database.transaction() as connection:
        for _ in range(rows):
            connection.execute("INSERT INTO spent VALUES ('clinic', ?, 1)", (time.time(),))
        connection.execute("UPDATE session SET created = created + 1")
        if fail:
            raise KeyError


def test_an_erased_key_is_overwritten_there_too(path: Path) -> None:
    """In its place: a file that is made shorter leaves what it had to whoever gets the blocks."""
    with Ledger(path, DATA_OWNER) as ledger:
        session = bring_to(ledger, "data owner", "BOUND", SECRET)
        ledger.advance(session, State.BOUND, State.STARTED)
        assert len(journal(path)) > 4096
        assert not any(journal(path))


@pytest.mark.parametrize("fail", [False, True])
def test_no_change_leaves_pages_in_it(path: Path, fail: bool) -> None:
    with Ledger(path, DATA_OWNER) as ledger:
        new_session(ledger, SECRET)
        try:
            change(ledger, 1, fail)
        except KeyError:
            assert fail
        assert len(journal(path)) > 4096
        assert not any(journal(path))


def test_a_long_one_is_not_overwritten_for_ever(path: Path) -> None:
    with Ledger(path, DATA_OWNER) as ledger:
        change(ledger, 5000)
        with ledger._database.transaction() as connection:
            connection.execute("UPDATE spent SET amount = 2")
        assert journal(path) == b""
        session = bring_to(ledger, "data owner", "BOUND", SECRET)
        ledger.advance(session, State.BOUND, State.STARTED)
        assert not any(journal(path))


def test_what_was_interrupted_is_undone_and_overwritten(path: Path, tmp_path: Path) -> None:
    """With pages of the change in the file already, as a loss of power leaves them."""
    with Ledger(path, DATA_OWNER) as ledger:
        waiting = [bring_to(ledger, "data owner", "BOUND", SECRET) for _ in range(300)]
        with ledger._database.transaction() as connection:
            connection.execute("PRAGMA cache_size = 2")
            connection.execute("UPDATE session SET state = 'BURNT', secret = NULL")
            for number in range(300):
                connection.execute("INSERT INTO spent VALUES ('x', ?, 1)", (number,))
            shutil.copytree(path.parent, tmp_path / "copy")
    copy = tmp_path / "copy" / path.name
    with sqlite3.connect(f"file:{copy}?immutable=1", uri=True) as connection:
        torn = connection.execute("SELECT count(*) FROM session WHERE state = 'BURNT'").fetchone()
    assert torn[0] > 0
    assert SECRET in journal(copy)
    held = copy.with_name(copy.name + "-journal").open("rb")
    SqliteFile(copy).close()
    with held:
        assert not any(held.read())
    with Ledger(copy, DATA_OWNER) as ledger:
        assert {row.session for row in ledger.rows(State.BOUND)} == set(waiting)
        assert ledger.advance(waiting[0], State.BOUND, State.STARTED).secret == SECRET


def test_one_that_has_not_ended_is_left_alone(path: Path) -> None:
    with Ledger(path, DATA_OWNER) as ledger:
        begun = b"\xd9\xd5\x05\xf9 \xa1c\xd7" + SECRET
        path.with_name(path.name + "-journal").write_bytes(begun)
        with databases._cleared(file_of(ledger)._journal):
            pass
        assert journal(path) == begun
        path.with_name(path.name + "-journal").unlink()


def test_one_that_cannot_be_overwritten(path: Path) -> None:
    with Ledger(path, DATA_OWNER) as ledger:
        file_of(ledger)._journal = path.parent
        with pytest.raises(StoreError, match="cannot be overwritten: Is a directory; check the"):
            new_session(ledger)
