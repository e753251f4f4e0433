"""The next message of a stream, fetched by a thread while the one before is worked on.

gRPC for Python begins to read a message when it is asked for one, and hands it over through two
threads: 0.3 ms that a party would wait each time, though the message had long arrived. Where
nothing is on its way, a third thread would only be one more to wake.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue


class Inbox:
    """``fetch`` waits for a message and returns it, None at the end of the stream, or raises.

    One thread may use it. At most one message is held. :meth:`let_go` must be called, by any
    thread, when the stream has ended, since the fetching thread waits to be asked.
    """

    def __init__(self, fetch: Callable[[], bytes | None]) -> None:
        self._fetch = fetch
        self._asked: SimpleQueue[bool] = SimpleQueue()
        self._fetched: SimpleQueue[bytes | BaseException | None] = SimpleQueue()
        self._ahead = False
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._ended = False

    def get(self) -> bytes | None:
        """The next message, None at the end; raises what fetching it raised."""
        if not self._ahead:
            return self._fetch()
        self._ahead = False
        item = self._fetched.get()
        if isinstance(item, BaseException):
            try:
                raise item
            finally:
                del item  # the error would hold this frame, and this frame the error
        return item

    def look_ahead(self) -> None:
        """Fetch the next message meanwhile: one is on its way, whatever this side does."""
        with self._lock:
            if self._ahead or self._ended:
                return
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._run, name="radiopaque-receive", daemon=True
                )
                self._thread.start()
            self._ahead = True
            self._asked.put(True)

    def let_go(self) -> None:
        """The stream has ended."""
        with self._lock:
            self._ended = True
            self._asked.put(False)

    def _run(self) -> None:
        while self._asked.get():
            try:
                self._fetched.put(self._fetch())
            except BaseException as error:
                self._fetched.put(error)
