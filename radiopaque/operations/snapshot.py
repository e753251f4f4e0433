"""One reading of a party's metrics, as what a person or a program wants to know of it."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, field
from time import time
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from radiopaque.errors import PeerUnavailableError


@dataclass
class Method:
    """What a party did for one method since it was started.

    ``calls`` by outcome, ``refused`` by reason; ``buckets``: upper bound in seconds to how many
    calls took at most that long.
    """

    calls: dict[str, int] = field(default_factory=dict)
    refused: dict[str, int] = field(default_factory=dict)
    under_way: int = 0
    seconds: float = 0.0
    received_bytes: int = 0
    sent_bytes: int = 0
    buckets: dict[float, int] = field(default_factory=dict)

    def quantile(self, part: float) -> float | None:
        """Seconds within which this part of the calls ended, as near as the buckets tell.

        None before the first call; the largest bound where it lies beyond.
        """
        bounds = sorted(self.buckets.items())
        wanted = part * (bounds[-1][1] if bounds else 0)
        if not wanted:
            return None
        lower, below = 0.0, 0
        for bound, count in bounds:
            if count >= wanted:
                if math.isinf(bound):
                    return lower
                return lower + (bound - lower) * (wanted - below) / (count - below)
            lower, below = bound, count
        return lower

    def document(self) -> dict[str, Any]:
        """As JSON takes it."""
        quantiles = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
        return {
            "calls": self.calls,
            "refused": self.refused,
            "under_way": self.under_way,
            "seconds": {
                "sum": self.seconds,
                **{name: self.quantile(part) for name, part in quantiles.items()},
            },
            "received_bytes": self.received_bytes,
            "sent_bytes": self.sent_bytes,
        }


@dataclass
class Snapshot:
    """A party at the time ``seconds`` since 1970; ``inferences`` by clinic, model and version."""

    seconds: float
    party: dict[str, str] = field(default_factory=dict)
    sessions: dict[str, int] = field(default_factory=dict)
    inferences: dict[tuple[str, str, str], int] = field(default_factory=dict)
    methods: dict[str, Method] = field(default_factory=lambda: defaultdict(Method))
    values: dict[str, float] = field(default_factory=dict)

    def document(self) -> dict[str, Any]:
        """As JSON takes it."""
        values = self.values
        return {
            **self.party,
            "sessions": self.sessions,
            "material_bytes": int(values.get("radiopaque_material_bytes", 0)),
            "material_limit_bytes": int(values.get("radiopaque_material_limit_bytes", 0)),
            "certificate_seconds_left": round(
                values.get("radiopaque_certificate_end_seconds", self.seconds) - self.seconds
            ),
            "cpu_seconds": values.get("process_cpu_seconds_total"),
            "memory_bytes": values.get("process_resident_memory_bytes"),
            "open_files": values.get("process_open_fds"),
            "inferences": [
                {"clinic": clinic, "model": model, "version": version, "count": count}
                for (clinic, model, version), count in sorted(self.inferences.items())
            ],
            "methods": {name: one.document() for name, one in sorted(self.methods.items())},
        }


def parse(text: str) -> Snapshot:
    """Read what a party's endpoint answered.

    Raises PeerUnavailableError where it is not that of a party.
    """
    snapshot = Snapshot(time())
    try:
        samples = [one for family in text_string_to_metric_families(text) for one in family.samples]
        for name, labels, value, *_ in samples:
            _take(snapshot, name, labels, value)
    except (ValueError, KeyError) as error:
        raise PeerUnavailableError(
            "what answered there are not the metrics of a party; check the address"
        ) from error
    if not snapshot.party:
        raise PeerUnavailableError(
            "what answered there is no radiopaque party; check the address of `metrics`"
        )
    return snapshot


def _take(snapshot: Snapshot, name: str, labels: dict[str, str], value: float) -> None:
    if name == "radiopaque_party":
        snapshot.party = labels
    elif name == "radiopaque_sessions":
        snapshot.sessions[labels["state"]] = int(value)
    elif name == "radiopaque_inferences_total":
        key = labels["clinic"], labels["model"], labels["version"]
        snapshot.inferences[key] = int(value)
    elif "method" in labels:
        _take_of_method(snapshot.methods[labels["method"]], name, labels, value)
    elif not labels:
        snapshot.values[name] = value


def _take_of_method(method: Method, name: str, labels: dict[str, str], value: float) -> None:
    if name == "radiopaque_calls_total":
        method.calls[labels["outcome"]] = int(value)
    elif name == "radiopaque_refused_calls_total":
        method.refused[labels["outcome"]] = int(value)
    elif name == "radiopaque_calls_under_way":
        method.under_way = int(value)
    elif name == "radiopaque_call_seconds_sum":
        method.seconds = value
    elif name == "radiopaque_call_seconds_bucket":
        method.buckets[float(labels["le"])] = int(value)
    elif name == "radiopaque_message_bytes_total":
        if labels["direction"] == "received":
            method.received_bytes = int(value)
        else:
            method.sent_bytes = int(value)
