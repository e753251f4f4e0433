"""The ledger: legal and illegal steps, settings that make them durable, erasure, expiry."""

from __future__ import annotations

import os
import secrets
import sqlite3
import threading
import time
from itertools import pairwise, product
from pathlib import Path

import pytest

from radiopaque.errors import (
    MessageSizeError,
    SessionStateError,
    StoreError,
    UnknownSessionError,
)
from radiopaque.ledger import (
    CRYPTO_PROVIDER,
    DATA_OWNER,
    MODEL_OWNER,
    Ledger,
    State,
    Transitions,
)
from radiopaque.ledger.databases import SqliteFile

ARTEFACT = bytes(range(16))
BINDING = bytes(32)
ALL = (DATA_OWNER, MODEL_OWNER, CRYPTO_PROVIDER)

# The life of a session as the protocol states it, written down a second time.
STEPS = {
    "data owner": {
        ("FRESH", "BOUND"),
        ("FRESH", "OPENED"),
        ("BOUND", "STARTED"),
        ("BOUND", "OPENED"),
    },
    "model owner": {("PREPARING", "READY"), ("READY", "STARTED"), ("READY", "OPENED")},
    "crypto provider": {("RESERVED", "DEALT")},
}
ERASING = {
    ("FRESH", "OPENED"),
    ("BOUND", "STARTED"),
    ("BOUND", "OPENED"),
    ("READY", "STARTED"),
    ("READY", "OPENED"),
    ("RESERVED", "DEALT"),
}
PATHS = {
    "data owner": ["FRESH", "BOUND", "STARTED", "OPENED", "BURNT"],
    "model owner": ["PREPARING", "READY", "STARTED", "OPENED", "BURNT"],
    "crypto provider": ["RESERVED", "DEALT", "BURNT"],
}


def new_session(ledger: Ledger, secret: bytes | None = b"key", peer: str = "clinic") -> bytes:
    session = secrets.token_bytes(16)
    ledger.create(session, artefact=ARTEFACT, peer=peer, secret=secret)
    return session


def bring_to(ledger: Ledger, party: str, state: str, secret: bytes = b"key") -> bytes:
    session = new_session(ledger, secret)
    opened = state == "OPENED"
    path = [one for one in PATHS[party] if one != ("STARTED" if opened else "OPENED")]
    for old, new in pairwise(path):
        if old == state:
            break
        ledger.advance(session, State(old), State(new))
    return session


def file_of(ledger: Ledger) -> SqliteFile:
    assert isinstance(ledger._database, SqliteFile)
    return ledger._database


def hasty(ledger: Ledger) -> Ledger:
    """Without waiting for the disk, in tests that are not about durability."""
    file_of(ledger).connection.execute("PRAGMA synchronous = OFF")
    return ledger


def stored_bytes(path: Path) -> bytes:
    return b"".join(file.read_bytes() for file in sorted(path.parent.glob(f"{path.name}*")))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store" / "sessions.sqlite"


@pytest.mark.parametrize("transitions", ALL, ids=lambda one: one.party)
def test_every_pair_of_states(path: Path, transitions: Transitions) -> None:
    """All (from, to) pairs: the listed steps and those to BURNT succeed, no other does."""
    party = transitions.party
    with hasty(Ledger(path, transitions)) as ledger:
        for old, new in product(State, State):
            if str(old) in PATHS[party]:
                session = bring_to(ledger, party, str(old))
            else:
                session = new_session(ledger)
            legal = str(old) in PATHS[party] and (
                (str(old), str(new)) in STEPS[party] or new is State.BURNT
            )
            before = ledger.get(session).state
            if legal:
                entry = ledger.advance(session, old, new)
                assert entry.state is ledger.get(session).state is new
            else:
                with pytest.raises(SessionStateError):
                    ledger.advance(session, old, new)
                assert ledger.get(session).state is before


@pytest.mark.parametrize("transitions", ALL, ids=lambda one: one.party)
def test_a_step_from_another_state_than_the_present_one_is_refused(
    path: Path, transitions: Transitions
) -> None:
    party = transitions.party
    with hasty(Ledger(path, transitions)) as ledger:
        for present in PATHS[party]:
            for old, new in sorted(STEPS[party]):
                if old == present:
                    continue
                session = bring_to(ledger, party, present)
                with pytest.raises(SessionStateError, match=f"is {present} at the {party}"):
                    ledger.advance(session, State(old), State(new))
                assert ledger.get(session).state == present


