"""What a process holds, as Linux counts it."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from tests.e2e.parties import Serving

MIB = 1 << 20


@dataclass(frozen=True)
class Usage:
    """Threads, open files, and bytes of memory: now, and the most since the process began."""

    threads: int
    files: int
    resident_bytes: int
    peak_bytes: int

    @classmethod
    def of(cls, process: int | Serving) -> Usage:
        """Of a process, by its id."""
        number = process if isinstance(process, int) else process._started().pid
        folder = Path("/proc") / str(number)
        status = dict(re.findall(r"^(\w+):\s+(\d+)", (folder / "status").read_text(), re.MULTILINE))
        return cls(
            int(status["Threads"]),
            len(os.listdir(folder / "fd")),
            int(status["VmRSS"]) << 10,
            int(status["VmHWM"]) << 10,
        )

    def __str__(self) -> str:
        resident, peak = self.resident_bytes / MIB, self.peak_bytes / MIB
        return f"{self.threads} threads, {self.files} files, {resident:.1f} MiB, peak {peak:.1f}"
