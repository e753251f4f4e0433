"""Frames both ways over gRPC: same counters as in memory, deadlines, and ends of either side."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from radiopaque import versions
from radiopaque.certificates import Role
from radiopaque.errors import (
    ConnectionLostError,
    DeadlineError,
    MessageOrderError,
    MessageSizeError,
    RadiopaqueError,
    ResourceError,
    StoreError,
)
from radiopaque.transport import memory
from radiopaque.transport.channel import Channel
from radiopaque.transport.grpc_server import Call
from radiopaque.transport.tls import client_credentials, grpc
from radiopaque.wire import frames
from radiopaque.wire.frames import Frame, Kind

SESSION = bytes(range(16))


def frame(gate: int, kind: Kind = Kind.OPENING, block: int = 0, payload: bytes = b"x") -> Frame:
    return Frame(SESSION, gate, kind, block, payload)


def converse(channel: Channel) -> None:
    """The model owner's part of a short, uneven conversation."""
    channel.receive()
    channel.send(frame(0, Kind.READY))
    channel.receive()
    for block in range(3):
        channel.send(frame(5, Kind.OPENING, block, bytes(100_000)))
    channel.receive()
    channel.send(frame(5, Kind.DECISION, payload=b"decision"))
    channel.send(frame(2**31, Kind.RESULT))
    channel.receive()


def start(channel: Channel) -> None:
    """The data owner's part."""
    channel.send(frame(0, Kind.START))
    channel.receive()
    channel.send(frame(1, Kind.IMAGE, payload=bytes(300_000)))
    for _ in range(3):
        channel.receive()
    channel.send(frame(5, Kind.SELECTION))
    channel.receive()
    channel.receive()
    channel.send(frame(0, Kind.DONE))


def test_counters_are_those_of_the_channel_in_memory(host: Any) -> None:
    served: list[Call] = []

    def infer(channel: Channel, call: Call) -> None:
        served.append(call)
        converse(channel)

    host.functions["Infer"] = infer
    over_grpc = host.peer.open("Infer")
    start(over_grpc)
    over_grpc.close()
    in_memory = memory.connect(converse)
    start(in_memory)
    assert over_grpc.counters == in_memory.counters
    assert over_grpc.counters.round_trips == 3
    assert served[0].counters.received_bytes == over_grpc.counters.sent_bytes > 300_000
    assert served[0].counters.sent_bytes == over_grpc.counters.received_bytes > 300_000
    assert served[0].peer.role is Role.DATA_OWNER


def test_large_frames_overlap_in_both_directions(host: Any) -> None:
    """Both sides send 8 MiB before they read: neither may wait for the other to read."""

    def infer(channel: Channel, _: Call) -> None:
        for block in range(8):
            channel.send(frame(1, block=block, payload=bytes(1 << 20)))
        for block in range(8):
            assert channel.receive().block == block
        channel.send(frame(0, Kind.DONE))

    host.functions["Infer"] = infer
    channel = host.peer.open("Infer")
    for block in range(8):
        channel.send(frame(2, block=block, payload=bytes(1 << 20)))
    assert [channel.receive().block for _ in range(8)] == list(range(8))
    assert channel.receive().kind is Kind.DONE
    channel.close()


def test_largest_frame_passes(host: Any) -> None:
    host.functions["Infer"] = lambda channel, _: channel.send(channel.receive())
    channel = host.peer.open("Infer")
    sent = Frame(SESSION, 2**32 - 1, Kind.DONE, 2**32 - 1, bytes(frames.MAX_PAYLOAD_BYTES))
    channel.send(sent)
    assert channel.receive() == sent
    channel.close()


def test_a_sent_buffer_may_be_used_again(host: Any) -> None:
    host.functions["Infer"] = lambda channel, _: channel.send(channel.receive())
    channel = host.peer.open("Infer")
    buffer = bytearray(b"first")
    channel.send(Frame(SESSION, 1, Kind.IMAGE, 0, memoryview(buffer)))
    buffer[:] = b"other"
    assert bytes(channel.receive().payload) == b"first"
    channel.close()


