"""Messages fetched ahead: their order, their bound, and how a stream ends."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from radiopaque.errors import ConnectionLostError
from radiopaque.transport.inbox import AHEAD, Inbox
from tests.e2e.parties import until


def receiving() -> int:
    return sum(thread.name == "radiopaque-receive" for thread in threading.enumerate())


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    before = receiving()
    yield
    until(lambda: receiving() == before)


class Stream:
    """Counts what was fetched; after ``messages`` it ends, or fails."""

    def __init__(self, messages: int, failure: Exception | None = None) -> None:
        self.fetched = 0
        self._messages = messages
        self._failure = failure

    def fetch(self) -> bytes | None:
        if self.fetched == self._messages:
            if self._failure is not None:
                raise self._failure
            return None
        self.fetched += 1
        return str(self.fetched).encode()


def test_all_messages_in_order_then_the_end_for_ever() -> None:
    inbox = Inbox(Stream(3 * AHEAD).fetch)
    assert [inbox.get() for _ in range(3 * AHEAD)] == [
        str(i + 1).encode() for i in range(3 * AHEAD)
    ]
    assert [inbox.get() for _ in range(3)] == [None] * 3


def test_what_fetching_raises_is_raised_after_what_came_before_and_every_time() -> None:
    inbox = Inbox(Stream(2, ConnectionLostError("gone")).fetch)
    assert [inbox.get(), inbox.get()] == [b"1", b"2"]
    for _ in range(3):
        with pytest.raises(ConnectionLostError, match="gone"):
            inbox.get()


def test_no_more_is_fetched_ahead_than_there_is_room() -> None:
    stream = Stream(10 * AHEAD)
    inbox = Inbox(stream.fetch)
    until(lambda: stream.fetched == AHEAD)
    inbox.get()
    until(lambda: stream.fetched == AHEAD + 1)
    assert stream.fetched == AHEAD + 1
    inbox.let_go()


def test_a_stream_that_has_ended_lets_its_thread_go_and_loses_nothing() -> None:
    stream = Stream(2 * AHEAD)
    inbox = Inbox(stream.fetch)
    until(lambda: stream.fetched == AHEAD)
    inbox.let_go()
    until(lambda: stream.fetched == 2 * AHEAD)
    assert sum(inbox.get() is not None for _ in range(2 * AHEAD)) == 2 * AHEAD
    assert inbox.get() is None
