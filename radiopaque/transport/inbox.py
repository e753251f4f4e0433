"""The next messages of a stream, fetched by a thread while earlier ones are worked on.

gRPC for Python begins to read a message when it is asked for one, and hands it over through two
threads: 0.3 ms that a party would wait each time, though the message had long arrived.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Final

AHEAD: Final = 16
"""Messages that may wait for the party: what a fast or hostile peer can make it hold."""


class Inbox:
    """``fetch`` waits for a message and returns it, None at the end of the stream, or raises.

    The thread ends with the stream. :meth:`let_go` must be called when the stream has ended, since
    the thread may be waiting for room.
    """

    def __init__(self, fetch: Callable[[], bytes | None]) -> None:
        self._fetch = fetch
        self._room = threading.Semaphore(AHEAD)
        self._bounded = True
        self._items: SimpleQueue[bytes | BaseException | None] = SimpleQueue()
        threading.Thread(target=self._run, name="radiopaque-receive", daemon=True).start()

    def get(self) -> bytes | None:
        """The next message, None for ever at the end; raises what fetching it raised."""
        item = self._items.get()
        if isinstance(item, bytes):
            self._room.release()
            return item
        self._items.put(item)
        if item is None:
            return None
        raise item

    def let_go(self) -> None:
        """The stream has ended: what is left of it needs no room."""
        self._bounded = False
        self._room.release()

    def _run(self) -> None:
        item: bytes | BaseException | None = b""
        while isinstance(item, bytes):
            if self._bounded:
                self._room.acquire()
            try:
                item = self._fetch()
            except BaseException as error:
                item = error
            self._items.put(item)
