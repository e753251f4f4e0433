"""How a party and its worker process talk: records over a socket pair, nothing pickled.

A record is a header (operation, one byte; number, four; length, eight; little-endian) and so many
bytes. The worker asks, the party answers:

* ``SEND``: the party forwards the bytes to the peer.
* ``RECEIVE``: the length says how many bytes are due from the peer; the party answers with them.
* ``MATERIAL``: likewise, with the correction of the tuple of that number.
* ``READY`` (libraries loaded), ``RESULT``, ``FAILED`` (the worker's last words).

Before anything else the party sends one ``SETUP`` record and then ``ARRAY`` records, whose sizes
follow from the plan.
"""

from __future__ import annotations

import socket
import struct
import time
from enum import IntEnum
from typing import Final

from radiopaque.errors import DeadlineError, EngineError, RadiopaqueError

_HEADER: Final = struct.Struct("<BIQ")
_PIECE: Final = 1 << 20


class Record(IntEnum):
    """What a record is."""

    READY = 1
    SETUP = 2
    ARRAY = 3
    SEND = 4
    RECEIVE = 5
    MATERIAL = 6
    RESULT = 7
    FAILED = 8


class Pipe:
    """One end. It may be used for ``seconds`` from now on; None is for ever.

    All methods raise EngineError where the other side is gone or breaks this protocol, and
    DeadlineError.
    """

    def __init__(self, connection: socket.socket, seconds: float | None) -> None:
        self._socket = connection
        self._deadline = None if seconds is None else time.monotonic() + seconds

    def _wait(self) -> None:
        """Bound the next call on the socket."""
        if self._deadline is not None:
            self._socket.settimeout(max(0.001, self._deadline - time.monotonic()))

    def close(self) -> None:
        """Let go of the socket; the other side's next wait ends."""
        self._socket.close()

    def write(self, record: Record, number: int = 0, data: bytes | memoryview = b"") -> None:
        """Send a record."""
        view = memoryview(data).cast("B")
        self.begin(record, number, len(view))
        self.push(view)

    def begin(self, record: Record, number: int, length: int) -> None:
        """Send a header alone; for ``RECEIVE`` and ``MATERIAL`` that is the whole question."""
        self.push(_HEADER.pack(record, number, length))

    def push(self, data: bytes | memoryview) -> None:
        """Send bytes that a header announced, or an answer."""
        self._wait()
        try:
            self._socket.sendall(data)
        except OSError as error:
            raise _lost(error) from error

    def header(self) -> tuple[Record, int, int]:
        """(record, number, length) of the next record."""
        kind, number, length = _HEADER.unpack(self.pull(_HEADER.size))
        try:
            return Record(kind), number, length
        except ValueError:
            raise EngineError(
                "the CrypTen worker broke its protocol; its libraries wrote into the pipe"
            ) from None

    def expect(self, record: Record, most: int) -> bytearray:
        """The bytes of the record that is due, at most ``most`` of them."""
        found, _, length = self.header()
        if found is not record or length > most:
            raise EngineError(
                f"expected {record.name} of at most {most} bytes from the other side of the "
                f"CrypTen worker's pipe, got {found.name} of {length}"
            )
        return self.pull(length)

    def pull(self, size: int) -> bytearray:
        """Exactly so many bytes."""
        data = bytearray(size)
        view = memoryview(data)
        done = 0
        while done < size:
            self._wait()
            try:
                count = self._socket.recv_into(view[done : done + _PIECE])
            except OSError as error:
                raise _lost(error) from error
            if not count:
                raise EngineError("the other side of the CrypTen worker's pipe is gone")
            done += count
        return data


def _lost(error: OSError) -> RadiopaqueError:
    if isinstance(error, TimeoutError):
        return DeadlineError(
            "the CrypTen worker did not answer in the time allowed; allow more with "
            "deadline_seconds in the data owner's config and longest_call_seconds in the servers'"
        )
    return EngineError(f"the pipe to the CrypTen worker broke: {error.strerror or error}")
