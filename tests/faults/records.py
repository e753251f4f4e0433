"""Somebody on the way: a relay of TCP that changes one TLS record and forwards all others."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.e2e.networks import Network
from tests.faults.inside import Inside, Listening

APPLICATION_DATA = 23
Record = bytes
Change = Callable[[Record, Record], list[Record]]
"""From a record and the one before it in its direction to what is forwarded in its place."""


def flipped(place: float) -> Change:
    """One bit of the record's contents, at a place from 0 to 1."""

    def change(record: Record, _: Record) -> list[Record]:
        data = bytearray(record)
        bit = int(place * 8 * (len(record) - 5))
        data[5 + bit // 8] ^= 1 << bit % 8
        return [bytes(data)]

    return change


def _resized(record: Record, body: bytes) -> list[Record]:
    return [record[:3] + len(body).to_bytes(2, "big") + body]


CHANGES: dict[str, Change] = {
    "first bit": flipped(0.0),
    "middle bit": flipped(0.5),
    "last bit": flipped(0.9999),
    "cut": lambda record, _: _resized(record, record[5:-1]),
    "padded": lambda record, _: _resized(record, record[5:] + b"\0"),
    "another type": lambda record, _: [b"\x16" + record[1:]],
    "repeated": lambda record, _: [record, record],
    "replayed": lambda record, before: [before or record, record],
}
LOSSES: dict[str, Change] = {"left out": lambda record, _: []}
"""Noticed with the next record alone, or by the deadline."""


class Relay:
    """Listens on ``address``, forwards to ``target``, host:port. A context manager."""

    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._lock = threading.Lock()
        self._open: list[socket.socket] = []
        self.arm(False, -1, flipped(0.0))
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        self._listener.close()
        for one in self._open:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def arm(self, to_server: bool, number: int, change: Change) -> None:
        """Change the record of this number, counted from now in its direction, and no other."""
        with self._lock:
            self._armed = to_server, number, change
            self.counts = {True: 0, False: 0}
            self.applied = False

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(self._target)
                self._open += [client, server]
                for pair in ((client, server, True), (server, client, False)):
                    threading.Thread(target=self._forward, args=pair, daemon=True).start()

    def _forward(self, source: socket.socket, sink: socket.socket, to_server: bool) -> None:
        before = b""
        with suppress(OSError), source.makefile("rb") as stream:
            while len(head := stream.read(5)) == 5:
                record = head + stream.read(int.from_bytes(head[3:], "big"))
                for piece in self._changed(record, before, to_server):
                    sink.sendall(piece)
                before = record
        for one in (source, sink):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def _changed(self, record: Record, before: Record, to_server: bool) -> list[Record]:
        if record[0] != APPLICATION_DATA:
            return [record]
        with self._lock:
            direction, number, change = self._armed
            due = direction == to_server and self.counts[to_server] == number
            self.counts[to_server] += 1
            self.applied = self.applied or due
        return change(record, before) if due else [record]


class Relayed(Inside):
    """Both servers behind relays, ``relays[role]``; the model owner's own calls as well."""

    def __init__(self, folder: Path, network: Network) -> None:
        self.relays: dict[Any, Relay] = {}
        super().__init__(folder, network)

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        for relay in self.relays.values():
            relay.close()

    def _listen(self, role: Any, handlers: Any) -> Listening:
        listening = super()._listen(role, handlers)
        self.relays[role] = Relay(listening.address)
        return Listening(self.relays[role].address, listening.store, listening.server)
