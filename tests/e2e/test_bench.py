"""`radiopaque bench` as a user runs it: real processes, relays, and every file that it writes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.record import Report
from tests.e2e.parties import until
from tests.unit.benchmarks.conftest import model_cache

__all__ = ["model_cache"]

BENCH = [sys.executable, "-m", "radiopaque", "bench"]


@pytest.fixture(scope="module")
def folder(model_cache: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one run over two networks wrote; one of them breaks after a session or two."""
    folder = tmp_path_factory.mktemp("bench")
    command = [*BENCH, "--model", "lenet", "--inferences", "2"]
    command += ["--network", "loopback", "--network", "shaky:rtt_ms=4,mbit=200,cut_mb=0.9"]
    for option, name in (
        ("--json", "figures.json"),
        ("--markdown", "table.md"),
        ("--plots", "plots"),
        ("--trace", "trace.json"),
    ):
        command += [option, str(folder / name)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == (folder / "table.md").read_text()
    assert "[4/4] lenet@32 compiled-32 on shaky" in done.stderr
    return folder


def test_figures(folder: Path) -> None:
    report = Report.load(folder / "figures.json")
    plain, near, far = report.results
    assert [record["engine"] for record in report.results] == [
        "onnxruntime",
        "compiled-32",
        "compiled-32",
    ]
    assert plain["max_abs_logit_error"] == 0
    # what is on disk is what was sent before the image
    stored = sum(
        one["payload_bytes"] for one in report.of(report.traffic, near) if one["phase"] == "offline"
    )
    (floor,) = report.floors
    assert report.results[floor["result"]] == near
    assert near["floor_seconds"] == floor["floor_seconds"] < near["online_seconds_min"]
    assert near["online_over_floor"] > 1
    assert far["floor_seconds"] is None
    for record in (near, far):
        assert record["max_abs_logit_error"] < 0.01
        assert record["argmax_agreement"] == 1.0
        assert record["round_trips"] == 19
        assert record["online_bytes"] == near["online_bytes"]
        assert 0 < record["online_seconds_min"] <= record["online_seconds_median"]
        assert record["cpu_seconds"] > record["offline_cpu_seconds"] > 0
        assert stored < record["material_bytes"] < stored + 10_000
        assert 50e6 < record["peak_rss_bytes"] < record["resident_bytes"] < 1e9
        assert record["online_over_plaintext"] > 1
        assert record["call_seconds_median"] > record["online_seconds_median"]
        assert 0 < record["images_per_second"] < 1 / record["online_seconds_min"]
    assert near["broken"] == 0
    assert far["broken"] >= 1
    # 19 round trips of 4 ms are in it
    assert far["online_seconds_min"] > 19 * 4e-3
    assert [skipped["engine"] for skipped in report.skipped] == ["onnxruntime"]


def test_predicted_payload_is_counted_between_processes(folder: Path) -> None:
    report = Report.load(folder / "figures.json")
    near = report.results[1]
    traffic = report.of(report.traffic, near)
    counted = [record for record in traffic if record["predicted_payload_bytes"]]
    assert len(counted) == 4
    for record in counted:
        assert record["payload_bytes"] == record["predicted_payload_bytes"]
        framing = record["bytes"] - record["payload_bytes"]
        assert 0 < framing <= 32 * record["messages"] + 120
    assert sum(r["bytes"] for r in traffic if r["phase"] == "online") == near["online_bytes"]
    assert sum(r["bytes"] for r in traffic if r["phase"] == "offline") == near["offline_bytes"]


def test_parties_and_gates(folder: Path) -> None:
    report = Report.load(folder / "figures.json")
    near = report.results[1]
    parties = report.of(report.parties, near)
    assert {record["party"] for record in parties} == {
        "data_owner",
        "model_owner",
        "crypto_provider",
    }
    assert sum(record["cpu_seconds"] for record in parties) == pytest.approx(near["cpu_seconds"])
    assert max(record["peak_rss_bytes"] for record in parties) == near["peak_rss_bytes"]
    gates = report.of(report.gates, near)
    computing = {
        (record["party"], record["phase"]) for record in gates if record["compute_seconds"]
    }
    assert computing == {
        ("crypto_provider", "offline"),
        ("data_owner", "offline"),
        ("data_owner", "load"),
        ("data_owner", "online"),
        ("model_owner", "load"),
        ("model_owner", "online"),
    }
    # the data owner's time at gates is its online time; the model owner waits for the image before
    seconds = sum(
        record[f"{part}_seconds"]
        for record in gates
        if (record["party"], record["phase"]) == ("data_owner", "online")
        for part in ("compute", "wait", "serialise")
    )
    assert 0.5 * near["online_seconds_min"] < seconds < near["online_seconds_max"]


def test_files_name_nothing_of_this_machine(folder: Path) -> None:
    names = (os.uname().nodename, str(Path.home()), str(folder), str(Path.cwd()))
    for name in ("figures.json", "table.md", "trace.json"):
        found = [
            n
            for n in names
            if re.search(rf"(?<!\w){re.escape(n)}(?!\w)", (folder / name).read_text())
        ]
        assert found == [], name


def test_trace_and_plots(folder: Path) -> None:
    events = json.loads((folder / "trace.json").read_text())["traceEvents"]
    assert {e["args"]["name"] for e in events if e["name"] == "process_name"} == {
        "data-owner",
        "model-owner",
        "crypto-provider",
    }
    # the parties' clocks are one: no answer is there before it was sent
    sent = {e["id"]: e["ts"] for e in events if e["ph"] == "s"}
    assert len(sent) == 38
    assert all(sent[e["id"]] < e["ts"] for e in events if e["ph"] == "f")
    names = {path.name for path in (folder / "plots").iterdir()}
    assert names == {"latency.png", "traffic.png", "round-trip-time.png"}


def test_interrupted_it_leaves_no_process(model_cache: None) -> None:
    with subprocess.Popen(
        [*BENCH, "--model", "lenet", "--engine", "compiled-32", "--network", "lan"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "RADIOPAQUE_TEST": f"bench-{os.getpid()}"},
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "first session" in line:
                break
        assert len(marked()) >= 7  # the harness, three parties, three relays
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 130
    until(lambda: not marked(), seconds=20)


def marked() -> list[str]:
    """Processes that have our mark in their environment."""
    mark = f"RADIOPAQUE_TEST=bench-{os.getpid()}".encode()
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if mark in path.read_bytes():
                found.append(path.parent.name)
        except OSError:
            time.sleep(0)
    return found
