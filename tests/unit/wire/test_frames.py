"""The strict frame encoding against the generated code, and everything that it must refuse."""

from __future__ import annotations

import pytest
from google.protobuf.internal.encoder import _VarintBytes  # type: ignore[attr-defined]
from hypothesis import given
from hypothesis import strategies as st

from radiopaque.errors import MessageSizeError, MessageValueError
from radiopaque.wire import frames
from radiopaque.wire.frames import Frame, Kind
from radiopaque.wire.v1 import services_pb2 as pb

SESSION = bytes(range(16))
uint32 = st.one_of(st.integers(0, 300), st.integers(0, 2**32 - 1))


def test_kinds_are_those_of_the_proto() -> None:
    listed = {name.removeprefix("KIND_"): number for name, number in pb.Kind.items() if number}
    assert listed == {kind.name: kind.value for kind in Kind}


@given(st.binary(min_size=16, max_size=16), uint32, st.sampled_from(Kind), uint32, st.binary())
def test_encoding_is_that_of_the_generated_code(
    session: bytes, gate: int, kind: Kind, block: int, payload: bytes
) -> None:
    frame = Frame(session, gate, kind, block, payload)
    named = pb.Kind.Name(int(kind))
    message = pb.Frame(session=session, gate=gate, kind=named, block=block, payload=payload)
    encoded = frames.encode(frame)
    assert encoded == message.SerializeToString()
    assert frames.encoded_size(frame) == message.ByteSize()
    assert frames.decode(encoded) == frame
    assert type(frames.decode(encoded).kind) is Kind


def test_a_view_of_wider_items_is_sent_as_its_bytes() -> None:
    view = memoryview(bytes(8)).cast("I")
    frame = Frame(SESSION, 1, Kind.IMAGE, 0, view)
    assert frames.encoded_size(frame) == len(frames.encode(frame))
    assert bytes(frames.decode(frames.encode(frame)).payload) == bytes(8)


def test_received_payload_is_not_copied() -> None:
    data = frames.encode(Frame(SESSION, 1, Kind.IMAGE, 0, bytes(1000)))
    payload = frames.decode(data).payload
    assert isinstance(payload, memoryview)
    assert payload.obj is data


def test_repr_shows_sizes_only() -> None:
    shown = repr(Frame(SESSION, 7, Kind.RESULT, 2, b"secret payload"))
    assert "secret" not in shown
    assert "14 bytes" in shown
    assert "gate=7" in shown


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"session": bytes(15)}, MessageSizeError),
        ({"session": bytes(17)}, MessageSizeError),
        ({"gate": -1}, MessageValueError),
        ({"gate": 2**32}, MessageValueError),
        ({"block": 2**32}, MessageValueError),
        ({"kind": 0}, MessageValueError),
        ({"kind": 16}, MessageValueError),
        ({"payload": bytes(frames.MAX_PAYLOAD_BYTES + 1)}, MessageSizeError),
    ],
)
def test_bad_fields_are_refused_before_they_are_sent(
    fields: dict[str, object], error: type[Exception]
) -> None:
    good: dict[str, object] = {
        "session": SESSION,
        "gate": 1,
        "kind": Kind.IMAGE,
        "block": 0,
        "payload": b"",
    }
    Frame(**good)  # type: ignore[arg-type]
    with pytest.raises(error):
        Frame(**(good | fields))  # type: ignore[arg-type]


def test_largest_payload_fits_a_message() -> None:
    frame = Frame(SESSION, 2**32 - 1, Kind.DONE, 2**32 - 1, bytes(frames.MAX_PAYLOAD_BYTES))
    assert len(frames.encode(frame)) <= frames.MAX_MESSAGE_BYTES


HEAD = b"\x0a\x10" + SESSION
GOOD = HEAD + b"\x10\x01\x18\x05\x20\x02\x2a\x03abc"

BAD = {
    "empty": (b"", MessageSizeError),
    "no session": (b"\x10\x01\x18\x05\x2a\x10" + bytes(16), MessageValueError),
    "short session": (b"\x0a\x0f" + SESSION[:15] + b"\x18\x05\x20\x02", MessageSizeError),
    "long session": (b"\x0a\x11" + SESSION + b"\x00\x18\x05", MessageSizeError),
    "no kind": (HEAD + b"\x10\x01", MessageValueError),
    "unknown kind": (HEAD + b"\x18\x10", MessageValueError),
    "repeated kind": (HEAD + b"\x18\x05\x18\x05", MessageValueError),
    "unordered": (HEAD + b"\x18\x05\x10\x01", MessageValueError),
    "unknown field": (HEAD + b"\x18\x05\x30\x01", MessageValueError),
    "unknown field behind the payload": (GOOD + b"\x30\x01", MessageSizeError),
    "repeated session": (HEAD + HEAD, MessageValueError),
    "explicit zero": (HEAD + b"\x10\x00\x18\x05", MessageValueError),
    "padded number": (HEAD + b"\x10\x81\x00\x18\x05", MessageValueError),
    "33-bit number": (HEAD + b"\x10\x80\x80\x80\x80\x10\x18\x05", MessageValueError),
    "endless number": (HEAD + b"\x10" + b"\x80" * 9 + b"\x01\x18\x05", MessageValueError),
    "cut off in a number": (HEAD + b"\x10\x80", MessageSizeError),
    "cut off behind a tag": (HEAD + b"\x10", MessageSizeError),
    "payload too short": (GOOD[:-1], MessageSizeError),
    "payload too long": (GOOD + b"d", MessageSizeError),
    "too large": (HEAD + b"\x18\x05" + bytes(frames.MAX_MESSAGE_BYTES), MessageSizeError),
    "payload over the limit": (
        HEAD
        + b"\x18\x05\x2a"
        + _VarintBytes(frames.MAX_PAYLOAD_BYTES + 1)
        + bytes(frames.MAX_PAYLOAD_BYTES + 1),
        MessageSizeError,
    ),
}


def test_the_good_frame_is_read() -> None:
    assert frames.decode(GOOD) == Frame(SESSION, 1, Kind.IMAGE, 2, b"abc")


@pytest.mark.parametrize("name", BAD)
def test_every_other_encoding_is_refused(name: str) -> None:
    data, error = BAD[name]
    with pytest.raises(error) as caught:
        frames.decode(data)
    assert type(caught.value) is error


@given(st.integers(0, len(GOOD) - 1), st.integers(0, 255))
def test_accepted_means_canonical(position: int, byte: int) -> None:
    data = GOOD[:position] + bytes([byte]) + GOOD[position + 1 :]
    try:
        frame = frames.decode(data)
    except (MessageSizeError, MessageValueError):
        return
    assert frames.encode(frame) == data
