"""Peak anonymous memory of running processes, sampled from /proc."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType

_INTERVAL_SECONDS = 0.02


class MemoryWatch:
    """Samples RssAnon of processes while its block runs; ``peaks`` are bytes by name.

    Anonymous memory is what a process has written itself; mapped files do not count. Where /proc
    does not exist, peaks stay 0.
    """

    def __init__(self, processes: Mapping[str, int]) -> None:
        self._processes = processes
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="memory", daemon=True)
        self.peaks = dict.fromkeys(processes, 0)

    def __enter__(self) -> MemoryWatch:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(_INTERVAL_SECONDS):
            for name, process in self._processes.items():
                self.peaks[name] = max(self.peaks[name], anonymous_memory(process))


def anonymous_memory(process: int) -> int:
    """RssAnon of a process in bytes, 0 where it is not known."""
    with suppress(OSError):
        for line in Path(f"/proc/{process}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    return 0
