"""Logging that cannot print a secret: an event has a fixed text and fields from a closed list.

Keys, shares, masks and patient fields have no place in the list, so there is no way to log them by
habit. Identifiers are cut to eight hexadecimal digits. Of an unexpected exception only its type and
the places it passed are logged, because its message may quote a value.

Spans say where time goes: what a party did at which gate, from when to when. Their fields are
names, sizes and times of the public plan. They are off unless a profiler asks for them.

Traces are for an operator's tracing system: one a call or a session, with an event's fields. They
are off unless the configuration asks for them.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Final, Literal, NamedTuple, TextIO, TypedDict, Unpack, get_type_hints

from radiopaque.errors import RadiopaqueError

_FIELDS_ATTRIBUTE: Final = "radiopaque_fields"
_REDACTED: Final = "<redacted>"
_MAX_TEXT: Final = 2000
"""Characters of a field: errors may quote what a peer sent."""


class Fields(TypedDict, total=False):
    """All that an event may say besides its text."""

    address: str
    artefact: bytes
    count: int
    deadline_seconds: float
    error: str
    gate: int
    kind: str
    messages: int
    method: str
    model: str
    model_version: str
    outcome: str
    path: str
    peer: str
    reference: str
    received_bytes: int
    role: str
    round_trips: int
    seconds: float
    sent_bytes: int
    session: bytes
    state: str
    where: str


_TYPES: Final[dict[str, type]] = get_type_hints(Fields)


def render(name: str, value: object) -> object:
    """A field's value as it is printed; what is not of the listed type is not printed at all."""
    expected = _TYPES.get(name)
    if expected is bytes and isinstance(value, bytes):
        return value[:4].hex()
    if expected is float and isinstance(value, int | float):
        return round(float(value), 6)
    if expected is str and isinstance(value, str):
        return value[:_MAX_TEXT]
    if expected is int and isinstance(value, int):
        return value
    return _REDACTED


def rendered(fields: Fields) -> dict[str, object]:
    """All of an event's fields as they are printed."""
    return {name: render(name, value) for name, value in fields.items()}


class EventLog:
    """A logger for events with fields; ``logging`` does the rest."""

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(name)

    def debug(self, event: str, **fields: Unpack[Fields]) -> None:
        self._emit(logging.DEBUG, event, fields)

    def info(self, event: str, **fields: Unpack[Fields]) -> None:
        self._emit(logging.INFO, event, fields)

    def warning(self, event: str, **fields: Unpack[Fields]) -> None:
        self._emit(logging.WARNING, event, fields)

    def failure(self, event: str, exception: BaseException, **fields: Unpack[Fields]) -> None:
        """An exception: its type and the places it passed.

        The message is logged of expected failures alone, which never carry a secret; without it an
        operator would not learn which file is damaged.
        """
        places = [
            f"{frame.filename}:{frame.lineno} {frame.name}"
            for frame in traceback.extract_tb(exception.__traceback__, limit=-8)
        ]
        name = type(exception).__name__
        fields["error"] = f"{name}: {exception}" if isinstance(exception, RadiopaqueError) else name
        fields["where"] = " < ".join(reversed(places))
        self._emit(logging.ERROR, event, fields)

    def _emit(self, level: int, event: str, fields: Fields) -> None:
        if self._logger.isEnabledFor(level):
            shown = rendered(fields)
            text = " ".join([event, *(f"{name}={value}" for name, value in shown.items())])
            self._logger.log(
                level, "%s", text, extra={_FIELDS_ATTRIBUTE: {"event": event, **shown}}
            )


def get_logger(name: str) -> EventLog:
    return EventLog(name)


class JsonFormatter(logging.Formatter):
    """One JSON object a line, for log collectors."""

    def format(self, record: logging.LogRecord) -> str:
        fields = getattr(record, _FIELDS_ATTRIBUTE, {"event": record.getMessage()})
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        return json.dumps(
            {
                "time": f"{stamp}.{int(record.msecs):03d}Z",
                "level": record.levelname,
                "logger": record.name,
                **fields,
            }
        )


