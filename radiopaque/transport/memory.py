"""The channel inside one process: for tests, evaluation and simulation.

It behaves like the gRPC channel: the same counters, deadlines, and errors on either side.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from queue import Empty, SimpleQueue

from radiopaque.errors import ConnectionLostError, DeadlineError, RadiopaqueError, without_traceback
from radiopaque.telemetry import get_logger
from radiopaque.transport.channel import DEFAULT_DEADLINE_SECONDS, Channel, Counters
from radiopaque.wire.frames import Frame, encoded_size

_log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _End:
    """Last item of a stream."""

    error: RadiopaqueError


class MemoryChannel:
    """One end of a pair; see :class:`radiopaque.transport.channel.Channel`."""

    def __init__(self, deadline_seconds: float, serving: bool) -> None:
        self.counters = Counters()
        self._serving = serving
        self._deadline_seconds = deadline_seconds
        self._deadline = time.monotonic() + deadline_seconds
        self._inbox: SimpleQueue[tuple[Frame, int] | _End] = SimpleQueue()
        self._closing = threading.Lock()
        self._ended: RadiopaqueError | None = None
        self._reported: RadiopaqueError | None = None
        self._peer: MemoryChannel = self

    def send(self, frame: Frame) -> None:
        if self._ended is not None:
            raise without_traceback(self._ended)
        if self._peer._ended is not None:
            raise self._peer._farewell()
        if isinstance(frame.payload, memoryview):
            frame = replace(frame, payload=bytes(frame.payload))
        size = encoded_size(frame)
        self._peer._inbox.put((frame, size))
        self.counters.count_sent(size)

    def receive(self, more: bool = False) -> Frame:
        if self._ended is not None:
            raise without_traceback(self._ended)
        try:
            item = self._inbox.get(timeout=max(0.0, self._deadline - time.monotonic()))
        except Empty:
            raise DeadlineError(
                f"the peer sent nothing within the {self._deadline_seconds:g} s of this channel; "
                "allow more time, or look for the cause at the peer"
            ) from None
        if isinstance(item, _End):
            self._inbox.put(item)
            raise without_traceback(item.error)
        frame, size = item
        self.counters.count_received_frame(frame, size)
        return frame

    def close(self, error: RadiopaqueError | None = None) -> None:
        with self._closing:
            if self._ended is not None:
                return
            self._reported = without_traceback(error) if error and self._serving else None
            ended = error or ConnectionLostError("this side has closed the channel")
            self._ended = without_traceback(ended)
        self._peer._inbox.put(_End(self._farewell()))
        self._inbox.put(_End(self._ended))

    def _farewell(self) -> RadiopaqueError:
        """What the other end is told about the end of this one."""
        return self._reported or ConnectionLostError(
            "the peer has ended the stream; the session is spent, prepare another"
        )


def pair(
    deadline_seconds: float = DEFAULT_DEADLINE_SECONDS,
) -> tuple[MemoryChannel, MemoryChannel]:
    """Two connected ends: of the party that opens the channel, and of the one that serves it."""
    opening = MemoryChannel(deadline_seconds, serving=False)
    serving = MemoryChannel(deadline_seconds, serving=True)
    opening._peer, serving._peer = serving, opening
    return opening, serving


def connect(
    serve: Callable[[Channel], None], deadline_seconds: float = DEFAULT_DEADLINE_SECONDS
) -> MemoryChannel:
    """A channel whose other end is served by ``serve`` in a thread of its own.

    What ``serve`` raises reaches the caller as it would over the network.
    """
    opening, serving = pair(deadline_seconds)

    def run() -> None:
        try:
            serve(serving)
        except RadiopaqueError as error:
            serving.close(error)
        except Exception as error:
            _log.failure("serving a channel in memory failed", error)
            serving.close(RadiopaqueError("internal error of the peer; see its log"))
        else:
            serving.close()

    threading.Thread(target=run, name="radiopaque-serve", daemon=True).start()
    return opening
