"""What both serving commands do around their party: logging, warm-up, signals, draining."""

from __future__ import annotations

import json
import signal
import sys
import threading
from collections.abc import Mapping

from radiopaque import telemetry
from radiopaque.certificates import Identity
from radiopaque.config import CallLimits
from radiopaque.engine.warm_up import warm_up
from radiopaque.kernels.device import Device
from radiopaque.transport.grpc_server import Handler, Server


def serve(
    identity: Identity,
    handlers: Mapping[str, Handler],
    listen: str,
    *,
    limits: CallLimits,
    grace_seconds: float,
    device: Device,
    as_json: bool,
) -> None:
    """Compile the kernels, listen, and block until SIGTERM or SIGINT; then drain."""
    telemetry.configure(as_json=as_json or not sys.stderr.isatty())
    warm_up(device=device)
    # before anybody is told that the server is there, and may want it to end
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    server = Server(
        identity,
        handlers,
        concurrent_calls=limits.concurrent_calls,
        calls_per_peer=limits.calls_per_peer,
        deadline_seconds=limits.longest_call_seconds,
    )
    port = server.start(listen)
    address = f"{listen.rpartition(':')[0]}:{port}"
    if as_json:
        print(
            json.dumps({"event": "listening", "role": str(identity.role), "address": address}),
            flush=True,
        )
    else:
        print(f"{identity.role} {identity.name!r} listens on {address}", flush=True)
    stopping.wait()
    server.stop(grace_seconds)
