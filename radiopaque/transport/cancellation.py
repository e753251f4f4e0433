"""Word that a call is over, for whoever works on its behalf and waits for something else."""

from __future__ import annotations

import threading
from collections.abc import Callable

from radiopaque.errors import ConnectionLostError


class Cancellation:
    """Whether anybody still waits for the outcome of a call, and what to do when nobody does."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._over = False
        self._callbacks: list[Callable[[], object]] = []

    def cancel(self) -> None:
        """Nobody waits any more. Again changes nothing."""
        with self._lock:
            self._over = True
            callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback()

    def on(self, callback: Callable[[], object]) -> None:
        """Have it called, by whichever thread, when nobody waits any more: now, if so already."""
        with self._lock:
            if not self._over:
                self._callbacks.append(callback)
                return
        callback()

    def check(self) -> None:
        """Raises ConnectionLostError when nobody waits any more."""
        if self._over:
            raise ConnectionLostError("the call that this was for is over")
