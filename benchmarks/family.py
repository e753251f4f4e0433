"""Running a peer's program, and the most memory that it and its children take."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from tempfile import TemporaryFile

from benchmarks.errors import BenchmarkError
from radiopaque.cli.memory import anonymous_memory

_INTERVAL_SECONDS = 0.02


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
                peak = max(peak, *(anonymous_memory(one) for one in _family(process.pid)), 0)
                time.sleep(_INTERVAL_SECONDS)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        said.seek(0)
        complained.seek(0)
        if process.returncode:
            raise BenchmarkError(f"{command[2]} failed: {complained.read()[-2000:].strip()}")
        return said.read(), peak


def _family(session: int) -> list[int]:
    """The processes of a session: a program that began one, and all that it started."""
    found = []
    for name in os.listdir("/proc"):
        with suppress(OSError):
            if name.isdecimal() and os.getsid(int(name)) == session:
                found.append(int(name))
    return found
