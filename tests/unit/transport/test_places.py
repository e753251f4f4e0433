"""What is done at once, and how much of it for one caller."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress

import pytest

from radiopaque.certificates import PeerIdentity, Role
from radiopaque.errors import ConnectionLostError, ResourceError
from radiopaque.transport.grpc_server import Call
from radiopaque.transport.places import Places


def call_of(name: str) -> Call:
    return Call(PeerIdentity(Role.DATA_OWNER, name), 60.0)


def take(places: Places, name: str) -> None:
    """A place for a moment, or ResourceError at once."""
    with places.place(call_of(name), 0.0):
        pass


def test_one_caller_has_all_places_but_one() -> None:
    places = Places(3, "inferences")
    with places.place(call_of("a")), places.place(call_of("a")):
        text = "2 inferences of data-owner 'a' are under way, all but one of the places here"
        with pytest.raises(ResourceError, match=text) as refused:
            take(places, "a")
        assert refused.value.retry_seconds == 1.0
        text = "3 inferences are under way, the limit here"
        with places.place(call_of("b")), pytest.raises(ResourceError, match=text):
            take(places, "c")
        take(places, "c")
    take(places, "a")


def test_a_place_that_is_alone_is_anybodys() -> None:
    places = Places(1, "inferences")
    take(places, "a")
    with places.place(call_of("a")), pytest.raises(ResourceError, match="1 inferences are under"):
        take(places, "b")


def test_what_fails_gives_its_place_back() -> None:
    places = Places(2, "inferences")
    for _ in range(3):
        with suppress(ConnectionLostError), places.place(call_of("a"), 0.0):
            raise ConnectionLostError("broken off")


def test_a_place_is_waited_for() -> None:
    places = Places(2, "inferences")
    with ThreadPoolExecutor(1) as pool, ExitStack() as held:
        held.enter_context(places.place(call_of("a")))

        def wait() -> None:
            with places.place(call_of("a"), 20.0):
                pass

        waiting = pool.submit(wait)
        with pytest.raises(TimeoutError):
            waiting.result(0.3)
        held.close()
        waiting.result(10)


def test_a_place_is_not_waited_for_in_vain() -> None:
    places = Places(2, "inferences")
    gone = call_of("a")
    with places.place(call_of("a")):
        gone.cancellation.cancel()
        with pytest.raises(ConnectionLostError), places.place(gone, 10.0):
            pass
