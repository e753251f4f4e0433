"""One session's view of a channel: sends in its name, accepts only the frame that is due."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from radiopaque.errors import MessageOrderError, MessageSizeError
from radiopaque.telemetry import recorder
from radiopaque.transport.channel import Channel
from radiopaque.wire.frames import Frame, Kind

PAYLOAD_BYTES = 1 << 20
"""Largest payload of a frame. gRPC moves messages of 1 MiB at more than twice the rate of 4 MiB."""


class Link:
    """A channel bound to a session id.

    Every message of the protocol is due at exactly one point; :meth:`receive` names it and
    anything else ends the session with a typed error.
    """

    def __init__(self, channel: Channel, session: bytes) -> None:
        self._channel = channel
        self._session = session
        self.more = False
        """Whether a frame that is received now is followed by another whatever is sent."""

    def send(
        self, gate: int, kind: Kind, block: int = 0, payload: bytes | NDArray[np.uint8] = b""
    ) -> None:
        """Send one frame of this session."""
        data = payload if isinstance(payload, bytes) else payload.data
        with recorder.span("send", gate, kind.name, len(payload)):
            self._channel.send(Frame(self._session, gate, kind, block, data))

    def receive(self, gate: int, kind: Kind, block: int, size: int) -> NDArray[np.uint8]:
        """The payload of the frame that is due, as read-only bytes [size].

        Raises MessageOrderError or MessageSizeError for any other frame.
        """
        with recorder.span("wait", gate, kind.name, size):
            frame = self._channel.receive(self.more)
        return accept(frame, self._session, gate, kind, block, size)

    def receive_words(
        self, gate: int, kind: Kind, block: int, count: int, dtype: np.dtype[np.unsignedinteger]
    ) -> NDArray[np.unsignedinteger]:
        """The payload that is due as little-endian words [count], aligned and writable."""
        data = self.receive(gate, kind, block, count * dtype.itemsize)
        return data.view(dtype.newbyteorder("<")).astype(dtype)


def accept(
    frame: Frame, session: bytes, gate: int, kind: Kind, block: int, size: int
) -> NDArray[np.uint8]:
    """Check that a frame is the one that is due and return its payload, uint8 [size]."""
    if frame.session != session:
        raise MessageOrderError("a message of another session arrived on this session's stream")
    if (frame.gate, frame.kind, frame.block) != (gate, kind, block):
        raise MessageOrderError(
            f"expected {kind.name} of gate {gate}, block {block}; "
            f"got {frame.kind.name} of gate {frame.gate}, block {frame.block}"
        )
    if len(frame.payload) != size:
        raise MessageSizeError(
            f"{kind.name} of gate {gate}, block {block} takes {size} bytes, "
            f"got {len(frame.payload)}"
        )
    return np.frombuffer(frame.payload, np.uint8)


def payload_pieces(size: int) -> Iterator[tuple[int, slice]]:
    """(block, slice) that cut a string of ``size`` bytes into payloads."""
    for block, start in enumerate(range(0, size, PAYLOAD_BYTES)):
        yield block, slice(start, min(start + PAYLOAD_BYTES, size))
