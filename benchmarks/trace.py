"""One inference of all three parties on one time line, for chrome://tracing and ui.perfetto.dev.

All parties run on one machine and read one clock, so nothing needs aligning.
Format: "Trace Event Format", Google, 2016: complete events (X), metadata (M), flows (s, f).
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from radiopaque.certificates import Role
from radiopaque.telemetry import Span

Event = dict[str, Any]
_ROLES = (Role.DATA_OWNER, Role.MODEL_OWNER, Role.CRYPTO_PROVIDER)
_FRAMES = ("send", "wait", "accept")


@dataclass(frozen=True)
class Timeline:
    """The spans of one inference, and when its parts began: material, inference, end (ns)."""

    gates: Sequence[str] = field(repr=False)
    spans: Mapping[Role, Sequence[Span]] = field(repr=False)
    times: Sequence[int]

    def save(self, path: Path) -> None:
        """Write the trace."""
        path.parent.mkdir(parents=True, exist_ok=True)
        content = {"displayTimeUnit": "ms", "traceEvents": list(self.events())}
        path.write_text(json.dumps(content, separators=(",", ":")))

    def events(self) -> Iterator[Event]:
        """The trace's events; times are microseconds from the beginning of the session."""
        for number, role in enumerate(_ROLES, start=1):
            yield _named("process_name", number, 0, str(role))
            yield {**_named("process_sort_index", number, 0, ""), "args": {"sort_index": number}}
            threads: dict[int, int] = {}
            for span in self.spans[role]:
                if span.thread not in threads:
                    threads[span.thread] = len(threads) + 1
                    yield _named("thread_name", number, len(threads), f"thread {len(threads)}")
                yield self._event(span, number, threads[span.thread])
            yield from self._parts(number) if role is Role.DATA_OWNER else ()
        yield from self._flows()

    def _event(self, span: Span, process: int, thread: int) -> Event:
        gate = f"{self.gates[span.gate]} {span.gate}"
        frame = span.activity in _FRAMES
        arguments: Event = {"gate": gate, "activity": span.activity}
        if frame:
            arguments |= {"message": span.kind, "payload bytes": span.size}
        return {
            "ph": "X",
            "name": f"{span.activity} {span.kind}" if frame else gate,
            "cat": span.activity,
            "pid": process,
            "tid": thread,
            "ts": self._microseconds(span.begin),
            "dur": (span.end - span.begin) / 1e3,
            "args": arguments,
        }

    def _parts(self, process: int) -> Iterator[Event]:
        yield _named("thread_name", process, 0, "session")
        for name, begin, end in zip(
            ("offline", "load and online"), self.times, self.times[1:], strict=False
        ):
            yield {
                "ph": "X",
                "name": name,
                "cat": "session",
                "pid": process,
                "tid": 0,
                "ts": self._microseconds(begin),
                "dur": (end - begin) / 1e3,
            }

    def _flows(self) -> Iterator[Event]:
        """Arrows from where a message was sent to where it was waited for."""
        sent: dict[tuple[int, str], list[tuple[int, Span, int]]] = defaultdict(list)
        waited: dict[tuple[int, str], list[tuple[int, Span, int]]] = defaultdict(list)
        for number, role in enumerate(_ROLES, start=1):
            threads: dict[int, int] = {}
            for span in self.spans[role]:
                thread = threads.setdefault(span.thread, len(threads) + 1)
                if span.activity in ("send", "wait"):
                    ends = sent if span.activity == "send" else waited
                    ends[span.gate, span.kind].append((number, span, thread))
        arrow = 0
        for message, beginnings in sent.items():
            for tail, head in zip(beginnings, waited[message], strict=False):
                arrow += 1
                # both ends lie within the spans that the arrow is to join
                for phase, (process, _, thread), time in (
                    ("s", tail, tail[1].begin),
                    ("f", head, head[1].end - 1),
                ):
                    yield {
                        "ph": phase,
                        "bp": "e",
                        "id": arrow,
                        "name": message[1],
                        "cat": "message",
                        "pid": process,
                        "tid": thread,
                        "ts": self._microseconds(time),
                    }

    def _microseconds(self, nanoseconds: int) -> float:
        return (nanoseconds - self.times[0]) / 1e3


def _named(kind: str, process: int, thread: int, name: str) -> Event:
    return {"ph": "M", "name": kind, "pid": process, "tid": thread, "args": {"name": name}}
