"""Ending streams without keeping the clinic waiting."""

from __future__ import annotations

import threading

from radiopaque.transport.channel import Channel


class Goodbyes:
    """Streams that are being closed, each until the vendor has ended it, too, or a few seconds."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._under_way: set[threading.Thread] = set()

    def say(self, channel: Channel) -> None:
        """End a stream without waiting for the vendor's goodbye.

        Alike whatever happened: what the vendor sees of the end must not depend on the result.
        """
        goodbye = threading.Thread(target=channel.close, name="radiopaque-close", daemon=True)
        with self._lock:
            self._under_way = {other for other in self._under_way if other.is_alive()} | {goodbye}
            goodbye.start()

    def wait(self) -> None:
        """Until all have been said.

        A connection that is closed before breaks a call off, and a session that the vendor has
        served to its end stands in its log as one that was abandoned.
        """
        with self._lock:
            under_way = self._under_way
        for goodbye in under_way:
            goodbye.join()
