"""What is metered: shares of CPU time that add up, rows that add up, a file that survives."""

from __future__ import annotations

import os
import sqlite3
import stat
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from radiopaque.certificates import PeerIdentity, Role
from radiopaque.errors import StoreError
from radiopaque.operations import metering
from radiopaque.operations.metering import FILE, Meter, Shares, process_seconds, read_usage
from radiopaque.transport.admission import Call
from radiopaque.transport.observer import OK

CLINIC = PeerIdentity(Role.DATA_OWNER, "clinic-a")
DAY = datetime(2026, 3, 1, 12, tzinfo=UTC)


def call_of(peer: PeerIdentity = CLINIC, began: datetime = DAY, **about: str) -> Call:
    call = Call(peer, 60.0, about=about, began=began.timestamp())
    call.counters.count_received(1000)
    call.counters.count_sent(200)
    return call


def enter(meter: Meter, call: Call, method: str = "Infer", outcome: str = OK) -> None:
    meter.begun(method, call)
    meter.ended(method, call, outcome)


def test_shares_of_a_clock() -> None:
    now = [10.0]
    shares = Shares(lambda: now[0])
    now[0] = 100.0  # nobody there
    a = shares.enter()
    now[0] = 103.0  # a alone
    b = shares.enter()
    now[0] = 107.0  # two of them
    assert shares.leave(a) == pytest.approx(3 + 2)
    now[0] = 108.0  # b alone
    assert shares.leave(b) == pytest.approx(2 + 1)
    now[0] = 200.0
    c = shares.enter()
    now[0] = 201.5
    assert shares.leave(c) == pytest.approx(1.5)


def test_the_clock_counts_this_process_and_its_children() -> None:
    before = process_seconds()
    spin = "import time\nend = time.process_time() + 0.2\nwhile time.process_time() < end: pass"
    subprocess.run([sys.executable, "-c", spin], check=True)
    assert process_seconds() - before >= 0.2


def test_rows_add_up_by_caller_method_model_and_day(tmp_path: Path) -> None:
    meter = Meter(tmp_path)
    about: dict[str, Any] = {"model": "lungs", "version": "1"}
    enter(meter, call_of(**about, session="00000001"))
    enter(meter, call_of(**about, session="00000002"), outcome="abandoned")
    enter(meter, call_of(**about), outcome="ResourceError")
    enter(meter, call_of(**about, session="00000003"), method="Prepare")
    enter(meter, call_of(began=DAY + timedelta(days=40), **about, session="00000004"))
    enter(meter, call_of(replace(CLINIC, name="clinic-b")), method="ListModels")
    meter.close()
    found = {(one.caller, one.method): one for one in read_usage(tmp_path)}
    assert set(found) == {
        ("clinic-a", "Infer"),
        ("clinic-a", "Prepare"),
        ("clinic-b", "ListModels"),
    }
    infer = found["clinic-a", "Infer"]
    assert (infer.role, infer.model, infer.version) == ("data-owner", "lungs", "1")
    assert (infer.calls, infer.failed, infer.sessions) == (4, 2, 3)
    assert (infer.received_bytes, infer.sent_bytes) == (4000, 800)
    assert infer.cpu_seconds >= 0
    in_march = read_usage(tmp_path, date(2026, 3, 1), date(2026, 3, 31))
    assert [one.calls for one in in_march if one.method == "Infer"] == [3]
    assert read_usage(tmp_path, date(2026, 3, 2), date(2026, 3, 31)) == []


def test_calls_of_several_threads_are_told_apart(tmp_path: Path) -> None:
    """Two that overlap share the process's time; neither is counted twice."""
    meter = Meter(tmp_path)
    first, second = call_of(model="a"), call_of(model="b")
    began = process_seconds()
    meter.begun("Infer", first)
    meter.begun("Infer", second)
    while process_seconds() < began + 0.1:
        pass
    meter.ended("Infer", first, OK)
    meter.ended("Infer", second, OK)
    used = process_seconds() - began
    meter.close()
    shares = [one.cpu_seconds for one in read_usage(tmp_path)]
    assert 0.1 <= sum(shares) <= used
    assert min(shares) >= 0.05


def test_the_file_is_private_and_survives_a_kill(tmp_path: Path) -> None:
    program = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from tests.unit.operations.test_metering import Meter, call_of, enter\n"
        "meter = Meter(Path(sys.argv[1]))\n"
        "for _ in range(3): enter(meter, call_of(model='m'))\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", program, tmp_path], cwd=root, check=False)
    assert done.returncode == -9
    assert [one.calls for one in read_usage(tmp_path)] == [3]
    assert stat.S_IMODE((tmp_path / FILE).stat().st_mode) == 0o600
    meter = Meter(tmp_path)
    enter(meter, call_of(model="m"))
    # read while the party serves
    assert [one.calls for one in read_usage(tmp_path)] == [4]
    meter.close()


def test_a_broken_file_stops_no_call(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    meter = Meter(tmp_path)
    with sqlite3.connect(tmp_path / FILE) as other:
        other.execute("DROP TABLE usage")
    enter(meter, call_of())
    assert "could not be metered" in caplog.text
    meter.close()


def test_files_that_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="has not served yet"):
        read_usage(tmp_path)
    (tmp_path / FILE).write_bytes(b"no database" * 100)
    with pytest.raises(StoreError, match="metering file"):
        read_usage(tmp_path)
    with pytest.raises(StoreError, match="move it away"):
        Meter(tmp_path)
    assert os.listdir(tmp_path) == [FILE]


def test_nothing_but_names_sizes_and_times_is_kept() -> None:
    columns = {word.split()[0] for word in metering._SCHEMA.split("(")[1].split(",")}
    assert {"day", "role", "caller", "method", "model", "version"} <= columns
    assert not columns & {"session", "image", "patient", "path"}
