"""Ending streams without keeping the clinic waiting."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Final

from radiopaque.transport.channel import Channel

_AT_ONCE: Final = 8


class Goodbyes:
    """Streams that are being closed, each until the vendor has ended it, too, or a few seconds."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="radiopaque-close")
        self._under_way: set[Future[None]] = set()

    def say(self, channel: Channel) -> None:
        """End a stream without waiting for the vendor's goodbye.

        Alike whatever happened: what the vendor sees of the end must not depend on the result.
        """
        goodbye = self._pool.submit(channel.close)
        self._under_way.add(goodbye)
        goodbye.add_done_callback(self._under_way.discard)

    def wait(self) -> None:
        """Until all have been said.

        A connection that is closed before breaks a call off, and a session that the vendor has
        served to its end stands in its log as one that was abandoned.
        """
        wait(set(self._under_way))
