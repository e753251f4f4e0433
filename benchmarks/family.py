"""Programs with all that they start: running a peer's, and the memory that parties take."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from tempfile import TemporaryFile

from benchmarks.errors import BenchmarkError
from radiopaque.cli.memory import anonymous_memory

_INTERVAL_SECONDS = 0.02


class FamilyWatch:
    """Samples the anonymous memory of parties while its block runs; ``peaks`` are bytes by name.

    A party is the leader of a session of processes; what it starts counts with it. Mapped files do
    not count.
    """

    def __init__(self, leaders: Mapping[str, int]) -> None:
        self._leaders = leaders
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="memory", daemon=True)
        self.peaks = dict.fromkeys(leaders, 0)

    def __enter__(self) -> FamilyWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        names = {leader: name for name, leader in self._leaders.items()}
        while not self._stop.wait(_INTERVAL_SECONDS):
            found = dict.fromkeys(self.peaks, 0)
            for process, session in _sessions():
                if session in names:
                    found[names[session]] += anonymous_memory(process)
            for name, memory in found.items():
                self.peaks[name] = max(self.peaks[name], memory)


def run_watched(
    command: Sequence[str],
    environment: Mapping[str, str] | None = None,
    timeout_seconds: float = 3600.0,
) -> tuple[str, int]:
    """What a program prints, and the most anonymous memory of it or any of its descendants, bytes.

    Raises BenchmarkError with the end of what it said when it fails or takes too long.
    """
    peak = 0
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
                family = [one for one, session in _sessions() if session == process.pid]
                peak = max([peak, *map(anonymous_memory, family)])
                time.sleep(_INTERVAL_SECONDS)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        said.seek(0)
        complained.seek(0)
        if process.returncode:
            raise BenchmarkError(f"{command[2]} failed: {complained.read()[-2000:].strip()}")
        return said.read(), peak


def _sessions() -> Iterator[tuple[int, int]]:
    """Every process of this machine with its session, that of the program that began it."""
    for name in os.listdir("/proc"):
        with suppress(OSError):
            if name.isdecimal():
                yield int(name), os.getsid(int(name))
