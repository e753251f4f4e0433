"""The ledger in a process that is killed, and in several processes: one writer."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from radiopaque.errors import SessionStateError, StoreError
from radiopaque.ledger import DATA_OWNER, Ledger, State, Transitions
from tests.unit.ledger.test_ledger import ALL, PATHS, bring_to, path, stored_bytes

__all__ = ["path"]


@pytest.mark.parametrize("transitions", ALL, ids=lambda one: one.party)
def test_opening_burns_what_a_crash_left_in_the_middle(
    path: Path, transitions: Transitions
) -> None:
    party = transitions.party
    abandoned = {
        "data owner": {"FRESH", "STARTED", "OPENED"},
        "model owner": {"PREPARING", "STARTED", "OPENED"},
        "crypto provider": {"RESERVED", "DEALT"},
    }[party]
    with Ledger(path, transitions) as ledger:
        sessions = {
            state: bring_to(ledger, party, state, f"secret of {state}".encode())
            for state in PATHS[party]
        }
    with Ledger(path, transitions) as ledger:
        for state, session in sessions.items():
            expected = "BURNT" if state in abandoned else state
            assert ledger.get(session).state == expected
            if expected == "BURNT":
                assert f"secret of {state}".encode() not in stored_bytes(path)


def run_child(program: str, path: Path) -> subprocess.Popen[str]:
    prelude = (
        "import os, secrets, sys, time\n"
        "from pathlib import Path\n"
        "from radiopaque.ledger import *\n"
        f"ledger = Ledger(Path({str(path)!r}), DATA_OWNER)\n"
    )
    return subprocess.Popen(
        [sys.executable, "-c", prelude + program], stdout=subprocess.PIPE, text=True
    )


def test_a_second_process_is_told_who_holds_the_ledger(path: Path) -> None:
    child = run_child("print('open', flush=True); time.sleep(60)", path)
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == "open\n"
        with pytest.raises(StoreError, match=f"in use by process {child.pid};"):
            Ledger(path, DATA_OWNER)
    finally:
        child.kill()
        child.wait()
    Ledger(path, DATA_OWNER).close()


def test_the_same_process_cannot_open_it_twice(path: Path) -> None:
    with (
        Ledger(path, DATA_OWNER),
        pytest.raises(StoreError, match=f"in use by process {os.getpid()};"),
    ):
        Ledger(path, DATA_OWNER)
    Ledger(path, DATA_OWNER).close()


def test_killed_after_the_start_the_session_is_burnt_and_its_key_gone(path: Path) -> None:
    secret, session = secrets.token_bytes(64), secrets.token_bytes(16)
    child = run_child(
        f"""
session, secret = bytes.fromhex("{session.hex()}"), bytes.fromhex("{secret.hex()}")
ledger.create(session, artefact=bytes(16), peer="x", secret=secret)
ledger.advance(session, State.FRESH, State.BOUND)
assert secret in Path({str(path)!r}).read_bytes()
ledger.advance(session, State.BOUND, State.STARTED)
print("started", flush=True)
time.sleep(60)
""",
        path,
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "started\n"
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert secret[:16] not in stored_bytes(path)
    with Ledger(path, DATA_OWNER) as ledger:
        assert ledger.get(session).state is State.BURNT
        with pytest.raises(SessionStateError):
            ledger.advance(session, State.BOUND, State.STARTED)


def test_killed_at_any_moment_nothing_that_was_reported_is_lost(path: Path) -> None:
    """A child changes states as fast as it can and reports each change; it is killed in between."""
    program = """
while True:
    session, secret = secrets.token_bytes(16), secrets.token_bytes(32)
    ledger.create(session, artefact=bytes(16), peer="x", secret=secret)
    os.write(1, f"FRESH {session.hex()} {secret.hex()}\\n".encode())
    ledger.advance(session, State.FRESH, State.BOUND)
    os.write(1, f"BOUND {session.hex()} {secret.hex()}\\n".encode())
    ledger.advance(session, State.BOUND, State.STARTED)
    os.write(1, f"STARTED {session.hex()} {secret.hex()}\\n".encode())
"""
    order = PATHS["data owner"]
    seen = 0
    for delay in (0.1, 0.23, 0.37):
        child = run_child(program, path)
        assert child.stdout is not None
        first = child.stdout.readline()
        time.sleep(delay)
        child.send_signal(signal.SIGKILL)
        reports = [first, *child.stdout.read().splitlines()]
        child.wait()
        reached: dict[str, tuple[str, str]] = {}
        for line in reports:
            parts = line.split()
            if len(parts) == 3 and len(parts[2]) == 64:
                reached[parts[1]] = (parts[0], parts[2])
        with Ledger(path, DATA_OWNER) as ledger:
            left = stored_bytes(path)
            for session, (state, secret) in reached.items():
                now = ledger.get(bytes.fromhex(session)).state
                assert order.index(now) >= order.index(state)
                if state == "STARTED":
                    assert now is State.BURNT
                    assert bytes.fromhex(secret) not in left
        seen += len(reached)
    assert seen >= 3