def test_what_was_sent_before_close_arrives(host: Any) -> None:
    received: list[Frame] = []
    finished = threading.Event()

    def infer(channel: Channel, _: Call) -> None:
        try:
            while True:
                received.append(channel.receive())
        except ConnectionLostError:
            finished.set()

    host.functions["Infer"] = infer
    channel = host.peer.open("Infer")
    for gate in range(100):
        channel.send(frame(gate))
    channel.close()
    assert finished.wait(5)
    assert [item.gate for item in received] == list(range(100))
    for action in (channel.receive, lambda: channel.send(frame(1))):
        with pytest.raises(ConnectionLostError, match="this side"):
            action()


def test_frames_before_the_end_are_still_read_then_the_end_stays(host: Any) -> None:
    host.functions["Infer"] = lambda channel, _: channel.send(frame(1))
    channel = host.peer.open("Infer")
    assert channel.receive() == frame(1)
    for _ in range(2):
        with pytest.raises(ConnectionLostError, match="ended the stream"):
            channel.receive()
    with pytest.raises(ConnectionLostError):
        channel.send(frame(1))
    channel.close()


@pytest.mark.parametrize("raised", [True, False], ids=["raised", "closed"])
def test_error_of_the_server_arrives_with_its_class_and_text(host: Any, raised: bool) -> None:
    error = MessageOrderError("gate 3 came before gate 2, é ✓")

    def infer(channel: Channel, _: Call) -> None:
        channel.send(frame(1))
        if raised:
            raise error
        channel.close(error)

    host.functions["Infer"] = infer
    channel = host.peer.open("Infer")
    assert channel.receive() == frame(1)
    with pytest.raises(MessageOrderError, match="gate 3 came before gate 2, é ✓"):
        channel.receive()
    with pytest.raises(MessageOrderError, match="gate 3 came before gate 2, é ✓"):
        channel.send(frame(1))
    channel.close()


@pytest.mark.parametrize(
    ("error", "expected"),
    [(ValueError("key 0123456789"), RadiopaqueError), (StoreError("/secret/path"), StoreError)],
)
def test_bugs_and_local_troubles_cross_as_a_reference(
    host: Any, error: Exception, expected: type[Exception], caplog: pytest.LogCaptureFixture
) -> None:
    def infer(channel: Channel, _: Call) -> None:
        raise error

    host.functions["Infer"] = infer
    with pytest.raises(RadiopaqueError) as caught:
        host.peer.open("Infer").receive()
    assert type(caught.value) is expected
    reference = str(caught.value).split()[-1]
    assert len(reference) == 8
    assert str(caught.value).startswith("the model owner failed inside; ")
    assert reference in caplog.text
    assert "0123456789" not in str(caught.value) + caplog.text
    assert "/secret/path" not in str(caught.value)
    # the operator is told which of its files it is, under the reference that the peer got
    assert ("StoreError: /secret/path" in caplog.text) == (expected is StoreError)
    assert type(error).__name__ in caplog.text


def test_error_of_the_client_says_nothing_to_the_server(host: Any) -> None:
    seen: list[Exception] = []
    finished = threading.Event()

    def infer(channel: Channel, _: Call) -> None:
        try:
            channel.receive()
        except RadiopaqueError as error:
            seen.append(error)
            finished.set()
            raise

    host.functions["Infer"] = infer
    channel = host.peer.open("Infer")
    channel.close(MessageOrderError("something about the result"))
    assert finished.wait(5)
    assert type(seen[0]) is ConnectionLostError
    assert "result" not in str(seen[0])


def test_cancelled_client_stops_a_sending_server(host: Any) -> None:
    finished = threading.Event()

    def infer(channel: Channel, _: Call) -> None:
        try:
            while True:
                channel.send(frame(1))
                time.sleep(0.001)
        except ConnectionLostError:
            finished.set()

    host.functions["Infer"] = infer
    channel = host.peer.open("Infer")
    channel.receive()
    channel.close(ConnectionLostError("enough"))
    assert finished.wait(5)


