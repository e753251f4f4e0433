"""Programs of peers: what they print, what they need, and that nothing of them stays behind."""

from __future__ import annotations

import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from benchmarks.errors import BenchmarkError
from benchmarks.family import FamilyWatch, memory, run_watched
from tests.e2e.parties import until

BUSY = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; x = b'x' * {size}; time.sleep(0.4)"])
print(child.pid, flush=True)
child.wait()
"""


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_what_a_program_prints_and_takes() -> None:
    """The memory is that of its child, which takes most."""
    watched = run_watched(python(BUSY.format(size=200_000_000)))
    assert int(watched.output) > 0
    assert 200_000_000 < watched.anonymous < 300_000_000
    # with mapped files
    assert watched.anonymous < watched.resident < 300_000_000


def test_a_peak_between_two_samples_is_in_the_high_water_mark() -> None:
    """150 MB that are gone again at once; the process then sleeps in 10 MB or so."""
    code = "import time\nx = b'x' * 150_000_000\ndel x\ntime.sleep({seconds})"
    with subprocess.Popen(python(code.format(seconds=60)), start_new_session=True) as process:
        try:
            until(lambda: memory(process.pid).resident > 150_000_000)
            until(lambda: memory(process.pid).anonymous < 100_000_000)
            with FamilyWatch({"a party": process.pid}) as watch:
                until(lambda: watch.resident["a party"] > 0)
        finally:
            process.kill()
    assert watch.peaks["a party"] < 100_000_000
    assert watch.resident["a party"] > 150_000_000


def test_memory_of_what_is_gone() -> None:
    assert memory(2**22 - 1) == (0, 0)


def test_a_program_that_fails_says_why() -> None:
    with pytest.raises(BenchmarkError, match="no such thing"):
        run_watched(python("raise SystemExit('no such thing')"))


def test_a_program_that_takes_too_long_ends_with_its_children(tmp_path: Path) -> None:
    began = time.monotonic()
    code = (
        "import subprocess, sys\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "open(sys.argv[1], 'w').write(str(child.pid)); child.wait()"
    )
    with pytest.raises(BenchmarkError, match="took over"):
        run_watched([*python(code), str(tmp_path / "child")], timeout_seconds=2)
    assert time.monotonic() - began < 20
    child = Path("/proc") / (tmp_path / "child").read_text() / "stat"

    def gone() -> bool:
        try:
            return child.read_text().rpartition(")")[2].split()[0] == "Z"
        except OSError:
            return True

    until(gone)


def test_memory_of_parties_with_what_they_start() -> None:
    """Each party for itself: one takes it itself, the other has a child that does."""
    codes = {
        "small": "import time; time.sleep(1)",
        "alone": "import time; x = b'x' * 100_000_000; time.sleep(1)",
        "parent": BUSY.format(size=200_000_000),
    }
    with ExitStack() as stack:
        started = {
            name: stack.enter_context(
                subprocess.Popen(python(code), stdout=subprocess.DEVNULL, start_new_session=True)
            )
            for name, code in codes.items()
        }
        with FamilyWatch({name: process.pid for name, process in started.items()}) as watch:
            for process in started.values():
                process.wait()
    assert watch.peaks["small"] < 50_000_000
    assert 100_000_000 < watch.peaks["alone"] < 150_000_000
    assert 200_000_000 < watch.peaks["parent"] < 250_000_000
