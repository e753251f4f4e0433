"""A relay in front of one link: it forwards TCP, late and no faster than the link would.

Each direction is a first-in-first-out link. A piece of n bytes that arrives at time t leaves when
the link is free, takes n / rate to go out, and arrives half a round-trip time later; all
connections share it. Reading stops while more than 0.1 s of the link's time is waiting, as a
router's queue would fill up. What is not emulated: packet loss, and a congestion window that
opens slowly; a link is as fast at its first byte as later on.

A relay is a process of its own, so that neither party's interpreter delays it, and uses blocking
threads, because the timers of event loops tick in milliseconds.

    python -m benchmarks.relay --to 127.0.0.1:7302 --rtt-ms 40 --mbit 100

prints {"address": ...} and ends when its standard input does.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import socket
import struct
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from math import inf

from benchmarks.network import Network
from benchmarks.processes import announced

_READ_BYTES = 1 << 18
_PIECE_SECONDS = 2e-4
"""Time on the link after which the next piece begins: how finely arrivals are spread."""
_QUEUE_SECONDS = 0.1
_PR_SET_TIMERSLACK = 29
_RESET = struct.pack("ii", 1, 0)
"""SO_LINGER that makes closing send a reset."""


@dataclass
class Direction:
    """One direction of the link: when it will be free, and how it delays."""

    delay: float
    bytes_per_second: float
    free: float = 0.0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def admit(self, size: int, now: float) -> float:
        """Put ``size`` bytes on the link at time ``now``; returns when the last has arrived."""
        with self.lock:
            self.free = max(self.free, now) + size / self.bytes_per_second
            return self.free + self.delay

    def wait_for_room(self) -> None:
        """Return when less than the queue's time is waiting."""
        waiting = self.free - time.monotonic()
        if waiting > _QUEUE_SECONDS:
            time.sleep(waiting - _QUEUE_SECONDS)

    @property
    def piece_bytes(self) -> int:
        """Bytes that arrive together."""
        if self.bytes_per_second == inf:
            return _READ_BYTES
        return max(1500, int(self.bytes_per_second * _PIECE_SECONDS))


class Pipe:
    """One direction of one connection: a thread that reads, a thread that delivers."""

    def __init__(
        self, link: Link, direction: Direction, source: socket.socket, sink: socket.socket
    ) -> None:
        self._link = link
        self._direction = direction
        self._source = source
        self._sink = sink
        self._due: deque[tuple[float, memoryview]] = deque()
        self._ready = threading.Semaphore(0)

    def start(self) -> None:
        for target in (self._read, self._deliver):
            threading.Thread(target=target, daemon=True).start()

    def _read(self) -> None:
        direction = self._direction
        with suppress(OSError):
            while data := self._source.recv(_READ_BYTES):
                now = time.monotonic()
                if self._link.broken_by(len(data)):
                    return
                for start in range(0, len(data), direction.piece_bytes):
                    piece = memoryview(data)[start : start + direction.piece_bytes]
                    self._due.append((direction.admit(len(piece), now), piece))
                    self._ready.release()
                direction.wait_for_room()
        self._due.append((direction.admit(0, time.monotonic()), memoryview(b"")))
        self._ready.release()

    def _deliver(self) -> None:
        with suppress(OSError):
            while True:
                self._ready.acquire()
                due, piece = self._due.popleft()
                wait = due - time.monotonic()
                if wait > 0:
                    time.sleep(wait)
                if not piece:
                    self._sink.shutdown(socket.SHUT_WR)
                    return
                self._sink.sendall(self._with_others_due(piece))

    def _with_others_due(self, piece: memoryview) -> bytes:
        """A piece and those behind it whose time has come as well."""
        pieces = [piece]
        now = time.monotonic()
        while self._due and self._due[0][0] <= now and self._due[0][1]:
            self._ready.acquire()
            pieces.append(self._due.popleft()[1])
        return b"".join(pieces)


class Link:
    """The relay of one link: listens, and pairs every connection with one to the target."""

    def __init__(self, target: tuple[str, int], network: Network) -> None:
        rate = network.mbit * 1e6 / 8
        self._target = target
        self._directions = [Direction(network.rtt_ms / 2e3, rate) for _ in range(2)]
        self._left = network.cut_mb * 1e6
        self._lock = threading.Lock()
        self._open: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._listener.getsockname()[1]}"

    def serve(self) -> None:
        """Accept connections for ever."""
        while True:
            near, _ = self._listener.accept()
            try:
                far = socket.create_connection(self._target)
            except OSError:
                near.close()
                continue
            with self._lock:
                self._open += [near, far]
            for end in (near, far):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            forth, back = self._directions
            Pipe(self, forth, near, far).start()
            Pipe(self, back, far, near).start()

    def broken_by(self, size: int) -> bool:
        """Count bytes; breaks every connection when the link has carried its due, once."""
        with self._lock:
            before, self._left = self._left, self._left - size
            if not before > 0 >= self._left:
                return False
            ends, self._open = self._open, []
        for end in ends:
            with suppress(OSError):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                end.shutdown(socket.SHUT_RDWR)
                end.close()
        return True


@contextmanager
def relayed(address: str, network: Network) -> Iterator[str]:
    """The address of a relay process in front of ``address``; the same one for loopback."""
    if not network.relayed:
        yield address
        return
    command = [sys.executable, "-m", "benchmarks.relay", "--to", address]
    command += ["--rtt-ms", str(network.rtt_ms), "--mbit", str(network.mbit)]
    command += ["--cut-mb", str(network.cut_mb)]
    with announced(command, f"the relay in front of {address}") as said:
        yield str(said["address"])


def main(words: Sequence[str] | None = None) -> None:
    """Relay one link until standard input ends."""
    parser = argparse.ArgumentParser(description="Emulate the network in front of one address.")
    parser.add_argument("--to", required=True, help="host:port to forward to")
    parser.add_argument("--rtt-ms", type=float, default=0.0, help="round-trip time added")
    parser.add_argument("--mbit", type=float, default=inf, help="10^6 bits a second each way")
    parser.add_argument("--cut-mb", type=float, default=inf, help="break connections after this")
    given = parser.parse_args(words)
    host, _, port = given.to.rpartition(":")
    # Sleeping threads are woken when they asked for it, not up to 50 us later.
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, 1, 0, 0, 0)
    link = Link((host, int(port)), Network("relayed", given.rtt_ms, given.mbit, given.cut_mb))
    threading.Thread(target=link.serve, daemon=True).start()
    print(json.dumps({"address": link.address}), flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
