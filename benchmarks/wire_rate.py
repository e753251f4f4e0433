"""How fast frames cross the real transport: gRPC with mutual TLS, two processes, loopback.

A frame is as large as the blocks that layers are cut into online.

    python -m benchmarks.wire_rate CERTIFICATE KEY CA

is the serving process: it takes frames until START, then sends as many back.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from benchmarks.processes import announced
from radiopaque.certificates import Role, init_directory, load_identity
from radiopaque.errors import ConnectionLostError, ProtocolError
from radiopaque.graph.bands import BLOCK_BYTES
from radiopaque.transport.channel import Channel
from radiopaque.transport.grpc_client import SERVICES, Peer
from radiopaque.transport.grpc_server import Call, Handler, Server
from radiopaque.wire.frames import SESSION_BYTES, Frame, Kind

_METHOD = "Infer"
_FRAMES = 32
_REPEATS = 20


def bytes_per_second(folder: Path) -> float:
    """Payload by the time that it takes to arrive, there and back; the fastest of several repeats.

    Certificates are made in ``folder``, which must not exist.
    """
    certificates = init_directory(folder)
    own, theirs = certificates[Role.DATA_OWNER], certificates[Role.MODEL_OWNER]
    identity = load_identity(own.certificate, own.key, own.ca, Role.DATA_OWNER)
    command = [sys.executable, "-m", "benchmarks.wire_rate"]
    command += [str(theirs.certificate), str(theirs.key), str(theirs.ca)]
    with announced(command, "the process that measures the transport") as said:
        address = f"127.0.0.1:{said['port']}"
        with Peer(Role.MODEL_OWNER, address, identity) as peer:
            channel = peer.open(_METHOD)
            fastest = min(_there_and_back(channel) for _ in range(_REPEATS))
            channel.close()
    return 2 * _FRAMES * BLOCK_BYTES / fastest


def _there_and_back(channel: Channel) -> float:
    payload = bytes(BLOCK_BYTES)
    began = time.perf_counter()
    for block in range(_FRAMES):
        channel.send(Frame(bytes(SESSION_BYTES), 0, Kind.SHARE, block, payload))
    channel.send(Frame(bytes(SESSION_BYTES), 0, Kind.START, 0, b""))
    for _ in range(_FRAMES):
        channel.receive()
    return time.perf_counter() - began


def _serve(channel: Channel, _: Call) -> None:
    """Take frames until START, send as many back; again until the other side has enough."""
    taken: list[Frame] = []
    while True:
        try:
            frame = channel.receive()
        except ConnectionLostError:
            return
        if frame.kind is not Kind.START:
            taken.append(frame)
            continue
        for one in taken:
            channel.send(one)
        taken.clear()


def _refuse(*_: object) -> None:
    raise ProtocolError("only the transport is measured here")


def main() -> None:
    """Serve until standard input ends."""
    certificate, key, ca = map(Path, sys.argv[1:])
    identity = load_identity(certificate, key, ca, Role.MODEL_OWNER)
    roles = frozenset({Role.DATA_OWNER})
    methods = SERVICES[Role.MODEL_OWNER].methods_by_name
    handlers = {name: Handler(_refuse, roles) for name in methods}
    server = Server(identity, {**handlers, _METHOD: Handler(_serve, roles)})
    print(json.dumps({"port": server.start("127.0.0.1:0")}), flush=True)
    sys.stdin.read()
    server.stop(0.0)


if __name__ == "__main__":
    main()
