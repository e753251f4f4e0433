"""How much of a server one peer can hold."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest

from radiopaque import versions
from radiopaque.certificates import Identity, Role, Watch
from radiopaque.errors import (
    ConnectionLostError,
    MessageSizeError,
    MessageValueError,
    ResourceError,
)
from radiopaque.transport import grpc_server
from radiopaque.transport.channel import Channel, Counters
from radiopaque.transport.grpc_client import SERVICES, Peer
from radiopaque.transport.grpc_server import Call, Handler, Server
from radiopaque.transport.observer import Observer
from radiopaque.transport.status import ERROR_KEY, RETRY_KEY, from_rpc_error
from radiopaque.transport.tls import grpc, server_credentials
from radiopaque.wire.frames import MAX_MESSAGE_BYTES, Frame, Kind
from radiopaque.wire.v1 import services_pb2 as pb
from tests.e2e.parties import until


def list_models(host: Any) -> pb.ListModelsReply:
    return host.peer.call("ListModels", pb.ListModelsRequest(), pb.ListModelsReply, Counters())


def test_one_peer_has_its_share_of_calls(make_host: Callable[..., Any]) -> None:
    host = make_host(calls_per_peer=2)
    entered, leave = threading.Barrier(3), threading.Event()

    def wait(_: pb.ListModelsRequest, __: Call) -> pb.ListModelsReply:
        entered.wait(10)
        leave.wait(10)
        return pb.ListModelsReply()

    host.functions["ListModels"] = wait
    with ThreadPoolExecutor(2) as pool:
        calls = [pool.submit(list_models, host) for _ in range(2)]
        entered.wait(10)
        with pytest.raises(ResourceError, match="2 calls of data-owner") as refused:
            list_models(host)
        assert refused.value.retry_seconds == 1.0
        leave.set()
        for call in calls:
            call.result(10)
    host.functions["ListModels"] = lambda *_: pb.ListModelsReply()
    for _ in range(5):
        list_models(host)


def test_calls_over_the_limit_are_told_when_to_try_again(make_host: Callable[..., Any]) -> None:
    """By this party, as long as there are few of them; gRPC turns away the others, however many."""
    spare = grpc_server._SPARE_CALLS
    refusing, leave = threading.Semaphore(0), threading.Event()

    class Slow(Observer):
        def refused(self, method: str, outcome: str, peer: str) -> None:
            refusing.release()
            leave.wait(10)

    def wait(_: pb.ListModelsRequest, __: Call) -> pb.ListModelsReply:
        entered.set()
        leave.wait(10)
        return pb.ListModelsReply()

    host, entered = make_host(concurrent_calls=1, observer=Slow()), threading.Event()
    host.functions["ListModels"] = wait
    with ThreadPoolExecutor(1 + spare) as pool:
        first = pool.submit(list_models, host)
        assert entered.wait(10)
        assert host.peer.check_health(5.0).serving
        others = [pool.submit(list_models, host) for _ in range(spare)]
        assert all(refusing.acquire(timeout=10) for _ in others)
        with pytest.raises(ResourceError, match="refused: RESOURCE_EXHAUSTED") as beyond:
            list_models(host)
        assert beyond.value.retry_seconds is None
        leave.set()
        first.result(10)
        for other in others:
            with pytest.raises(ResourceError, match="1 calls are under way") as refused:
                other.result(10)
            assert refused.value.retry_seconds == 1.0


def test_a_call_without_a_deadline_is_refused(make_host: Callable[..., Any]) -> None:
    host = make_host()
    host.functions["ListModels"] = lambda *_: pb.ListModelsReply()
    method = host.peer._connected(5.0).unary_unary(host.peer._path("ListModels"))
    with pytest.raises(grpc.RpcError, match="must be called with a deadline"):
        method(b"", metadata=versions.own())


@pytest.mark.parametrize("longest", [10.0, 100.0, 299.5, 300.0, 1000.5, 3600.0, 100_001.0])
def test_the_longest_deadline_is_accepted_and_not_more(
    make_host: Callable[..., Any], longest: float
) -> None:
    """But for the hundredth by which gRPC may round it up."""
    host = make_host(deadline_seconds=longest)
    host.functions["ListModels"] = lambda *_: pb.ListModelsReply()
    ask = partial(
        host.peer.call, "ListModels", pb.ListModelsRequest(), pb.ListModelsReply, Counters()
    )
    ask(longest)
    with pytest.raises(MessageValueError, match=f"at most {longest:g} s"):
        ask(longest * 1.03)


def test_abandoned_and_failed_calls_give_their_share_back(make_host: Callable[..., Any]) -> None:
    host = make_host(calls_per_peer=1)

    def endless(_: pb.FetchMaskedWeightsRequest, __: Call) -> Iterator[pb.Chunk]:
        while True:
            yield pb.Chunk(data=bytes(100_000))

    def fail(_: pb.ListModelsRequest, __: Call) -> pb.ListModelsReply:
        raise ResourceError("no")

    host.functions["FetchMaskedWeights"] = endless
    host.functions["ListModels"] = fail
    for _ in range(3):
        with pytest.raises(ResourceError, match=r"^no$"):
            list_models(host)
    chunks = host.peer.download(
        "FetchMaskedWeights", pb.FetchMaskedWeightsRequest(), pb.Chunk, Counters()
    )
    next(chunks)
    chunks.close()
    host.functions["ListModels"] = lambda *_: pb.ListModelsReply()
    done = threading.Event()
    for _ in range(100):
        try:
            list_models(host)
        except ResourceError:
            done.wait(0.05)
        else:
            return
    pytest.fail("the abandoned download still holds the peer's share")


def test_a_call_counts_until_what_it_began_is_over(make_host: Callable[..., Any]) -> None:
    """Also one that its caller cancels while it is sending."""
    host, sent, leave = make_host(), threading.Event(), threading.Event()

    def infer(channel: Channel, _: Call) -> None:
        for block in range(16):
            channel.send(Frame(bytes(16), 1, Kind.OPENING, block, bytes(1 << 20)))
        sent.set()
        leave.wait(10)

    host.functions["Infer"] = infer
    under_way = host.server._admission._under_way
    stream = host.peer.open("Infer")
    assert sent.wait(10)
    stream.close(ConnectionLostError("enough"))
    time.sleep(0.5)
    assert under_way
    leave.set()
    until(lambda: not under_way)


@pytest.mark.parametrize(
    ("stated", "heard"), [(None, None), (0.2, 1.0), (2.0, 2.0), (86_399.5, 86_400.0)]
)
def test_when_to_try_again_crosses_in_whole_seconds(
    make_host: Callable[..., Any], stated: float | None, heard: float | None
) -> None:
    def fail(*_: Any) -> None:
        raise ResourceError("full", retry_seconds=stated)

    host = make_host()
    host.functions["ListModels"] = fail
    with pytest.raises(ResourceError, match=r"^full$") as refused:
        list_models(host)
    assert refused.value.retry_seconds == heard


@pytest.mark.parametrize("text", ["", "-1", "1.5", "nan", "1e9", "٣", "9999999999"])
def test_a_strange_time_to_try_again_is_none(text: str) -> None:
    class Strange(grpc.RpcError):  # type: ignore[misc]
        def code(self) -> grpc.StatusCode:
            return grpc.StatusCode.RESOURCE_EXHAUSTED

        def details(self) -> str:
            return "full"

        def trailing_metadata(self) -> tuple[tuple[str, str], ...]:
            return ((ERROR_KEY, "ResourceError"), (RETRY_KEY, text))

    error = from_rpc_error(Strange(), "model owner", "host:1")
    assert isinstance(error, ResourceError)
    assert error.retry_seconds is None


def test_a_long_reply_is_refused_by_its_length(identities: dict[Role, Identity]) -> None:
    """From a server that is not ours, before it is in the caller's memory."""
    reply = grpc.unary_unary_rpc_method_handler(lambda *_: bytes(MAX_MESSAGE_BYTES + 1))
    server = grpc.server(ThreadPoolExecutor(1))
    service = SERVICES[Role.MODEL_OWNER].full_name
    handlers = grpc.method_handlers_generic_handler(service, {"ListModels": reply})
    server.add_generic_rpc_handlers((handlers,))
    credentials = server_credentials(Watch(identities[Role.MODEL_OWNER]))
    port = server.add_secure_port("127.0.0.1:0", credentials)
    server.start()
    with (
        Peer(Role.MODEL_OWNER, f"127.0.0.1:{port}", identities[Role.DATA_OWNER]) as peer,
        pytest.raises(MessageSizeError, match="between this party and the model owner"),
    ):
        peer.call("ListModels", pb.ListModelsRequest(), pb.ListModelsReply, Counters())
    server.stop(0).wait()


@pytest.mark.parametrize("listen", ["127.0.0.2:0", "[::1]:0", "0.0.0.0:0"])
def test_a_server_checks_itself_where_it_listens(
    identities: dict[Role, Identity], listen: str
) -> None:
    names = ("ListModels", "FetchPlan", "FetchMaskedWeights", "Prepare", "Infer", "Audit")
    handlers = {name: Handler(lambda *_: None, frozenset()) for name in names}
    server = Server(identities[Role.MODEL_OWNER], handlers)
    assert server.start(listen) > 0
    server.stop(0)