def test_entry_holds_what_was_given(path: Path) -> None:
    begin = time.time()
    session = secrets.token_bytes(16)
    with Ledger(path, DATA_OWNER) as ledger:
        ledger.create(session, artefact=ARTEFACT, peer="vendor", secret=b"first")
        bound = ledger.advance(session, State.FRESH, State.BOUND, binding=BINDING, secret=b"second")
        assert bound.secret == b"second"
        started = ledger.advance(session, State.BOUND, State.STARTED)
        entry = ledger.get(session)
    assert started.secret == b"second"
    assert (entry.session, entry.state, entry.artefact) == (session, State.STARTED, ARTEFACT)
    assert (entry.peer, entry.binding, entry.secret) == ("vendor", BINDING, None)
    assert begin <= entry.created <= time.time()


@pytest.mark.parametrize("transitions", ALL, ids=lambda one: one.party)
def test_secret_is_erased_from_the_files_at_the_step_that_uses_it(
    path: Path, transitions: Transitions
) -> None:
    party = transitions.party
    others = [secrets.token_bytes(500) for _ in range(20)]
    with Ledger(path, transitions) as ledger:
        for other in others:  # neighbours on the pages of the file
            new_session(ledger, other)
        secret = secrets.token_bytes(500)
        session = new_session(ledger, secret)
        assert secret in stored_bytes(path)
        for step in zip(PATHS[party], PATHS[party][1:], strict=False):
            entry = ledger.advance(session, State(step[0]), State(step[1]))
            if step in ERASING:
                assert entry.secret == secret
                break
            assert secret in stored_bytes(path)
        left = stored_bytes(path)
        for start in range(0, 500, 50):
            assert secret[start : start + 16] not in left
        assert all(other in left for other in others)


def test_burning_erases_in_every_state(path: Path) -> None:
    with Ledger(path, DATA_OWNER) as ledger:
        for state in PATHS["data owner"]:
            secret = secrets.token_bytes(5000)  # longer than a page
            session = bring_to(ledger, "data owner", state, secret)
            ledger.burn(session)
            ledger.burn(session)
            assert ledger.get(session).state is State.BURNT
            left = stored_bytes(path)
            assert not any(secret[at : at + 16] in left for at in range(0, 5000, 100))


def test_replaced_secret_is_erased(path: Path) -> None:
    secret = secrets.token_bytes(100)
    with Ledger(path, DATA_OWNER) as ledger:
        session = new_session(ledger, secret)
        ledger.advance(session, State.FRESH, State.BOUND, secret=b"short")
        assert secret[:16] not in stored_bytes(path)


def test_audit_hands_the_key_out_of_a_session_that_can_never_start(path: Path) -> None:
    with Ledger(path, DATA_OWNER) as ledger:
        session = bring_to(ledger, "data owner", "BOUND")
        assert ledger.advance(session, State.BOUND, State.BURNT).secret == b"key"
        with pytest.raises(SessionStateError):
            ledger.advance(session, State.BOUND, State.STARTED)


def test_a_session_serves_once(path: Path) -> None:
    with Ledger(path, DATA_OWNER) as ledger:
        session = bring_to(ledger, "data owner", "BURNT")
        with pytest.raises(SessionStateError, match="serves once, prepare another"):
            ledger.create(session, artefact=ARTEFACT, peer="vendor")
        with pytest.raises(SessionStateError, match="is BURNT at the data owner"):
            ledger.advance(session, State.BOUND, State.STARTED)


def test_unknown_sessions(path: Path) -> None:
    stranger = secrets.token_bytes(16)
    with Ledger(path, DATA_OWNER) as ledger:
        for action in (
            lambda: ledger.get(stranger),
            lambda: ledger.burn(stranger),
            lambda: ledger.advance(stranger, State.FRESH, State.BOUND),
        ):
            with pytest.raises(UnknownSessionError, match=stranger.hex()[:8]):
                action()


def test_wrong_lengths_are_refused(path: Path) -> None:
    with Ledger(path, DATA_OWNER) as ledger:
        with pytest.raises(MessageSizeError):
            ledger.create(bytes(15), artefact=ARTEFACT, peer="x")
        with pytest.raises(MessageSizeError):
            ledger.create(bytes(16), artefact=bytes(17), peer="x")
        with pytest.raises(StoreError):
            ledger.create(bytes(16), artefact=ARTEFACT, peer="x", binding=bytes(31))
        assert ledger.rows(State.FRESH) == []


def test_a_secret_cannot_be_put_into_an_erasing_step(path: Path) -> None:
    with Ledger(path, DATA_OWNER) as ledger:
        session = bring_to(ledger, "data owner", "BOUND")
        with pytest.raises(SessionStateError, match="keeps no secret"):
            ledger.advance(session, State.BOUND, State.STARTED, secret=b"new")
        assert ledger.get(session).state is State.BOUND


