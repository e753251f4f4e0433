"""The next messages of a stream, fetched by a thread while earlier ones are worked on.

gRPC for Python begins to read a message when it is asked for one, and hands it over through two
threads: 0.3 ms that a party would wait each time, though the message had long arrived.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Final

from radiopaque.transport.link import PAYLOAD_BYTES

AHEAD: Final = 16
"""Messages that may wait for the party, one MESSAGE_BYTES long; a longer one takes the room of
several. A fast or hostile peer can make a party hold this, and what the last message is longer."""
MESSAGE_BYTES: Final = PAYLOAD_BYTES + 1024
"""Longest frame that a peer which keeps to the protocol sends."""


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
            self._room.release(_places(item))
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
            self._take(1)
            try:
                item = self._fetch()
            except BaseException as error:
                item = error
            more = _places(item) - 1 if isinstance(item, bytes) else 0
            self._items.put(item)
            self._take(more)

    def _take(self, places: int) -> None:
        """Wait for room."""
        for _ in range(places):
            if self._bounded:
                self._room.acquire()


def _places(message: bytes) -> int:
    return max(1, -(-len(message) // MESSAGE_BYTES))
