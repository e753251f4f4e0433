"""What both serving commands do around their party: logs, metrics, warm-up, signals, draining."""

from __future__ import annotations

import json
import os
import resource
import signal
import threading
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Final, NoReturn, Protocol

from radiopaque import telemetry
from radiopaque.audit import AuditLog
from radiopaque.audit.observer import Auditor
from radiopaque.certificates import Identity, PeerIdentity
from radiopaque.config import CryptoProviderConfig, ModelOwnerConfig
from radiopaque.engine.warm_up import warm_up
from radiopaque.kernels.device import Device
from radiopaque.operations import tracing
from radiopaque.operations.endpoint import Endpoint
from radiopaque.operations.metering import Meter
from radiopaque.operations.metrics import Metrics
from radiopaque.operations.stock import Stock
from radiopaque.telemetry import get_logger
from radiopaque.transport.grpc_server import Handler, Server
from radiopaque.transport.observer import Observer, Observers

_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)
_FILES: Final = 1 << 16
"""Open at once at most; a server has 1,000 connections and some files a call."""

_log = get_logger(__name__)


class Party(Protocol):
    """A serving party, as the commands see it."""

    def handlers(self) -> Mapping[str, Handler]:
        """What serves each method."""
        ...

    def stock(self) -> Stock:
        """What is in its store now."""
        ...


def serve(
    identity: Identity,
    party: Party,
    settings: CryptoProviderConfig | ModelOwnerConfig,
    device: Device,
    *,
    as_json: bool,
) -> None:
    """Compile the kernels, listen, and block until SIGTERM or SIGINT; then drain."""
    telemetry.configure(as_json=as_json)
    _open_more_files()
    for number in _SIGNALS:
        signal.signal(number, _leave)
    _log.info("loading kernels; the first start of a version compiles them, 20 seconds and more")
    warm_up(device=device)
    # before anybody is told that the server is there, and may want it to end
    stopping = threading.Event()
    for number in _SIGNALS:
        signal.signal(number, lambda *_: stopping.set())
    limits = settings.limits
    with ExitStack() as opened:
        observer, where = _observe(identity, party, settings, opened)
        server = Server(
            identity,
            party.handlers(),
            concurrent_calls=limits.concurrent_calls,
            calls_per_peer=limits.calls_per_peer,
            deadline_seconds=limits.longest_call_seconds,
            observer=observer,
        )
        port = server.start(settings.listen)
        address = f"{settings.listen.rpartition(':')[0]}:{port}"
        if as_json:
            listening = {"event": "listening", "role": str(identity.role), "address": address}
            print(json.dumps({**listening, **where}), flush=True)
        else:
            print(f"{identity.role} {identity.name!r} listens on {address}", flush=True)
        stopping.wait()
        server.stop(settings.grace_seconds)


def _open_more_files() -> None:
    """Where the system lets this party open more than it starts with, which is often 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _FILES if hard == resource.RLIM_INFINITY else min(hard, _FILES)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def _leave(*_: object) -> NoReturn:
    """There is nothing to drain yet, and the compiler's callbacks would swallow an exception.

    Not left to the system: process 1 of a container ignores a signal without a handler.
    """
    os._exit(0)


def _observe(
    identity: Identity,
    party: Party,
    settings: CryptoProviderConfig | ModelOwnerConfig,
    opened: ExitStack,
) -> tuple[Observer, dict[str, str]]:
    """Metering, and metrics and traces where they are asked for; closed with ``opened``."""
    own = PeerIdentity(identity.role, identity.name)
    meter = Meter(settings.store)
    opened.callback(meter.close)
    audit = AuditLog(settings.store / "audit", str(own))
    opened.callback(audit.close)
    audit.write("party started")
    opened.callback(audit.write, "party stopped")
    auditor = Auditor(audit)
    opened.callback(auditor.close)
    observers: list[Observer] = [auditor, meter]
    where = {}
    if settings.metrics is not None:
        metrics = Metrics(identity, party.stock)
        endpoint = Endpoint(metrics.registry, settings.metrics, identity)
        opened.callback(endpoint.close)
        observers.append(metrics)
        where["metrics"] = endpoint.address
    if settings.traces is not None:
        opened.callback(tracing.start(settings.traces, own))
        observers.append(tracing.Tracing())
    return Observers(tuple(observers)), where
