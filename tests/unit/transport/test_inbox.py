"""Messages fetched ahead: only when asked, one at a time, and how a stream ends."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from radiopaque.errors import ConnectionLostError
from radiopaque.transport.inbox import Inbox
from tests.e2e.parties import until


def receiving() -> int:
    return sum(thread.name == "radiopaque-receive" for thread in threading.enumerate())


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    before = receiving()
    yield
    until(lambda: receiving() == before)


class Stream:
    """Counts what was fetched, and by which threads; after ``messages`` it ends, or fails."""

    def __init__(self, messages: int, failure: Exception | None = None) -> None:
        self.fetched = 0
        self.threads: list[str] = []
        self._messages = messages
        self._failure = failure

    def fetch(self) -> bytes | None:
        self.threads.append(threading.current_thread().name)
        if self.fetched == self._messages:
            if self._failure is not None:
                raise self._failure
            return None
        self.fetched += 1
        return str(self.fetched).encode()


def test_nothing_is_fetched_ahead_unasked() -> None:
    stream = Stream(2)
    inbox = Inbox(stream.fetch)
    assert [inbox.get() for _ in range(4)] == [b"1", b"2", None, None]
    assert set(stream.threads) == {threading.current_thread().name}
    inbox.let_go()


def test_one_message_is_fetched_ahead_by_a_thread() -> None:
    stream = Stream(6)
    inbox = Inbox(stream.fetch)
    for number in range(1, 6):
        assert inbox.get() == str(number).encode()
        inbox.look_ahead()
        inbox.look_ahead()
        until(lambda number=number: stream.fetched == number + 1)  # type: ignore[misc]
    assert stream.threads == [threading.current_thread().name] + 5 * ["radiopaque-receive"]
    assert inbox.get() == b"6"
    inbox.look_ahead()
    assert inbox.get() is None
    inbox.let_go()


def test_what_fetching_raises_is_raised_where_the_message_would_have_been() -> None:
    inbox = Inbox(Stream(1, ConnectionLostError("gone")).fetch)
    assert inbox.get() == b"1"
    for _ in range(3):
        inbox.look_ahead()
        with pytest.raises(ConnectionLostError, match="gone"):
            inbox.get()
    inbox.let_go()


def test_after_the_end_nobody_waits_for_the_thread() -> None:
    """What was fetched before stays; what was not is asked for by the party itself."""
    stream = Stream(2)
    inbox = Inbox(stream.fetch)
    inbox.look_ahead()
    until(lambda: stream.fetched == 1)
    inbox.let_go()
    until(lambda: receiving() == 0)
    inbox.look_ahead()
    assert inbox.get() == b"1"
    inbox.look_ahead()
    assert inbox.get() == b"2"
    assert inbox.get() is None
    assert receiving() == 0
