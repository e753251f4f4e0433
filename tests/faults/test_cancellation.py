"""A call that ends at one party, however it does, is over at the others within two seconds.

Nothing of it is left then: no thread, no call under way, no material, no key.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from data_owner import Client
from radiopaque import versions
from radiopaque.certificates import Role
from radiopaque.config import CryptoProviderLimits, ModelOwnerLimits
from radiopaque.errors import (
    ConnectionLostError,
    DeadlineError,
    MessageOrderError,
    ResourceError,
    TransportError,
    UnsupportedModelError,
    without_traceback,
)
from radiopaque.transport.cancellation import Cancellation
from radiopaque.transport.channel import Channel, Counters
from radiopaque.transport.grpc_server import Call
from radiopaque.wire import messages
from radiopaque.wire.frames import Frame, Kind
from radiopaque.wire.v1 import services_pb2 as pb
from tests.e2e.networks import lungs
from tests.e2e.parties import until
from tests.faults.hand import Hand, Tampered
from tests.faults.inside import Inside, occupied, rewriting

FREED_SECONDS = 2.0
IDLE = "radiopaque-call"
"""Threads that wait for calls; a server keeps them."""


class Ended(Exception):
    """What a test ends a call with."""


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Inside]:
    with Inside(tmp_path_factory.mktemp("cancelled"), lungs(seed=10)) as inside:
        yield inside


@pytest.fixture
def inside(shared: Inside) -> Iterator[Inside]:
    """Honest servers with nothing to do; afterwards they serve a good session."""
    shared.lies.clear()
    yield shared
    shared.lies.clear()
    with hand_of(shared) as good:
        images = good.network.images()
        value, bound = good.network.plaintext(images)
        assert (np.abs(good.prepare().infer(images) - value) <= bound).all()


def hand_of(inside: Inside) -> Hand:
    return Hand(inside, inside.identity(Role.DATA_OWNER), "it")


def working() -> int:
    return sum(not thread.name.startswith(IDLE) for thread in threading.enumerate())


@contextmanager
def all_over(inside: Inside, session: bytes | None = None) -> Iterator[None]:
    """At the end of the block, within two seconds, nothing is left of what began in it."""
    threads = working()
    yield

    def over() -> bool:
        servers = (inside.owner.server, inside.provider.server)
        if any(server._admission._under_way for server in servers) or working() > threads:
            return False
        ledgers = (inside.owner.sessions(), inside.provider.sessions())
        states = {ledger.get(session, ("BURNT", False)) for ledger in ledgers if session}
        return states <= {("BURNT", False)} and not inside.material()

    try:
        until(over, FREED_SECONDS)
    except AssertionError:
        names = sorted(thread.name for thread in threading.enumerate())
        raise AssertionError(f"not over: {names}, {inside.material()}") from None


@pytest.mark.parametrize("kind", [Kind.IMAGE, Kind.SELECTION, Kind.RERANDOMISED])
def test_a_clinic_cancels_an_inference(inside: Inside, kind: Kind) -> None:
    with hand_of(inside) as hand:
        hand.prepare()
        with all_over(inside, hand.session):
            channel = hand.start()

            def cancel(frame: Frame) -> Iterable[Frame]:
                if frame.kind is kind:
                    channel.close(ConnectionLostError("enough"))
                return [frame]

            with pytest.raises(ConnectionLostError, match="enough"):
                hand.run(Tampered(channel, cancel))


def test_a_clinic_cancels_before_start_and_after_ready(inside: Inside) -> None:
    with hand_of(inside) as hand:
        hand.prepare()
        with all_over(inside, hand.session):
            silent = hand.owner.open("Infer", 20.0)
            until(lambda: bool(inside.owner.server._admission._under_way))
            silent.close(ConnectionLostError("enough"))
            hand.start().close(ConnectionLostError("enough"))


def test_a_clinic_cancels_while_it_waits_for_its_turn(
    inside: Inside, monkeypatch: pytest.MonkeyPatch
) -> None:
    places, waits = inside.hosting._inferring, threading.Event()
    place = places.place

    def entered(*arguments: Any) -> Any:
        waits.set()
        return place(*arguments)

    with occupied(places, ModelOwnerLimits().concurrent_inferences), hand_of(inside) as hand:
        monkeypatch.setattr(places, "place", entered)
        hand.prepare()
        threads = working()
        waiting = hand.owner.open("Infer", 20.0)
        waiting.send(Frame(hand.session, 0, Kind.START, 0, hand.mark.encode()))
        assert waits.wait(10)
        waiting.close(ConnectionLostError("enough"))
        under_way = inside.owner.server._admission._under_way
        until(lambda: not under_way and working() <= threads, FREED_SECONDS)
        # it cost nothing
        assert inside.owner.sessions()[hand.session] == ("READY", True)
    monkeypatch.undo()
    with hand_of(inside) as other:
        other.session, other.key_d = hand.session, hand.key_d
        other.infer()


@pytest.mark.parametrize("frames", [0, 1, None], ids=["header", "frame", "all"])
@pytest.mark.parametrize("end", ["cancelled", "deadline"])
def test_an_upload_ends_while_the_crypto_provider_is_silent(
    inside: Inside, frames: int | None, end: str
) -> None:
    """The model owner waits for both; neither would come before the deadline."""
    entered, leave = threading.Event(), threading.Event()

    def silent(honest: Callable[..., Any], request: Any, call: Call) -> Iterator[Frame]:
        entered.set()
        call.cancellation.on(leave.set)
        leave.wait(30)
        yield from honest(request, call)

    inside.lies["Deal"] = silent
    seconds = 1.0 if end == "deadline" else 30.0
    stopped = threading.Event()
    with hand_of(inside) as hand:
        hand.reserve()
        requests = list(hand.requests())[: None if frames is None else frames + 1]

        def upload() -> Iterator[bytes]:
            yield from map(messages.encode, requests)
            if frames is not None:
                stopped.wait(30)

        with all_over(inside, hand.session):
            method = hand.owner._connected(seconds).stream_unary(hand.owner._path("Prepare"))
            call = method.future(upload(), timeout=seconds, metadata=versions.own())
            assert entered.wait(10)
            if end == "cancelled":
                call.cancel()
            until(call.done)
            stopped.set()


def test_an_upload_ends_while_a_registration_is_not_answered(inside: Inside) -> None:
    """A model owner whose artefact the crypto provider does not know yet."""
    entered, leave = threading.Event(), threading.Event()

    def silent(honest: Callable[..., Any], request: Any, call: Call) -> pb.RegisterReply:
        entered.set()
        call.cancellation.on(leave.set)
        leave.wait(30)
        return pb.RegisterReply()

    inside.lies["Register"] = silent
    inside.hosting._dealer._registered.clear()
    with hand_of(inside) as hand, all_over(inside, None):
        hand.reserve()

        def upload() -> Iterator[pb.PrepareRequest]:
            yield hand.header()
            assert entered.wait(10)
            raise Ended

        with pytest.raises(Ended):
            hand.upload(upload())


def test_a_refusal_does_not_wait_for_a_crypto_provider_that_is_silent(inside: Inside) -> None:
    entered, leave = threading.Event(), threading.Event()

    def silent(honest: Callable[..., Any], request: Any, call: Call) -> Iterator[Frame]:
        entered.set()
        call.cancellation.on(leave.set)
        cancelled.append(leave.wait(10))
        yield from honest(request, call)

    cancelled: list[bool] = []
    inside.lies["Deal"] = silent
    with hand_of(inside) as hand, all_over(inside, hand.session):
        hand.reserve()

        def upload() -> Iterator[pb.PrepareRequest]:
            yield hand.header()
            assert entered.wait(10)
            yield hand.header()

        with pytest.raises(MessageOrderError):
            hand.upload(upload())
    assert cancelled == [True]


def test_a_turn_to_deal_is_not_waited_for_in_vain(inside: Inside) -> None:
    under_way = inside.provider.server._admission._under_way
    with (
        occupied(inside.dealing._dealing, CryptoProviderLimits().concurrent_deals),
        hand_of(inside) as hand,
        all_over(inside, hand.session),
    ):
        hand.reserve()

        def upload() -> Iterator[pb.PrepareRequest]:
            yield hand.header()
            until(lambda: bool(under_way))
            raise Ended

        with pytest.raises(Ended):
            hand.upload(upload())


def test_a_crypto_provider_that_breaks_off_ends_the_upload(inside: Inside) -> None:
    """Though the clinic has not sent everything, and goes on."""

    def broken(honest: Callable[..., Any], request: Any, call: Call) -> Iterator[Frame]:
        yield next(honest(request, call))
        raise ResourceError("enough")

    inside.lies["Deal"] = broken
    with hand_of(inside) as hand, all_over(inside, hand.session):
        hand.reserve()
        header, *frames = hand.requests()

        def upload() -> Iterator[pb.PrepareRequest]:
            yield header
            until(lambda: inside.provider.sessions()[hand.session] == ("BURNT", False))
            until(lambda: "radiopaque-deal" not in {one.name for one in threading.enumerate()})
            yield frames[0]
            until(lambda: not inside.owner.server._admission._under_way)
            yield from frames[1:]

        with pytest.raises(ResourceError, match="enough"):
            hand.upload(upload())


def test_a_download_ends_where_it_is_not_read_any_more(inside: Inside) -> None:
    closed = threading.Event()

    def endless(*_: Any) -> Iterator[pb.Chunk]:
        try:
            while True:
                yield pb.Chunk(data=bytes(1 << 20))
        finally:
            closed.set()

    inside.lies["FetchMaskedWeights"] = endless
    with hand_of(inside) as hand, all_over(inside):
        request = pb.FetchMaskedWeightsRequest(artefact=hand.artefact.artefact)
        chunks: Any = hand.owner.download("FetchMaskedWeights", request, pb.Chunk, Counters(), 30.0)
        next(chunks)
        chunks.close()
        assert closed.wait(FREED_SECONDS)


def test_a_model_owner_that_breaks_off_frees_the_clinic(inside: Inside) -> None:
    frames: list[Frame] = []

    def change(frame: Frame) -> list[Frame]:
        frames.append(frame)
        if len(frames) == 4:
            raise ResourceError("enough")
        return [frame]

    with Client.from_config(inside.clinic("left-alone")) as client:
        client.prepare()
        inside.lies["Infer"] = rewriting(change, [])
        with all_over(inside), pytest.raises(ResourceError, match="enough"):
            client.infer_tensor(lungs().images())


def test_a_deadline_that_passes_during_an_inference(inside: Inside) -> None:
    leave = threading.Event()

    def silent(honest: Callable[..., Any], channel: Channel, call: Call) -> None:
        call.cancellation.on(leave.set)
        channel.receive()
        leave.wait(30)
        call.cancellation.check()

    inside.lies["Infer"] = silent
    with hand_of(inside) as hand, all_over(inside):
        with pytest.raises(DeadlineError):
            hand.start(seconds=0.5)
        assert leave.wait(FREED_SECONDS)


@pytest.mark.parametrize(
    "error",
    [
        ResourceError("full", retry_seconds=7.0),
        UnsupportedModelError(["one", "two"], "a hint"),
        FileNotFoundError(2, "No such file"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_that_is_kept_says_the_same_and_holds_nothing(error: Exception) -> None:
    try:
        raise error
    except Exception as raised:
        kept = without_traceback(raised)
    assert error.__traceback__ is not None
    assert kept.__traceback__ is None
    assert (type(kept), str(kept), vars(kept)) == (type(error), str(error), vars(error))


def test_what_was_to_be_done_at_the_end_is_done_once() -> None:
    done: list[str] = []
    cancellation = Cancellation()
    cancellation.check()
    cancellation.on(lambda: done.append("first"))
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: cancellation.cancel(), range(8)))
    cancellation.on(lambda: done.append("late"))
    assert done == ["first", "late"]
    with pytest.raises(TransportError):
        cancellation.check()
