"""Strict decoding of the messages around the frames: requests, replies, chunks.

A protobuf parser skips unknown fields and accepts many encodings of one message. Here a message is
accepted in the encoding that this version writes, or not at all: nothing that is not understood
passes unnoticed, and the bytes that are counted are the bytes that were sent.
"""

from __future__ import annotations

from collections.abc import Iterator, MutableSequence
from typing import Final, TypeVar

from google.protobuf.message import DecodeError, Message

from radiopaque.errors import MessageSizeError, MessageValueError
from radiopaque.wire import frames
from radiopaque.wire.frames import MAX_MESSAGE_BYTES, Frame, Kind
from radiopaque.wire.v1 import services_pb2 as pb

MessageType = TypeVar("MessageType", bound=Message)

MAX_NAME: Final = 1000
"""Characters of each text in a message, as in a plan; they are names and versions of models."""


def decode(message_type: type[MessageType], data: bytes) -> MessageType:
    """Parse ``data``. Raises MessageSizeError (too long) and MessageValueError (anything else)."""
    name = message_type.DESCRIPTOR.name
    if len(data) > MAX_MESSAGE_BYTES:
        raise MessageSizeError(f"{name} of {len(data)} bytes is longer than {MAX_MESSAGE_BYTES}")
    try:
        message: MessageType = message_type.FromString(data)
    except DecodeError as error:
        raise MessageValueError(
            f"{len(data)} bytes are not a {name}; do both parties run the same version?"
        ) from error
    message.DiscardUnknownFields()
    # fields in another order take as many bytes: only the bytes themselves tell
    if message.SerializeToString(deterministic=True) != data:
        raise MessageValueError(
            f"{name} of {len(data)} bytes has fields unknown to this version, repeated ones, or "
            "fields in another order; do both parties run the same version?"
        )
    for text in _texts(message):
        if len(text) > MAX_NAME:
            raise MessageSizeError(
                f"a text in {name} has {len(text)} characters, {MAX_NAME} are the most"
            )
    return message


def _texts(message: Message) -> Iterator[str]:
    for _, value in message.ListFields():
        for part in value if isinstance(value, MutableSequence) else (value,):
            if isinstance(part, str):
                yield part
            elif isinstance(part, Message):
                yield from _texts(part)


def encode(message: Message) -> bytes:
    """Serialise a message that this party made. Raises MessageSizeError when it is too long."""
    if message.ByteSize() > MAX_MESSAGE_BYTES:
        raise MessageSizeError(
            f"{message.DESCRIPTOR.name} of {message.ByteSize()} bytes is longer than "
            f"{MAX_MESSAGE_BYTES} and cannot be sent"
        )
    data: bytes = message.SerializeToString()
    return data


def exact_bytes(value: bytes, length: int, what: str) -> bytes:
    """``value``, when it has ``length`` bytes. Raises MessageSizeError naming ``what``."""
    if len(value) != length:
        raise MessageSizeError(f"{what} has {len(value)} bytes, it must have {length}")
    return value


def session_id(value: bytes) -> bytes:
    return exact_bytes(value, frames.SESSION_BYTES, "session id")


def artefact_id(value: bytes) -> bytes:
    return exact_bytes(value, frames.ARTEFACT_BYTES, "artefact id")


def epoch(value: bytes) -> bytes:
    return exact_bytes(value, frames.SESSION_BYTES, "epoch of a ledger")


def key(value: bytes, what: str) -> bytes:
    return exact_bytes(value, frames.KEY_BYTES, what)


def digest(value: bytes, what: str) -> bytes:
    return exact_bytes(value, frames.DIGEST_BYTES, what)


def from_frame(frame: Frame) -> pb.Frame:
    """A frame as a part of another message."""
    return pb.Frame(
        session=frame.session,
        gate=frame.gate,
        kind=pb.Kind.Name(frame.kind),
        block=frame.block,
        payload=bytes(frame.payload),
    )


def to_frame(message: pb.Frame) -> Frame:
    """A frame that was a part of a strictly decoded message.

    Raises MessageSizeError and MessageValueError for fields out of their range.
    """
    try:
        kind = Kind(message.kind)
    except ValueError as error:
        raise MessageValueError(
            f"kind {message.kind} of a frame is none of 1 to {len(Kind)}; "
            "do both parties run the same version?"
        ) from error
    return Frame(message.session, message.gate, kind, message.block, message.payload)
