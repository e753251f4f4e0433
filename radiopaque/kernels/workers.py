"""Threads that share the work of one kernel call."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from radiopaque.errors import ConfigError

LEAST_SHARED = 1 << 25
"""Multiply-adds, about a third of a millisecond, from which a call is shared; handing over and
waiting takes some 50 microseconds."""


class Workers:
    """The calling thread and ``threads - 1`` more, for any number of kernels and callers.

    The compiled loops run without the interpreter's lock. Raises ConfigError for less than one
    thread.
    """

    __slots__ = ("_pool", "threads")

    def __init__(self, threads: int = 1) -> None:
        if threads < 1:
            raise ConfigError(f"{threads} threads cannot work; give 1 or more")
        self.threads = threads
        self._pool = ThreadPoolExecutor(threads - 1, "radiopaque-kernel") if threads > 1 else None

    def __repr__(self) -> str:
        return f"Workers({self.threads})"

    def share(self, size: int, multiply_adds: int, work: Callable[[int, int], object]) -> None:
        """Calls work(begin, end) for consecutive parts of range(size), one for each thread.

        Less than LEAST_SHARED multiply-adds are not parted. Returns when all are done; an error of
        any part is raised then.
        """
        parts = min(self.threads, size) if multiply_adds >= LEAST_SHARED else 1
        if self._pool is None or parts < 2:
            work(0, size)
            return
        borders = [size * part // parts for part in range(parts + 1)]
        others = [self._pool.submit(work, *borders[part : part + 2]) for part in range(1, parts)]
        try:
            work(0, borders[1])
        finally:
            errors = [other.exception() for other in others]
        for error in errors:
            if error is not None:
                raise error

    def close(self) -> None:
        """End the threads. Nothing may be shared afterwards."""
        if self._pool is not None:
            self._pool.shutdown()


ALONE = Workers()
"""The calling thread."""
