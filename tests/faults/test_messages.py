"""What a clinic may send and must not: every bad message ends its own session and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import pytest

from radiopaque.errors import (
    MessageOrderError,
    MessageSizeError,
    MessageValueError,
    ProtocolError,
    RadiopaqueError,
    SessionStateError,
    UnknownSessionError,
)
from radiopaque.graph.plan import Relu
from radiopaque.ledger import Mark
from radiopaque.prg import new_id
from radiopaque.wire import frames, messages
from radiopaque.wire.frames import MAX_MESSAGE_BYTES, MAX_PAYLOAD_BYTES, Frame, Kind
from radiopaque.wire.v1 import services_pb2 as pb
from tests.e2e.parties import Deployment, until
from tests.faults.hand import EPOCH, SECONDS, Hand, Tampered, raw_call, raw_infer, raw_upload

MARK = Mark(EPOCH).encode()


def changed(frame: Frame, **fields: object) -> Frame:
    values = {name: getattr(frame, name) for name in ("session", "gate", "kind", "block")}
    values["payload"] = bytes(frame.payload)
    return Frame(**(values | fields))  # type: ignore[arg-type]


def shortened(frame: Frame) -> Frame:
    return changed(frame, payload=bytes(frame.payload)[:-1])


def lengthened(frame: Frame) -> Frame:
    return changed(frame, payload=bytes(frame.payload) + b"\0")


def other_gate(frame: Frame) -> Frame:
    return changed(frame, gate=frame.gate + 1)


def other_block(frame: Frame) -> Frame:
    return changed(frame, block=frame.block + 1)


def other_session(frame: Frame) -> Frame:
    return changed(frame, session=new_id())


def no_such_gate(frame: Frame) -> Frame:
    return changed(frame, gate=4_000_000_000)


def largest(frame: Frame) -> Frame:
    return changed(frame, payload=bytes(MAX_PAYLOAD_BYTES))


ONE_FRAME: dict[str, tuple[Callable[[Frame], Frame], type[RadiopaqueError]]] = {
    "too short": (shortened, MessageSizeError),
    "empty": (lambda frame: changed(frame, payload=b""), MessageSizeError),
    "too long": (lengthened, MessageSizeError),
    "as long as may be": (largest, MessageSizeError),
    "of another gate": (other_gate, MessageOrderError),
    "of a gate that is not in the plan": (no_such_gate, MessageOrderError),
    "of another block": (other_block, MessageOrderError),
    "of another session": (other_session, MessageOrderError),
    "of another kind": (lambda frame: changed(frame, kind=Kind.CORRECTION), MessageOrderError),
    "a second START": (
        lambda frame: Frame(frame.session, 0, Kind.START),
        MessageOrderError,
    ),
}


def assert_lost(deployment: Deployment, hand: Hand) -> None:
    """The session is burnt and its files are gone; neither phase accepts it again.

    A refusal may call dealing off before the crypto provider hears of it, where the reservation
    then waits until it expires.
    """
    deployment.assert_burnt(deployment.owner, hand.session)
    until(lambda: deployment.provider.sessions()[hand.session][0] in ("BURNT", "RESERVED"))
    with pytest.raises(SessionStateError, match=r"is BURNT .* prepare another"):
        hand.start()
    with pytest.raises(SessionStateError, match=r"is known .* already"):
        hand.upload()


@pytest.mark.parametrize("fault", ONE_FRAME)
def test_a_bad_frame_of_the_offline_message(serving: Deployment, hand: Hand, fault: str) -> None:
    change, expected = ONE_FRAME[fault]
    first, *rest = hand.frames
    hand.reserve()
    with pytest.raises(RadiopaqueError) as caught:
        hand.upload(hand.requests([first, change(rest[0]), *rest[1:]]))
    assert type(caught.value) is expected, caught.value
    assert_lost(serving, hand)


OFFLINE_ORDERS: dict[str, Callable[[list[Frame]], list[Frame]]] = {
    "a frame repeated": lambda good: [good[0], *good],
    "a frame left out": lambda good: good[1:],
    "the last frame left out": lambda good: good[:-1],
    "two frames exchanged": lambda good: [good[1], good[0], *good[2:]],
    "one frame more": lambda good: [*good, good[-1]],
    "no frame at all": lambda good: [],
}


@pytest.mark.parametrize("fault", OFFLINE_ORDERS)
def test_frames_of_the_offline_message_out_of_order(
    serving: Deployment, hand: Hand, fault: str
) -> None:
    hand.reserve()
    with pytest.raises(MessageOrderError):
        hand.upload(hand.requests(OFFLINE_ORDERS[fault](hand.frames)))
    assert_lost(serving, hand)


def test_an_offline_message_without_its_header(serving: Deployment, hand: Hand) -> None:
    hand.reserve()
    _, *without = hand.requests()
    for parts in (without, []):
        with pytest.raises(MessageOrderError, match="begins with its header"):
            hand.upload(parts)
    # nothing was begun, so the session is as good as before
    hand.upload()
    hand.infer()


def test_an_offline_message_with_two_headers(serving: Deployment, hand: Hand) -> None:
    hand.reserve()
    with pytest.raises(MessageOrderError, match="only frames follow the header"):
        hand.upload([hand.header(), *hand.requests()])
    assert_lost(serving, hand)


def only(
    kind: Kind, change: Callable[[Frame], Iterable[Frame]]
) -> Callable[[Frame], Iterable[Frame]]:
    """Changes the first frame of a kind and no other."""
    done: list[Frame] = []

    def apply(frame: Frame) -> Iterable[Frame]:
        if frame.kind is not kind or done:
            return [frame]
        done.append(frame)
        return change(frame)

    return apply


@pytest.mark.parametrize("kind", [Kind.IMAGE, Kind.SELECTION, Kind.RERANDOMISED])
@pytest.mark.parametrize("fault", ONE_FRAME)
def test_a_bad_online_frame(serving: Deployment, hand: Hand, fault: str, kind: Kind) -> None:
    change, expected = ONE_FRAME[fault]
    channel = Tampered(hand.prepare().start(), only(kind, lambda frame: [change(frame)]))
    with pytest.raises(RadiopaqueError) as caught:
        hand.run(channel)
    assert type(caught.value) is expected, caught.value
    assert_lost(serving, hand)


@pytest.mark.parametrize("kind", [Kind.IMAGE, Kind.SELECTION, Kind.RERANDOMISED])
def test_an_online_frame_sent_twice_is_answered_once(
    serving: Deployment, hand: Hand, kind: Kind
) -> None:
    """One answer a gate, ever: two would tell the vendor's share of the decision."""
    channel = Tampered(hand.prepare().start(), only(kind, lambda frame: [frame, frame]))
    with pytest.raises(MessageOrderError):
        hand.run(channel)
    assert_lost(serving, hand)


