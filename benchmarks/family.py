"""Programs with all that they start: running a peer's, and the memory that parties take."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import NamedTuple

from benchmarks.errors import BenchmarkError

_INTERVAL_SECONDS = 0.02


class Memory(NamedTuple):
    """Bytes of a process: anonymous memory now, and the most that was resident since it began.

    The latter is the kernel's high-water mark, VmHWM: with mapped files, and no peak is missed.
    """

    anonymous: int
    resident: int


class Watched(NamedTuple):
    """What a program printed, and the most of either kind of memory of any of its processes."""

    output: str
    anonymous: int
    resident: int


class FamilyWatch:
    """Samples the memory of parties while its block runs; the figures are bytes by name.

    ``peaks``: anonymous memory. ``resident``: high-water marks, those of processes that live at one
    time added up. A party is the leader of a session of processes; what it starts counts with it.
    """

    def __init__(self, leaders: Mapping[str, int]) -> None:
        self._leaders = leaders
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="memory", daemon=True)
        self.peaks = dict.fromkeys(leaders, 0)
        self.resident = dict.fromkeys(leaders, 0)

    def __enter__(self) -> FamilyWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        names = {leader: name for name, leader in self._leaders.items()}
        while not self._stop.wait(_INTERVAL_SECONDS):
            found = dict.fromkeys(self.peaks, Memory(0, 0))
            for process, session in _sessions():
                if session in names:
                    name, more = names[session], memory(process)
                    anonymous, resident = found[name]
                    found[name] = Memory(anonymous + more.anonymous, resident + more.resident)
            for name, now in found.items():
                self.peaks[name] = max(self.peaks[name], now.anonymous)
                self.resident[name] = max(self.resident[name], now.resident)


def run_watched(
    command: Sequence[str],
    environment: Mapping[str, str] | None = None,
    timeout_seconds: float = 3600.0,
) -> Watched:
    """Run a program to its end.

    Raises BenchmarkError with the end of what it said when it fails or takes too long.
    """
    peak = Memory(0, 0)
    deadline = time.monotonic() + timeout_seconds
    with (
        TemporaryFile("w+") as said,
        TemporaryFile("w+") as complained,
        subprocess.Popen(
            command, stdout=said, stderr=complained, env=environment, start_new_session=True
        ) as process,
    ):
        try:
            while process.poll() is None:
                if time.monotonic() > deadline:
                    raise BenchmarkError(f"{command[2]} took over {timeout_seconds:g} s")
                for one, session in _sessions():
                    if session == process.pid:
                        peak = Memory(*map(max, peak, memory(one)))
                time.sleep(_INTERVAL_SECONDS)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        said.seek(0)
        complained.seek(0)
        if process.returncode:
            raise BenchmarkError(f"{command[2]} failed: {complained.read()[-2000:].strip()}")
        return Watched(said.read(), *peak)


def memory(process: int) -> Memory:
    """Of a process; zeros where it has gone."""
    with suppress(OSError):
        fields = dict(
            line.split(":", 1) for line in Path(f"/proc/{process}/status").read_text().splitlines()
        )
        if "RssAnon" in fields:
            return Memory(*(int(fields[key].split()[0]) << 10 for key in ("RssAnon", "VmHWM")))
    return Memory(0, 0)


def _sessions() -> Iterator[tuple[int, int]]:
    """Every process of this machine with its session, that of the program that began it."""
    for name in os.listdir("/proc"):
        with suppress(OSError):
            if name.isdecimal():
                yield int(name), os.getsid(int(name))