def test_deadline_is_noticed_by_both_sides(host: Any) -> None:
    seen: list[Exception] = []
    finished = threading.Event()

    def infer(channel: Channel, call: Call) -> None:
        assert 0 < call.deadline_seconds < 1
        try:
            channel.receive()
        except RadiopaqueError as error:
            seen.append(error)
        finished.set()

    host.functions["Infer"] = infer
    channel = host.peer.open("Infer", deadline_seconds=0.3)
    begin = time.monotonic()
    with pytest.raises(DeadlineError):
        channel.receive()
    assert 0.2 < time.monotonic() - begin < 5
    with pytest.raises(DeadlineError):
        channel.send(frame(1))
    assert finished.wait(5)
    assert type(seen[0]) in (DeadlineError, ConnectionLostError)  # a race that either may win
    channel.close()


def test_close_from_another_thread_wakes_a_blocked_receiver(host: Any) -> None:
    def infer(channel: Channel, _: Call) -> None:
        with pytest.raises(ConnectionLostError):
            channel.receive()

    host.functions["Infer"] = infer
    channel = host.peer.open("Infer", deadline_seconds=60)
    threading.Timer(0.1, channel.close, [ConnectionLostError("stop")]).start()
    begin = time.monotonic()
    with pytest.raises(ConnectionLostError, match="stop"):
        channel.receive()
    assert time.monotonic() - begin < 5


def test_server_that_stops_is_noticed(make_host: Callable[..., Any]) -> None:
    host = make_host()
    host.functions["Infer"] = lambda channel, _: channel.receive()
    channel = host.peer.open("Infer")
    threading.Timer(0.1, host.server.stop, [0]).start()
    with pytest.raises(ConnectionLostError):
        channel.receive()


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (b"", "MessageSizeError"),
        (b"\x0a\x10" + SESSION + b"\x18\x05\x30\x01", "MessageValueError"),
        (frames.encode(frame(1)) + b"x", "MessageSizeError"),
        (bytes(frames.MAX_MESSAGE_BYTES + 1), None),
    ],
    ids=["empty", "unknown field", "bytes left over", "over the limit of the transport"],
)
def test_broken_frames_are_refused_and_the_server_goes_on(
    host: Any, message: bytes, expected: str | None
) -> None:
    host.functions["Infer"] = lambda channel, _: channel.send(channel.receive())
    options = [("grpc.ssl_target_name_override", Role.MODEL_OWNER.server_name)]
    credentials = client_credentials(host.identities[Role.DATA_OWNER])
    with grpc.secure_channel(host.address, credentials, options) as raw:
        method = raw.stream_stream("/radiopaque.v1.ModelOwner/Infer")
        call = method(iter([message]), timeout=5, metadata=versions.own())
        with pytest.raises(grpc.RpcError):
            next(call)
        if expected is None:
            assert call.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        else:
            assert dict(call.trailing_metadata())["radiopaque-error"] == expected
    channel = host.peer.open("Infer")
    channel.send(frame(1))
    assert channel.receive() == frame(1)
    channel.close()


def test_a_reply_over_the_limit_is_a_typed_error(host: Any) -> None:
    host.functions["Infer"] = lambda channel, _: channel._outbox.put(
        bytes(frames.MAX_MESSAGE_BYTES + 1)
    )
    with pytest.raises(MessageSizeError):
        host.peer.open("Infer").receive()


def test_several_sessions_at_once(host: Any) -> None:
    def infer(channel: Channel, _: Call) -> None:
        for _frame in range(50):
            channel.send(channel.receive())

    host.functions["Infer"] = infer
    failures: list[BaseException] = []

    def run(number: int) -> None:
        try:
            channel = host.peer.open("Infer")
            for gate in range(50):
                sent = frame(gate, payload=bytes([number]) * 1000)
                channel.send(sent)
                assert channel.receive() == sent
            channel.close()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert not failures


def test_calls_over_the_limit_are_turned_away(make_host: Callable[..., Any]) -> None:
    host = make_host(concurrent_calls=1)
    release = threading.Event()

    def infer(channel: Channel, _: Call) -> None:
        channel.send(frame(1))
        release.wait(10)

    host.functions["Infer"] = infer
    first = host.peer.open("Infer")
    first.receive()
    with pytest.raises(ResourceError):
        host.peer.open("Infer").receive()
    release.set()
    first.close()
    end = time.monotonic() + 5
    while True:
        try:
            assert host.peer.open("Infer").receive() == frame(1)
            return
        except ResourceError:  # the slot is given back a moment after the call has ended
            assert time.monotonic() < end
