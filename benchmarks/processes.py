"""Processor time and memory of other processes of this machine, and what the machine is."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.errors import BenchmarkError

_PACKAGES = (
    "radiopaque",
    "numpy",
    "numba",
    "grpcio",
    "protobuf",
    "onnxruntime",
    "torch",
    "crypten",
)

_CHILDREN_USER = 13
"""Where, behind a process's name, /proc/PID/stat has its children's user time; then system time."""


@contextmanager
def announced(command: Sequence[str], what: str) -> Iterator[dict[str, Any]]:
    """A program that says in one line of JSON where it is, and ends when its input does.

    Raises BenchmarkError where it says nothing.
    """
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        if process.stdin is None or process.stdout is None:
            raise ValueError("the process was started without pipes")
        try:
            line = process.stdout.readline()
            if not line:
                raise BenchmarkError(f"{what} did not start")
            yield json.loads(line)
        finally:
            process.stdin.close()


def cpu_seconds(process: int) -> float:
    """Processor time of all threads of a process so far, also of those that have ended.

    The kernel counts it in nanoseconds and offers it as a clock, whose number follows from the
    process's (clock_getcpuclockid). Children count once they have ended, in hundredths of a second.
    Raises OSError for a process that is not there.
    """
    own = time.clock_gettime(((~process) << 3) | 2)
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    ticks = int(fields[_CHILDREN_USER]) + int(fields[_CHILDREN_USER + 1])
    return own + ticks / os.sysconf("SC_CLK_TCK")


def machine() -> dict[str, str | int | float]:
    """What figures depend on, without anything that names this one machine.

    The load average is that of the minute before: what else was running.
    """
    processor = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.exists():
        lines = information.read_text().splitlines()
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        processor = names[0] if names else processor
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "processor": processor,
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": memory,
        "system": f"{platform.system()} {platform.release().partition('-')[0]}",
        "architecture": platform.machine(),
        "accelerator": "none used",
        "load_average": round(os.getloadavg()[0], 1),
    }


def versions() -> dict[str, str]:
    """Python, the packages that decide about speed as far as they are installed, and the commit.

    The commit is that of the checkout; "+" behind it: with files that differ from it.
    """
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    commit = _git("rev-parse", "--short=12", "HEAD")
    if commit:
        found["commit"] = commit + ("+" if _git("status", "--porcelain", "-uno") else "")
    return found


def _git(*words: str) -> str:
    """What git says about the checkout; nothing where there is no git or no checkout."""
    git = shutil.which("git")
    if git is None:
        return ""
    try:
        done = subprocess.run(
            [git, *words], cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()
