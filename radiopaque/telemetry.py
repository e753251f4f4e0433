"""Logging that cannot print a secret: an event has a fixed text and fields from a closed list.

Keys, shares, masks and patient fields have no place in the list, so there is no way to log them by
habit. Identifiers are cut to eight hexadecimal digits. Of an unexpected exception only its type and
the places it passed are logged, because its message may quote a value.
"""

from __future__ import annotations

import json
import logging
import sys
import time
import traceback
from typing import Final, TextIO, TypedDict, Unpack, get_type_hints

from radiopaque.errors import RadiopaqueError

_FIELDS_ATTRIBUTE: Final = "radiopaque_fields"
_REDACTED: Final = "<redacted>"


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
    if expected in (int, str) and isinstance(value, expected):
        return value
    return _REDACTED


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
            shown = {name: render(name, value) for name, value in fields.items()}
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

    For an application's start; a library must leave logging to its user. Returns the handler.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(
        JsonFormatter()
        if as_json
        else logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s")
    )
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(logging.WARNING)
    for name in ("radiopaque", "crypto_provider", "model_owner", "data_owner"):
        logging.getLogger(name).setLevel(level)
    return handler
