"""A serving party's metrics, in Prometheus' format.

Counters and histograms are added to as calls end. What lies in the ledger and on the disk is read
when somebody asks. Labels: methods, outcomes (``ok`` or the class of an error), states, models, and
the names of clinics, which the authority's certificates bound.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime
from time import time
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.core import GaugeMetricFamily, Metric

import radiopaque
from radiopaque.certificates import Identity, Role, Watch
from radiopaque.operations.stock import Stock
from radiopaque.transport.admission import Call
from radiopaque.transport.observer import Observer
from radiopaque.versions import PROTOCOL

_SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics(Observer):
    """All metrics of one server, in ``registry``."""

    def __init__(self, identity: Identity, stock: Callable[[], Stock]) -> None:
        watch = Watch(identity)
        self.registry = registry = CollectorRegistry()
        self._calls = Counter(
            "radiopaque_calls", "Calls that ended.", ["method", "outcome"], registry=registry
        )
        self._refused = Counter(
            "radiopaque_refused_calls",
            "Calls that were not admitted.",
            ["method", "outcome"],
            registry=registry,
        )
        self._under_way = Gauge(
            "radiopaque_calls_under_way", "Calls under way.", ["method"], registry=registry
        )
        self._seconds = Histogram(
            "radiopaque_call_seconds",
            "From a call's admission to its end.",
            ["method"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._bytes = Counter(
            "radiopaque_message_bytes",
            "Bytes of messages, without HTTP/2 and TLS.",
            ["method", "direction"],
            registry=registry,
        )
        self._inferences = Counter(
            "radiopaque_inferences",
            "Sessions that were started.",
            ["clinic", "model", "version"],
            registry=registry,
        )
        info = Gauge(
            "radiopaque_party",
            "1; what runs here is in the labels.",
            ["role", "name", "release", "protocol"],
            registry=registry,
        )
        info.labels(identity.role, identity.name, radiopaque.__version__, str(PROTOCOL)).set(1)
        registry.register(_Stored(stock, lambda: watch.identity().not_after))
        ProcessCollector(registry=registry)

    def begun(self, method: str, call: Call) -> None:
        self._under_way.labels(method).inc()

    def ended(self, method: str, call: Call, outcome: str) -> None:
        self._under_way.labels(method).dec()
        self._calls.labels(method, outcome).inc()
        self._seconds.labels(method).observe(max(0.0, time() - call.began))
        self._bytes.labels(method, "received").inc(call.counters.received_bytes)
        self._bytes.labels(method, "sent").inc(call.counters.sent_bytes)
        about = call.about
        if call.peer.role is Role.DATA_OWNER and method == "Infer" and "session" in about:
            self._inferences.labels(call.peer.name, about["model"], about["version"]).inc()

    def refused(self, method: str, outcome: str, peer: str) -> None:
        self._refused.labels(method, outcome).inc()


class _Stored:
    """Reads the store whenever metrics are asked for."""

    def __init__(self, stock: Callable[[], Stock], not_after: Callable[[], datetime]) -> None:
        self._stock = stock
        self._not_after = not_after

    def describe(self) -> list[Metric]:
        """None: registering does not read the store."""
        return []

    def collect(self) -> Iterator[Metric]:
        """The metrics as they are now."""
        stock, end = self._stock(), self._not_after().timestamp()
        sessions = GaugeMetricFamily(
            "radiopaque_sessions", "Sessions that are not over.", labels=["state"]
        )
        for state, count in stock.sessions.items():
            sessions.add_metric([state], count)
        yield sessions
        for name, text, value in (
            ("material_bytes", "Prepared material on disk.", stock.material_bytes),
            ("material_limit_bytes", "What it may take; 0: none is kept.", stock.material_limit),
            ("certificate_end_seconds", "End of the certificate, since 1970.", end),
        ):
            yield GaugeMetricFamily(f"radiopaque_{name}", text, value=value)
