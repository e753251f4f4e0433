"""One party as a process of its own: ``python -m tests.protocol.party_process ROLE FD FD``.

The two descriptors are sockets to the other parties, in the order of the party's function in
:mod:`tests.protocol.parties`. Standard input holds a JSON object with what this party knows, and
nothing else; the data owner prints its result. Frames cross as their bytes behind four bytes of
length.
"""

from __future__ import annotations

import json
import socket
import sys
from typing import Any

import numpy as np

from radiopaque.errors import ConnectionLostError, DeadlineError, MessageSizeError, RadiopaqueError
from radiopaque.graph.plan import Plan
from radiopaque.graph.weights import Weights
from radiopaque.ring import ring_dtype
from radiopaque.transport.channel import Channel, Counters
from radiopaque.wire.frames import MAX_MESSAGE_BYTES, Frame, decode, encode
from tests.protocol.parties import (
    DEADLINE_SECONDS,
    Public,
    run_crypto_provider,
    run_data_owner,
    run_model_owner,
)


class SocketChannel:
    """Frames over a stream socket."""

    def __init__(self, connection: socket.socket) -> None:
        self.counters = Counters()
        self._connection = connection
        self._connection.settimeout(DEADLINE_SECONDS)

    def send(self, frame: Frame) -> None:
        data = encode(frame)
        try:
            self._connection.sendall(len(data).to_bytes(4, "big") + data)
        except OSError as error:
            raise ConnectionLostError("the peer is gone") from error
        self.counters.count_sent(len(data))

    def receive(self, more: bool = False) -> Frame:
        size = int.from_bytes(self._read(4), "big")
        if size > MAX_MESSAGE_BYTES:
            raise MessageSizeError(f"{size} bytes announced")
        frame = decode(self._read(size))
        self.counters.count_received_frame(frame, size)
        return frame

    def close(self, error: RadiopaqueError | None = None) -> None:
        self._connection.close()

    def _read(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            try:
                piece = self._connection.recv(size - len(data))
            except TimeoutError as error:
                raise DeadlineError("the peer is silent") from error
            if not piece:
                raise ConnectionLostError("the peer is gone")
            data += piece
        return bytes(data)


def read_weights(plan: Plan, own: dict[str, Any]) -> Weights:
    """Weights and constants from JSON, signed integers by gate."""
    dtype = ring_dtype(plan.ring_bits)
    modulus = 1 << plan.ring_bits
    linear, constants = (
        {
            gate: np.array([v % modulus for v in own[part][str(gate)]], dtype).reshape(shape)
            for gate, shape in shapes
        }
        for part, shapes in (
            ("weights", plan.weight_shapes()),
            ("constants", plan.constant_shapes()),
        )
    )
    return Weights(linear, constants)


def main(role: str, first: Channel, second: Channel, own: dict[str, Any]) -> None:
    """Run one party to its end."""
    public = Public(*(bytes.fromhex(own[name]) for name in ("plan_bytes", "artefact", "session")))
    if role == "crypto-provider":
        run_crypto_provider(public, first, second)
    elif role == "model-owner":
        weights = read_weights(public.plan, own)
        keys = bytes.fromhex(own["key_b"]), bytes.fromhex(own["key_o"])
        run_model_owner(public, weights, *keys, first, second)
    elif role == "data-owner":
        step = public.plan.input_step
        images = np.array(own["image"], np.int64).reshape(step.shape) / float(step.scale)
        result = run_data_owner(public, images, bytes.fromhex(own["key_d"]), first, second)
        json.dump({"result": result}, sys.stdout)
    else:
        raise SystemExit(f"no such role: {role}")


if __name__ == "__main__":
    first, second = (SocketChannel(socket.socket(fileno=int(fd))) for fd in sys.argv[2:])
    main(sys.argv[1], first, second, json.load(sys.stdin))