def test_a_relu_is_answered_out_of_order(serving: Deployment, hand: Hand) -> None:
    """The rerandomised share of a comparison before its selection."""
    relu = next(
        number for number, step in enumerate(hand.network.plan.steps) if isinstance(step.gate, Relu)
    )
    size = hand.network.plan.steps[relu].size * 4
    early = Frame(hand.session, relu, Kind.RERANDOMISED, 0, bytes(size))
    channel = Tampered(hand.prepare().start(), only(Kind.SELECTION, lambda frame: [early, frame]))
    with pytest.raises(MessageOrderError, match=f"expected SELECTION of gate {relu}, block 0"):
        hand.run(channel)
    assert_lost(serving, hand)


@pytest.mark.parametrize(
    "start",
    [
        lambda session: Frame(session, 0, Kind.IMAGE),
        lambda session: Frame(session, 0, Kind.IMAGE, 0, MARK),
        lambda session: Frame(session, 1, Kind.START, 0, MARK),
        lambda session: Frame(session, 0, Kind.START, 1, MARK),
        lambda session: Frame(session, 0, Kind.START, 0, b"now"),
        lambda session: Frame(session, 0, Kind.START),
        lambda session: Frame(session, 0, Kind.READY, 0, MARK),
    ],
)
def test_an_inference_begins_with_start(
    serving: Deployment, hand: Hand, start: Callable[[bytes], Frame]
) -> None:
    hand.prepare()
    with pytest.raises(ProtocolError, match=r"begins with START|mark of a ledger has"):
        raw_infer(hand.owner, [frames.encode(start(hand.session))])
    # it was not begun, so it can be
    hand.infer()


