"""Files of figures: flat records with documented keys, whole, and nothing that names a machine."""

from __future__ import annotations

import json
import os
import platform
import re
import socket
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from benchmarks.errors import BenchmarkError
from benchmarks.processes import cpu_seconds, machine, versions
from benchmarks.record import RESULT_KEYS, Part, Report
from benchmarks.tables import markdown
from tests.unit.benchmarks.reports import report, result, stock

DOCUMENT = Path(__file__).parents[3] / "docs" / "benchmarks.md"
DEMANDED = {
    *("model", "engine", "device", "network", "threads", "batch"),
    *("online_seconds_min", "online_seconds_median", "online_seconds_max"),
    *("offline_seconds_median", "online_bytes", "offline_bytes", "round_trips", "cpu_seconds"),
    *("peak_rss_bytes", "images_per_second", "max_abs_logit_error", "argmax_agreement"),
}


def test_results_have_every_key_and_no_other() -> None:
    assert set(RESULT_KEYS) >= DEMANDED
    made = report()
    made.add(Part({"model": "lenet", "cpu_seconds": 0.123456789}))
    (record,) = made.results
    assert list(record) == list(RESULT_KEYS)
    assert record["cpu_seconds"] == 0.1234568
    assert record["online_bytes"] is None
    with pytest.raises(ValueError, match="surprise"):
        made.add(Part({"surprise": 1}))


def test_every_key_is_documented() -> None:
    text = DOCUMENT.read_text()
    assert [key for key in RESULT_KEYS if f"`{key}`" not in text] == []


def test_parts_name_their_result() -> None:
    made = report(result())
    made.add(Part(stock(), parties=[{"party": "both", "cpu_seconds": 1.0}]))
    assert made.parties == [{"result": 1, "party": "both", "cpu_seconds": 1.0}]
    assert made.of(made.parties, made.results[1]) == made.parties
    assert made.of(made.parties, made.results[0]) == []


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    made = report(result(), stock())
    made.skipped.append({"engine": "spu", "reason": "not here"})
    path = tmp_path / "new" / "figures.json"
    made.save(path)
    assert asdict(Report.load(path)) == asdict(made)
    content = json.loads(path.read_text())
    assert content["schema"] == 1
    assert [record["engine"] for record in content["results"]] == ["compiled-32", "crypten-stock"]
    assert all(
        not isinstance(value, dict | list) for r in content["results"] for value in r.values()
    )


def test_a_run_that_is_broken_off_while_it_writes_leaves_what_it_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "figures.json"
    made = report(result())
    made.save(path)
    before = path.read_bytes()
    made.add(Part(stock()))

    def half(self: Path, text: str) -> None:
        self.write_bytes(text.encode()[: len(text) // 2])
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", half)
        with pytest.raises(KeyboardInterrupt):
            made.save(path)
    assert path.read_bytes() == before
    made.save(path)
    assert len(Report.load(path).results) == 2
    assert [one.name for one in tmp_path.iterdir()] == ["figures.json"]


def test_files_of_before_floors_are_read(tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    report(result()).save(path)
    content = json.loads(path.read_text())
    del content["floors"], content["planned"], content["results"][0]["floor_seconds"]
    path.write_text(json.dumps(content))
    loaded = Report.load(path)
    assert loaded.floors == []
    assert list(loaded.results[0]) == list(RESULT_KEYS)
    assert markdown(loaded) == markdown(report(result()))


@pytest.mark.parametrize(
    "path", sorted((DOCUMENT.parents[1] / "benchmarks/results").glob("*.json"))
)
def test_committed_figures_can_be_shown(path: Path) -> None:
    assert "| compiled-32 " in markdown(Report.load(path))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "No such file"),
        ("{", "no JSON"),
        ("[]", "not written by radiopaque bench"),
        ('{"schema": 2}', "not written by"),
        ('{"schema": 1, "created": ""}', "of another version"),
        (
            '{"schema": 1, "created": "", "machine": {}, "versions": {}, "more": 1}',
            "another version",
        ),
    ],
)
def test_files_of_others(tmp_path: Path, text: str | None, message: str) -> None:
    path = tmp_path / "figures.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(BenchmarkError, match=message):
        Report.load(path)


def test_the_machine_is_described_without_its_name() -> None:
    described = json.dumps([machine(), versions()])
    for name in (socket.gethostname(), platform.node(), str(Path.home()), os.getcwd()):
        assert re.search(rf"(?<!\w){re.escape(name)}(?!\w)", described) is None
    assert int(machine()["cores"]) >= 1
    assert versions()["python"] == platform.python_version()


def test_the_commit_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert re.fullmatch(r"[0-9a-f]{12}\+?", versions()["commit"])
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert "commit" not in versions()


def test_processor_time_of_a_process_and_of_what_it_started() -> None:
    own = os.getpid()
    before = cpu_seconds(own)
    assert sum(number * number for number in range(300_000))
    alone = cpu_seconds(own) - before
    assert 0 < alone < 5
    code = "import time\nwhile time.process_time() < 0.5: pass"
    subprocess.run([sys.executable, "-c", code], check=True)
    # children's time is rounded to hundredths
    assert 0.45 <= cpu_seconds(own) - before - alone < 5
    with pytest.raises(OSError, match="Invalid"):
        cpu_seconds(2**22 - 1)
