"""What the protocol needs of a connection between two parties, and how its traffic is counted.

Bytes are those of serialised messages, without HTTP/2 and TLS framing; every transport counts them
where a message is handed over, so that in memory and over the network give the same figures.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from radiopaque.errors import RadiopaqueError
from radiopaque.wire.frames import CONTROL_KINDS, Frame, Kind

DEFAULT_DEADLINE_SECONDS = 120.0


@dataclass(slots=True)
class Counters:
    """Traffic of one party on one link.

    ``openings`` holds the distinct (gate, kind) among the data frames received: at the data owner
    each is one message that had to come back from the model owner before it could go on, so their
    number is the round trips; the blocks of one layer count once.
    """

    sent_bytes: int = 0
    received_bytes: int = 0
    sent_messages: int = 0
    received_messages: int = 0
    openings: set[tuple[int, Kind]] = field(default_factory=set)

    @property
    def round_trips(self) -> int:
        return len(self.openings)

    def count_sent(self, size: int) -> None:
        self.sent_bytes += size
        self.sent_messages += 1

    def count_received(self, size: int) -> None:
        self.received_bytes += size
        self.received_messages += 1

    def count_received_frame(self, frame: Frame, size: int) -> None:
        self.count_received(size)
        if frame.kind not in CONTROL_KINDS:
            self.openings.add((frame.gate, frame.kind))

    def snapshot(self) -> Counters:
        return Counters(
            self.sent_bytes,
            self.received_bytes,
            self.sent_messages,
            self.received_messages,
            set(self.openings),
        )

    def __sub__(self, earlier: Counters) -> Counters:
        """What was added since the snapshot ``earlier``."""
        return Counters(
            self.sent_bytes - earlier.sent_bytes,
            self.received_bytes - earlier.received_bytes,
            self.sent_messages - earlier.sent_messages,
            self.received_messages - earlier.received_messages,
            self.openings - earlier.openings,
        )


class Channel(Protocol):
    """An ordered, reliable stream of frames to one peer, for one session.

    ``send`` and ``receive`` may be used from different threads; each of them by one thread only.
    """

    counters: Counters

    def send(self, frame: Frame) -> None:
        """Queue a frame; its payload is copied, so its buffer may be used again.

        Raises DeadlineError, ConnectionLostError, or the error that the serving peer ended with.
        """
        ...

    def receive(self, more: bool = False) -> Frame:
        """The next frame, waiting for it up to the channel's deadline.

        With ``more``, another one comes after it whatever this side does: it may be fetched ahead.

        Raises DeadlineError, ConnectionLostError (the peer ended the stream or the connection
        broke), MessageSizeError and MessageValueError (not a frame), or the error that the serving
        peer ended with.
        """
        ...

    def close(self, error: RadiopaqueError | None = None) -> None:
        """End the stream; frames sent before still arrive. Closing again does nothing.

        On the serving side ``error`` reaches the peer as it is. On the side that opened the channel
        it only says that the stream broke off: what a data owner complains about may depend on its
        result, which the model owner must not learn.
        """
        ...
