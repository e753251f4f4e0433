"""Bytes as the content of a Flower message, and back, without trusting whoever packed them.

A payload travels as `ConfigRecord`s of at most `PART_BYTES` each, so that no object, and no HTTP
body, is larger than a part and a little. Flower sends the objects of a message one by one, each
under its SHA-256; its own unpacking would build any of its types, some of which (arrays that name
one chunk a million times) grow beyond all bounds. Here the parts are counted before any of them is
fetched, and only the three types of which a parcel consists are ever built.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.supercore.inflatable.inflatable_object import (
    InflatableObject,
    UnexpectedObjectContentError,
    get_object_children_ids_from_object_content,
    get_object_id,
)
from flwr.supercore.inflatable.inflatable_utils import validate_object_content

from training.errors import RefusedMessageError, TrainingError

PART_BYTES = 1 << 22
OBJECT_BYTES = PART_BYTES + (1 << 20)
"""The most that one object of a parcel takes, with names of all parts and headers."""
_KEY = "bytes"

Fetch = Callable[[str], bytes]
"""Returns the object of a name."""


def pack(payload: bytes) -> RecordDict:
    """Cut a payload into numbered parts."""
    starts = range(0, max(len(payload), 1), PART_BYTES)
    return RecordDict(
        {
            _name(place): ConfigRecord({_KEY: payload[start : start + PART_BYTES]})
            for place, start in enumerate(starts)
        }
    )


def unpack(sender: str, content: RecordDict, longest: int) -> bytes:
    """Join the parts of a payload of at most `longest` bytes.

    Raises:
        RefusedMessageError: it is not a parcel, or longer.
    """
    parts: list[bytes] = []
    left = longest
    for place in range(len(content)):
        record = content.get(_name(place))
        part = record.get(_KEY) if isinstance(record, ConfigRecord) and len(record) == 1 else None
        if not isinstance(part, bytes) or len(part) > min(left, PART_BYTES):
            raise RefusedMessageError(sender, f"its content is not {longest} bytes in parts")
        parts.append(part)
        left -= len(part)
    if not parts or any(len(part) != PART_BYTES for part in parts[:-1]):
        raise RefusedMessageError(sender, "its content is not cut into full parts")
    return b"".join(parts)


@dataclass(frozen=True, slots=True)
class Inventory:
    """The names of the objects of a message: itself, its one content, and the parts of that."""

    message: str
    content: str
    parts: tuple[str, ...]


def inventory(sender: str, message: str, fetch: Fetch, longest: int) -> Inventory:
    """Read the names of the objects of a message that can carry at most `longest` bytes.

    They are read from the objects themselves, each of which is named by its hash, and never from
    the tree that the sender announces: that one can have circles.

    Raises:
        RefusedMessageError: it is not a message with one content of parts; or there are too many.
    """
    most = max(1, -(-longest // PART_BYTES))
    content, *others = _children(sender, message, fetch) or [""]
    parts = _children(sender, content, fetch) if content and not others else []
    if not 1 <= len(parts) <= most:
        raise RefusedMessageError(
            sender, f"its objects are not a message with 1 to {most} parts ({longest} bytes)"
        )
    return Inventory(message, content, tuple(dict.fromkeys(parts)))


def inflate(sender: str, names: Inventory, fetch: Fetch) -> Message:
    """Fetch the objects of a message and build it; stops at the first that does not belong.

    Raises:
        RefusedMessageError: an object is too large, not what its name says, or of another type.
    """
    try:
        parts: dict[str, InflatableObject] = {}
        for name in names.parts:
            parts[name] = record = ConfigRecord.inflate(_checked(sender, name, fetch))
            if set(record) != {_KEY}:
                raise RefusedMessageError(sender, "a part holds something else than bytes")
        content = RecordDict.inflate(_checked(sender, names.content, fetch), parts)
        body = _checked(sender, names.message, fetch)
        message = Message.inflate(body, {names.content: content})
    except TrainingError:
        raise
    except Exception as error:  # whatever Flower's parsers raise: the bytes are at fault
        raise RefusedMessageError(sender, f"it cannot be read ({type(error).__name__})") from error
    if not message.has_content():
        raise RefusedMessageError(sender, "it has no content")
    message.metadata.__dict__["_message_id"] = names.message
    return message


def _children(sender: str, name: str, fetch: Fetch) -> list[str]:
    try:
        return list(get_object_children_ids_from_object_content(_checked(sender, name, fetch)))
    except (ValueError, UnexpectedObjectContentError) as error:
        raise RefusedMessageError(sender, "an object of its cannot be read") from error


def _checked(sender: str, name: str, fetch: Fetch) -> bytes:
    content = fetch(name)
    if len(content) > OBJECT_BYTES or get_object_id(content) != name:
        raise RefusedMessageError(sender, "an object is too large, or not the one announced")
    validate_object_content(content)
    return content


def _name(place: int) -> str:
    return f"{place:05d}"
