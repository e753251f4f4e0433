"""Where time and bytes go, from the spans of the three parties.

Computing is a party's time at a gate less what it spent sending and waiting there; serialising is
encoding a message and handing it to gRPC, whose own threads then encrypt and send it beside the
computation. What a party waits for is the network and the other party's computing; the model
owner's wait for the image begins when it is ready, while the data owner still loads its material.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.errors import BenchmarkError
from benchmarks.record import Record
from radiopaque.certificates import Role
from radiopaque.gates import GateCost
from radiopaque.telemetry import Span

Spans = Mapping[Role, Sequence[Span]]
_PHASES = {
    "deal": "offline",
    "prepare": "offline",
    "load": "load",
    "answer": "online",
    "evaluate": "online",
}
_FORTH, _BACK = "data_owner_to_model_owner", "model_owner_to_data_owner"
_DEALT = "crypto_provider_to_model_owner"
_HEADER_BYTES = 64
"""More than any message has besides its payload."""
_CONTROL_BYTES = 1024
"""More than opening and closing a session takes."""


def in_window(spans: Spans, begin: int, end: int) -> dict[Role, list[Span]]:
    """Spans that begin in a window of time, nanoseconds."""
    return {
        role: [span for span in own if begin <= span.begin <= end] for role, own in spans.items()
    }


def gates(names: Sequence[str], spans: Spans, inferences: int) -> list[Record]:
    """Seconds of one inference by party, phase and kind of gate: the mean of all."""
    return [
        {
            "party": str(role).replace("-", "_"),
            "phase": phase,
            "gate": gate,
            **{f"{activity}_seconds": value / inferences for activity, value in seconds.items()},
        }
        for role, own in spans.items()
        for (phase, gate), seconds in sorted(_seconds(names, own).items())
    ]


def _seconds(
    names: Sequence[str], spans: Sequence[Span]
) -> dict[tuple[str, str], dict[str, float]]:
    found: dict[tuple[str, str], dict[str, float]] = defaultdict(
        lambda: {"compute": 0.0, "wait": 0.0, "serialise": 0.0}
    )
    for span in spans:
        gate = names[span.gate]
        seconds = (span.end - span.begin) / 1e9
        if span.activity in _PHASES:
            found[_PHASES[span.activity], gate]["compute"] += seconds
        elif span.activity in ("send", "wait") and span.kind not in ("START", "READY"):
            inner = found["online", gate]
            inner["serialise" if span.activity == "send" else "wait"] += seconds
            inner["compute"] -= seconds
    return dict(found)


def traffic(predicted: GateCost, spans: Spans, runs: Sequence[Mapping[str, Any]]) -> list[Record]:
    """Bytes, messages and payload of one inference, by phase and link, beside what was predicted.

    Bytes are the parties' counters at the transport; messages and payload are counted where the
    protocol hands frames over and takes them.
    """
    last, count = runs[-1], len(runs)
    online = [
        span
        for span in spans[Role.DATA_OWNER]
        if span.activity in ("send", "wait") and span.kind not in ("START", "READY")
    ]
    taken = [span for span in spans[Role.MODEL_OWNER] if span.activity == "accept"]
    forth = [span for span in online if span.activity == "send"]
    back = [span for span in online if span.activity == "wait"]
    counted = {
        ("online", _FORTH): (forth, predicted.to_model_owner_bytes),
        ("online", _BACK): (back, predicted.to_data_owner_bytes),
        ("offline", _DEALT): (
            [span for span in taken if span.kind == "CORRECTION"],
            predicted.correction_bytes,
        ),
        ("offline", _FORTH): (
            [span for span in taken if span.kind == "OFFLINE"],
            predicted.offline_bytes,
        ),
    }
    records = []
    for phase, by_link in (
        ("online", last["online_bytes"]),
        ("offline", last["offline"]["bytes"]),
    ):
        for link, size in by_link.items():
            own, payload = counted.get((phase, link), ([], 0))
            records.append(
                {
                    "phase": phase,
                    "link": link,
                    "bytes": size,
                    "messages": _mean(len(own), count),
                    "payload_bytes": _mean(sum(span.size for span in own), count),
                    "predicted_payload_bytes": payload,
                }
            )
    return records


def check(
    predicted: GateCost, records: Sequence[Record], runs: Sequence[Mapping[str, Any]]
) -> None:
    """Raise BenchmarkError unless what was counted is what was predicted, and adds up.

    Of every inference: its round trips. Of every link: the payload, to the byte, and that the bytes
    at the transport are the payload and headers. Where a connection broke only the first is due,
    because what the broken inference had sent was counted, too.
    """
    problems = [
        f"inference {number} took {run['round_trips']} round trips, not {predicted.round_trips}"
        for number, run in enumerate(runs)
        if run["round_trips"] != predicted.round_trips
    ]
    if not any(run["broken"] for run in runs):
        for record in records:
            link = f"{record['phase']}, {record['link']}"
            counted, due = record["payload_bytes"], record["predicted_payload_bytes"]
            if counted != due:
                problems.append(f"{link}: {counted} bytes of payload were counted, not {due}")
            besides = record["bytes"] - counted
            if not 0 <= besides <= _HEADER_BYTES * record["messages"] + _CONTROL_BYTES:
                problems.append(f"{link}: {besides} bytes are neither payload nor headers")
        sizes = {str((run["online_bytes"], run["offline"]["bytes"])) for run in runs}
        if len(sizes) > 1:
            problems.append(f"inferences differ in their bytes: {'; '.join(sorted(sizes))}")
    if problems:
        raise BenchmarkError(
            f"counted and predicted cost differ, so neither is to be trusted: {'; '.join(problems)}"
        )


def _mean(total: int, count: int) -> int | float:
    """Exact where it divides, as it does unless connections broke."""
    return total / count if total % count else total // count