def test_a_session_that_never_was(serving: Deployment, hand: Hand) -> None:
    with pytest.raises(UnknownSessionError, match="prepare another"):
        hand.start()


# By case: the bytes, and the errors that they are as an offline message and as a frame.
GARBAGE: dict[str, tuple[bytes, type[RadiopaqueError], type[RadiopaqueError]]] = {
    "no protobuf": (b"\xff" * 40, MessageValueError, MessageValueError),
    "nothing": (b"", MessageOrderError, MessageSizeError),
    "random": (b"\x0b" + bytes(range(99)), MessageValueError, MessageValueError),
    "unknown field": (b"\x98\x06\x01", MessageValueError, MessageSizeError),
    "over 4 MiB": (bytes(MAX_MESSAGE_BYTES + 1), MessageSizeError, MessageSizeError),
}


@pytest.mark.parametrize("fault", GARBAGE)
def test_garbage_instead_of_the_offline_message(
    serving: Deployment, hand: Hand, fault: str
) -> None:
    data, expected, _ = GARBAGE[fault]
    with pytest.raises(expected):
        raw_upload(hand.owner, [data])
    hand.reserve()

    def header_then_data() -> Iterator[bytes]:
        yield messages.encode(hand.header())
        # gRPC drops what is still queued before a message that is too long
        until(lambda: hand.session in serving.owner.sessions())
        yield data

    with pytest.raises(expected):
        raw_upload(hand.owner, header_then_data())
    assert_lost(serving, hand)


@pytest.mark.parametrize("fault", GARBAGE)
def test_garbage_instead_of_frames(serving: Deployment, hand: Hand, fault: str) -> None:
    data, _, expected = GARBAGE[fault]
    with pytest.raises(expected):
        raw_infer(hand.owner, [data])
    channel = hand.prepare().start()
    channel._outbox.put(data)
    with pytest.raises(expected):
        channel.receive()
    channel.close()
    assert_lost(serving, hand)


@pytest.mark.parametrize("method", ["Reserve", "FetchPlan", "ListModels"])
def test_garbage_instead_of_requests(serving: Deployment, hand: Hand, method: str) -> None:
    peer = hand.provider if method == "Reserve" else hand.owner
    for data in (b"\xff" * 40, b"\x98\x06\x01"):
        with pytest.raises(MessageValueError, match="same version"):
            raw_call(peer, method, data)
    with pytest.raises(MessageSizeError):
        raw_call(peer, method, bytes(MAX_MESSAGE_BYTES + 1))


@pytest.mark.parametrize("field", ["session", "plan_digest", "artefact", "key_d"])
def test_a_reservation_with_a_field_of_the_wrong_length(
    serving: Deployment, hand: Hand, field: str
) -> None:
    for value in (b"", b"\x01" * 31, b"\x01" * 33):
        with pytest.raises(MessageSizeError, match="must have"):
            hand.reserve(SECONDS, **{field: value})
    hand.prepare().infer()


def test_a_stream_that_ends_early_burns_the_session(serving: Deployment, hand: Hand) -> None:
    channel = hand.prepare().start()
    channel.close()
    assert_lost(serving, hand)


def test_a_stream_that_ends_in_the_middle_burns_the_session(
    serving: Deployment, hand: Hand
) -> None:
    channel = hand.prepare().start()

    def hang_up(frame: Frame) -> Iterable[Frame]:
        channel.close()
        return []

    with pytest.raises(RadiopaqueError, match="this side has closed the channel"):
        hand.run(Tampered(channel, only(Kind.RERANDOMISED, hang_up)))
    assert_lost(serving, hand)


def test_requests_name_the_offered_part_only(serving: Deployment, hand: Hand) -> None:
    """An empty request is no header and no frame."""
    hand.reserve()
    with pytest.raises(MessageOrderError, match="only frames follow"):
        hand.upload([hand.header(), pb.PrepareRequest()])
    assert_lost(serving, hand)