def configure(
    level: str = "INFO", *, as_json: bool = False, stream: TextIO | None = None
) -> logging.Handler:
    """Send radiopaque's events, and warnings of the libraries, to ``stream`` (default: stderr).

    As JSON where that is asked for, or where the stream is no terminal: a collector reads it then.
    For an application's start; a library must leave logging to its user. Returns the handler.
    """
    stream = stream or sys.stderr
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        JsonFormatter()
        if as_json or not stream.isatty()
        else logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s")
    )
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(logging.WARNING)
    for name in ("radiopaque", "crypto_provider", "model_owner", "data_owner"):
        logging.getLogger(name).setLevel(level)
    return handler


Activity = Literal["deal", "prepare", "load", "answer", "evaluate", "send", "wait", "accept"]
"""A party's part of a gate, or one frame: handed over, waited for, or taken offline."""


class Span(NamedTuple):
    """Some time of a session. ``kind`` and ``size`` (payload bytes) are those of a frame.

    ``begin`` and ``end`` are nanoseconds of the system's monotonic clock, which all processes of a
    machine share. Spans of one thread nest: sending and waiting lie within a gate's.
    """

    activity: Activity
    gate: int
    kind: str
    size: int
    begin: int
    end: int
    thread: int


class Recorder:
    """Collects the spans of this process in memory; off until :meth:`start`."""

    def __init__(self) -> None:
        self._spans: list[Span] | None = None

    def start(self) -> list[Span]:
        """Record from now on, into a new list, which grows."""
        self._spans = []
        return self._spans

    def stop(self) -> None:
        """Record no more."""
        self._spans = None

    def span(
        self, activity: Activity, gate: int, kind: str = "", size: int = 0
    ) -> AbstractContextManager[None]:
        """Record the block as a span, if recording is on."""
        if self._spans is None:
            return _UNRECORDED
        return _Recorded(self._spans, activity, gate, kind, size)


class _Recorded:
    __slots__ = ("_begin", "_spans", "_what")

    def __init__(
        self, spans: list[Span], activity: Activity, gate: int, kind: str, size: int
    ) -> None:
        self._spans = spans
        self._what = (activity, gate, kind, size)

    def __enter__(self) -> None:
        self._begin = time.perf_counter_ns()

    def __exit__(self, *_: object) -> None:
        end = time.perf_counter_ns()
        self._spans.append(Span(*self._what, self._begin, end, threading.get_ident()))


_UNRECORDED: Final = nullcontext()
recorder: Final = Recorder()
"""The process's own; like its loggers, there is one."""


Sink = Callable[[str, int, int, dict[str, object]], None]
"""Takes a finished trace: name, begin and end (nanoseconds since 1970), fields."""


class Traces:
    """Hands finished traces to one sink; does nothing until :meth:`start`."""

    def __init__(self) -> None:
        self._sink: Sink | None = None

    def start(self, sink: Sink | None) -> None:
        """Send traces to ``sink`` from now on, or nowhere."""
        self._sink = sink

    def add(self, name: str, begin: int, end: int, **fields: Unpack[Fields]) -> None:
        """One trace; fields are rendered as in the log."""
        if self._sink is not None:
            self._sink(name, begin, end, rendered(fields))

    @contextmanager
    def span(self, name: str, **fields: Unpack[Fields]) -> Iterator[None]:
        """A trace of the block; its outcome is ``ok`` or the class of what it raised."""
        begin = time.time_ns()
        fields["outcome"] = "ok"
        try:
            yield
        except BaseException as error:
            fields["outcome"] = type(error).__name__
            raise
        finally:
            self.add(name, begin, time.time_ns(), **fields)


traces: Final = Traces()
"""The process's own, as with the recorder."""