def test_rows_and_counts(path: Path) -> None:
    with Ledger(path, MODEL_OWNER) as ledger:
        first, second = new_session(ledger, peer="a"), new_session(ledger, peer="b")
        third = new_session(ledger, peer="a")
        ledger.advance(second, State.PREPARING, State.READY)
        assert [entry.session for entry in ledger.rows(State.PREPARING)] == [first, third]
        assert [entry.session for entry in ledger.rows(State.READY)] == [second]
        assert ledger.count(State.PREPARING) == ledger.count(State.PREPARING, "a") == 2
        assert ledger.count(State.PREPARING, "b") == 0
        assert ledger.count(State.READY, "b") == 1
        assert ledger.sessions(State.PREPARING) == {first, third}
        assert ledger.sessions(State.PREPARING, State.READY) == {first, second, third}
        assert ledger.sessions(State.BURNT) == set()
        assert all(entry.secret is None for entry in ledger.rows(State.PREPARING))


def test_no_secret_is_printed(path: Path) -> None:
    with Ledger(path, DATA_OWNER) as ledger:
        session = new_session(ledger, b"very secret")
        entry = ledger.advance(session, State.FRESH, State.BOUND)
    assert entry.secret == b"very secret"
    assert "very secret" not in repr(entry)


def test_files_are_private(path: Path) -> None:
    old = os.umask(0)
    try:
        with Ledger(path, DATA_OWNER) as ledger:
            new_session(ledger)
            assert path.parent.stat().st_mode & 0o777 == 0o700
            files = list(path.parent.iterdir())
            assert {file.name for file in files} >= {path.name, path.name + ".lock"}
            assert {file.stat().st_mode & 0o777 for file in files} == {0o600}
    finally:
        os.umask(old)


def test_a_store_open_to_others_is_refused(tmp_path: Path) -> None:
    store = tmp_path / "store"
    store.mkdir()
    store.chmod(0o750)
    with pytest.raises(StoreError, match=f"chmod 700 {store}"):
        Ledger(store / "sessions.sqlite", DATA_OWNER)


def test_settings_that_make_a_commit_durable(path: Path) -> None:
    with Ledger(path, DATA_OWNER) as ledger:
        settings = {
            name: file_of(ledger).connection.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("journal_mode", "synchronous", "secure_delete")
        }
    assert settings == {"journal_mode": "persist", "synchronous": 2, "secure_delete": 1}


def test_one_winner_among_threads(path: Path) -> None:
    with Ledger(path, DATA_OWNER) as ledger:
        sessions = [bring_to(ledger, "data owner", "BOUND") for _ in range(5)]
        wins: list[bytes] = []
        refused: list[SessionStateError] = []
        start = threading.Barrier(8)

        def run() -> None:
            start.wait()
            for session in sessions:
                try:
                    ledger.advance(session, State.BOUND, State.STARTED)
                    wins.append(session)
                except SessionStateError as error:
                    refused.append(error)

        threads = [threading.Thread(target=run) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(wins) == sorted(sessions)
    assert len(refused) == 7 * 5


def test_another_partys_ledger_is_refused(path: Path) -> None:
    Ledger(path, DATA_OWNER).close()
    with pytest.raises(StoreError, match="that of a data owner, not of a model owner"):
        Ledger(path, MODEL_OWNER)
    Ledger(path, DATA_OWNER).close()


def test_a_file_that_is_no_ledger(path: Path) -> None:
    path.parent.mkdir(mode=0o700)
    path.write_bytes(b"something else, long enough to be looked at" * 100)
    with pytest.raises(StoreError, match="restore no copy"):
        Ledger(path, DATA_OWNER)


def test_a_newer_format_is_refused(path: Path) -> None:
    Ledger(path, DATA_OWNER).close()
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(StoreError, match="format 99"):
        Ledger(path, DATA_OWNER)


def test_closed_ledger(path: Path) -> None:
    ledger = Ledger(path, DATA_OWNER)
    ledger.close()
    ledger.close()
    with pytest.raises(StoreError):
        new_session(ledger)


def test_expiring_burns_the_old_ones_of_one_state(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Ledger(path, CRYPTO_PROVIDER) as ledger:
        old = new_session(ledger, b"an old secret")
        dealt = bring_to(ledger, "crypto provider", "DEALT")
        now = time.time()
        monkeypatch.setattr(time, "time", lambda: now + 100)
        young = new_session(ledger)
        assert ledger.expire(State.RESERVED, 60) == 1
        assert ledger.get(old).state == "BURNT"
        assert ledger.get(dealt).state == "DEALT"
        assert ledger.get(young).state == "RESERVED"
        assert ledger.expire(State.RESERVED, 60) == 0
        assert b"an old secret" not in stored_bytes(path)
