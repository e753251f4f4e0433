"""The in-memory channel: order, counters, deadlines, and the end of either side."""

from __future__ import annotations

import threading
import time

import pytest

from radiopaque.errors import (
    ConnectionLostError,
    DeadlineError,
    MessageOrderError,
    RadiopaqueError,
)
from radiopaque.transport import memory
from radiopaque.transport.channel import Channel
from radiopaque.wire import frames
from radiopaque.wire.frames import Frame, Kind

SESSION = bytes(range(16))


def frame(gate: int, kind: Kind = Kind.OPENING, block: int = 0, payload: bytes = b"x") -> Frame:
    return Frame(SESSION, gate, kind, block, payload)


def test_frames_arrive_in_order_and_are_counted_on_both_sides() -> None:
    opening, serving = memory.pair()
    sent = [
        frame(0, Kind.READY),
        frame(1, Kind.OPENING, 0),
        frame(1, Kind.OPENING, 1),
        frame(1, Kind.DECISION),
        frame(300, Kind.OPENING, payload=bytes(70_000)),
        frame(0, Kind.DONE),
    ]
    for item in sent:
        serving.send(item)
    assert [opening.receive() for _ in sent] == sent
    size = sum(len(frames.encode(item)) for item in sent)
    assert serving.counters.sent_bytes == opening.counters.received_bytes == size
    assert serving.counters.sent_messages == opening.counters.received_messages == len(sent)
    assert serving.counters.received_bytes == opening.counters.sent_bytes == 0
    assert opening.counters.round_trips == 3


def test_difference_of_snapshots() -> None:
    opening, serving = memory.pair()
    serving.send(frame(1))
    opening.receive()
    before = opening.counters.snapshot()
    serving.send(frame(2))
    opening.receive()
    opening.send(frame(2, Kind.SELECTION))
    part = opening.counters - before
    assert part.received_messages == part.sent_messages == part.round_trips == 1
    assert part.received_bytes == len(frames.encode(frame(2)))
    assert before.received_messages == 1
    assert opening.counters.round_trips == 2


def test_a_sent_buffer_may_be_used_again() -> None:
    opening, serving = memory.pair()
    buffer = bytearray(b"first")
    serving.send(Frame(SESSION, 1, Kind.IMAGE, 0, memoryview(buffer)))
    buffer[:] = b"other"
    assert bytes(opening.receive().payload) == b"first"


def test_deadline() -> None:
    opening, _ = memory.pair(deadline_seconds=0.05)
    start = time.monotonic()
    with pytest.raises(DeadlineError):
        opening.receive()
    assert 0.04 < time.monotonic() - start < 2


def test_frames_before_the_end_are_still_read_then_the_end_stays() -> None:
    opening, serving = memory.pair()
    serving.send(frame(1))
    serving.close()
    serving.close()
    assert opening.receive() == frame(1)
    for _ in range(2):
        with pytest.raises(ConnectionLostError):
            opening.receive()
    with pytest.raises(ConnectionLostError):
        opening.send(frame(2))
    with pytest.raises(ConnectionLostError):
        serving.send(frame(2))
    with pytest.raises(ConnectionLostError):
        serving.receive()


def test_error_of_the_serving_side_arrives_with_its_class_and_text() -> None:
    opening, serving = memory.pair()
    serving.close(MessageOrderError("gate 3 came before gate 2"))
    with pytest.raises(MessageOrderError, match="gate 3 came before gate 2"):
        opening.receive()
    with pytest.raises(MessageOrderError, match="gate 3 came before gate 2"):
        opening.send(frame(1))


def test_error_of_the_opening_side_says_nothing_to_the_peer() -> None:
    opening, serving = memory.pair()
    opening.close(MessageOrderError("something about the result"))
    for action in (serving.receive, lambda: serving.send(frame(1))):
        with pytest.raises(ConnectionLostError) as caught:
            action()
        assert "result" not in str(caught.value)


def test_close_wakes_a_blocked_receiver() -> None:
    opening, serving = memory.pair(deadline_seconds=30)
    threading.Timer(0.05, serving.close).start()
    start = time.monotonic()
    with pytest.raises(ConnectionLostError):
        opening.receive()
    assert time.monotonic() - start < 5


def test_served_channel() -> None:
    def echo(channel: Channel) -> None:
        for _ in range(3):
            channel.send(channel.receive())
        raise MessageOrderError("three are enough")

    channel = memory.connect(echo)
    for gate in range(3):
        channel.send(frame(gate))
        assert channel.receive() == frame(gate)
    with pytest.raises(MessageOrderError, match="three are enough"):
        channel.receive()


def test_a_bug_in_the_serving_function_does_not_leak(caplog: pytest.LogCaptureFixture) -> None:
    def broken(channel: Channel) -> None:
        raise ValueError("the key is 0123456789")

    with pytest.raises(RadiopaqueError) as caught:
        memory.connect(broken).receive()
    assert type(caught.value) is RadiopaqueError
    assert "0123456789" not in str(caught.value)
    assert "ValueError" in caplog.text
    assert "0123456789" not in caplog.text
