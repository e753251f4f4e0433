"""The frame, the unit of the protocol between two parties, and its strict encoding.

The encoding is the protobuf message ``radiopaque.v1.Frame``, byte for byte what the generated code
writes (tests compare the two). It is written by hand for two reasons: a received payload of a
mebibyte stays where it is instead of being copied twice, and exactly one encoding of each frame is
accepted. The generated parser skips unknown fields and lets the last of repeated fields win, which
would leave room for bytes that neither party accounts for.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from radiopaque.errors import MessageSizeError, MessageValueError

SESSION_BYTES: Final = 16
ARTEFACT_BYTES: Final = 16
KEY_BYTES: Final = 32
DIGEST_BYTES: Final = 32

MAX_MESSAGE_BYTES: Final = 4 << 20
"""Largest message of any kind; the transports refuse more before it is read into memory."""
MAX_PAYLOAD_BYTES: Final = MAX_MESSAGE_BYTES - 1024
"""Largest payload of one frame; senders cut what is longer than 1 MiB."""

_MAX_UINT32: Final = (1 << 32) - 1
_SESSION_TAG: Final = bytes([0x0A, SESSION_BYTES])  # field 1, length-delimited, 16 bytes follow
_GATE_TAG: Final = 0x10
_KIND_TAG: Final = 0x18
_BLOCK_TAG: Final = 0x20
_PAYLOAD_TAG: Final = 0x2A
_HEADER_START: Final = len(_SESSION_TAG) + SESSION_BYTES


class Kind(IntEnum):
    """What a frame carries; the numbers are those of ``radiopaque.v1.Kind``."""

    START = 1
    READY = 2
    CORRECTION = 3
    OFFLINE = 4
    IMAGE = 5
    TOP_BIT = 6
    OPENING = 7
    SELECTION = 8
    DECISION = 9
    RERANDOMISED = 10
    RESULT = 11
    DONE = 12
    SHARE = 13
    KEY = 14
    VERDICT = 15


CONTROL_KINDS: Final = frozenset({Kind.START, Kind.READY, Kind.DONE})
_KINDS: Final = {int(kind): kind for kind in Kind}


@dataclass(frozen=True, slots=True, repr=False)
class Frame:
    """One message of the protocol, or one block of a large one.

    ``session``: 16 bytes. ``gate``: number of the step in the plan. ``block``: from 0. ``payload``:
    packed as the gate's docstring says; a received one is a view of the message it came in.

    Raises MessageSizeError and MessageValueError for fields out of their range.
    """

    session: bytes
    gate: int
    kind: Kind
    block: int = 0
    payload: bytes | memoryview = b""

    def __post_init__(self) -> None:
        if len(self.session) != SESSION_BYTES:
            raise MessageSizeError(
                f"a session id has {SESSION_BYTES} bytes, this one has {len(self.session)}"
            )
        if self.kind not in _KINDS:
            raise MessageValueError(f"kind {self.kind} of a frame is none of 1 to {len(_KINDS)}")
        if not 0 <= self.gate <= _MAX_UINT32 or not 0 <= self.block <= _MAX_UINT32:
            raise MessageValueError(
                f"gate {self.gate} and block {self.block} of a frame must be in 0 to {_MAX_UINT32}"
            )
        length = payload_bytes(self.payload)
        if length > MAX_PAYLOAD_BYTES:
            raise MessageSizeError(
                f"payload of {length} bytes is longer than {MAX_PAYLOAD_BYTES}; "
                "the sender must cut it into blocks"
            )

    def __repr__(self) -> str:
        return (
            f"Frame(session={self.session.hex()[:8]}.., gate={self.gate}, kind={self.kind.name}, "
            f"block={self.block}, payload=<{payload_bytes(self.payload)} bytes>)"
        )


def payload_bytes(payload: bytes | memoryview) -> int:
    """Length in bytes, also of a view whose items are wider."""
    return payload.nbytes if isinstance(payload, memoryview) else len(payload)


def encoded_size(frame: Frame) -> int:
    """What ``len(encode(frame))`` is, without copying the payload."""
    return len(_header(frame)) + payload_bytes(frame.payload)


def encode(frame: Frame) -> bytes:
    """The frame as it is sent; the payload is copied, so its buffer may be used again."""
    return b"".join((_header(frame), frame.payload))


def decode(data: bytes | memoryview) -> Frame:
    """The inverse of :func:`encode`, for it alone: every other encoding is refused.

    Raises MessageSizeError (too long, cut off, wrong lengths) and MessageValueError (unknown,
    repeated, unordered or non-minimal fields, values out of range).
    """
    view = memoryview(data)
    if len(view) > MAX_MESSAGE_BYTES:
        raise MessageSizeError(
            f"frame of {len(view)} bytes is longer than {MAX_MESSAGE_BYTES}; the peer must cut it"
        )
    if len(view) < _HEADER_START:
        raise MessageSizeError(f"frame of {len(view)} bytes is shorter than {_HEADER_START}")
    if view[0] != _SESSION_TAG[0]:
        raise MessageValueError("a frame must begin with its session id")
    if view[1] != SESSION_BYTES:
        raise MessageSizeError(f"a session id has {SESSION_BYTES} bytes, this frame's has another")
    fields = {_GATE_TAG: 0, _KIND_TAG: 0, _BLOCK_TAG: 0}
    payload = view[:0]
    position, previous = _HEADER_START, _SESSION_TAG[0]
    while position < len(view):
        tag = view[position]
        if tag <= previous:
            raise MessageValueError(f"field tag {tag} of a frame is repeated or out of order")
        value, position = _read_varint(view, position + 1)
        if tag in fields:
            fields[tag] = value
        elif tag == _PAYLOAD_TAG:
            payload = view[position:]
            if len(payload) != value:
                raise MessageSizeError(
                    f"payload announced as {value} bytes, {len(payload)} bytes follow"
                )
            position = len(view)
        else:
            raise MessageValueError(f"field tag {tag} is not part of a frame")
        previous = tag
    kind = _KINDS.get(fields[_KIND_TAG])
    if kind is None:
        raise MessageValueError(
            f"kind {fields[_KIND_TAG]} of a frame is none of 1 to {len(_KINDS)}; "
            "do both parties run the same version?"
        )
    return Frame(bytes(view[2:_HEADER_START]), fields[_GATE_TAG], kind, fields[_BLOCK_TAG], payload)


def _header(frame: Frame) -> bytearray:
    header = bytearray(_SESSION_TAG)
    header += frame.session
    length = payload_bytes(frame.payload)
    for tag, value in (
        (_GATE_TAG, frame.gate),
        (_KIND_TAG, frame.kind),
        (_BLOCK_TAG, frame.block),
        (_PAYLOAD_TAG, length),
    ):
        if value:
            header.append(tag)
            while value > 0x7F:
                header.append(value & 0x7F | 0x80)
                value >>= 7
            header.append(value)
    return header


def _read_varint(view: memoryview, position: int) -> tuple[int, int]:
    """A minimal, non-zero varint of at most 32 bits, and the position behind it."""
    value = 0
    for shift in range(0, 35, 7):
        if position >= len(view):
            raise MessageSizeError("frame is cut off inside a field")
        byte = view[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if byte == 0 or value > _MAX_UINT32:
                raise MessageValueError("number in a frame is not minimal, zero or over 32 bits")
            return value, position
    raise MessageValueError("number in a frame has more than 32 bits")
