"""Calls with one message on a side, who may make them, and what a failure looks like."""

from __future__ import annotations

import itertools
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from radiopaque import versions
from radiopaque.certificates import Identity, Role
from radiopaque.errors import (
    ConfigError,
    ConnectionLostError,
    DeadlineError,
    MessageSizeError,
    MessageValueError,
    PeerUnavailableError,
    RadiopaqueError,
    RoleError,
    SessionStateError,
)
from radiopaque.transport import tls
from radiopaque.transport.channel import Counters
from radiopaque.transport.grpc_client import Peer
from radiopaque.transport.grpc_server import Call, Handler, Server
from radiopaque.transport.tls import client_credentials, grpc
from radiopaque.wire import frames, messages
from radiopaque.wire.frames import Frame, Kind
from radiopaque.wire.v1 import services_pb2 as pb
from tests.unit.transport.calls import list_models, no_models

SESSION = bytes(range(16))


def test_one_message_each_way_is_counted_on_both_sides(host: Any) -> None:
    calls: list[Call] = []

    def fetch_plan(request: pb.FetchPlanRequest, call: Call) -> pb.FetchPlanReply:
        calls.append(call)
        return pb.FetchPlanReply(name=request.name, plan=bytes(5000))

    host.functions["FetchPlan"] = fetch_plan
    counters = Counters()
    request = pb.FetchPlanRequest(name="chest")
    reply = host.peer.call("FetchPlan", request, pb.FetchPlanReply, counters)
    assert reply.name == "chest"
    assert counters.sent_bytes == request.ByteSize()
    assert counters.received_bytes == reply.ByteSize()
    assert (counters.sent_messages, counters.received_messages) == (1, 1)
    assert calls[0].counters.received_bytes == counters.sent_bytes
    assert calls[0].counters.sent_bytes == counters.received_bytes
    assert (calls[0].peer.role, calls[0].peer.name) == (Role.DATA_OWNER, "data-owner")


def test_download(host: Any) -> None:
    def weights(request: pb.FetchMaskedWeightsRequest, _: Call) -> Iterator[pb.Chunk]:
        for number in range(5):
            yield pb.Chunk(offset=number * 1000, data=request.artefact * 10)

    host.functions["FetchMaskedWeights"] = weights
    counters = Counters()
    request = pb.FetchMaskedWeightsRequest(artefact=SESSION)
    chunks = list(host.peer.download("FetchMaskedWeights", request, pb.Chunk, counters))
    assert [chunk.offset for chunk in chunks] == [0, 1000, 2000, 3000, 4000]
    assert counters.received_bytes == sum(chunk.ByteSize() for chunk in chunks)
    assert counters.received_messages == 5


def test_abandoned_download_ends_at_the_server(host: Any) -> None:
    ended = threading.Event()

    def weights(request: pb.FetchMaskedWeightsRequest, _: Call) -> Iterator[pb.Chunk]:
        try:
            for number in itertools.count():
                yield pb.Chunk(offset=number, data=bytes(100_000))
        finally:
            ended.set()

    host.functions["FetchMaskedWeights"] = weights
    request = pb.FetchMaskedWeightsRequest(artefact=SESSION)
    chunks = host.peer.download("FetchMaskedWeights", request, pb.Chunk, Counters())
    next(chunks)
    chunks.close()
    assert ended.wait(5)


@pytest.mark.parametrize("end", ["deadline", "closing"])
def test_a_download_that_stalls_ends(make_host: Callable[..., Any], end: str) -> None:
    host, release = make_host(), threading.Event()

    def weights(request: pb.FetchMaskedWeightsRequest, _: Call) -> Iterator[pb.Chunk]:
        yield pb.Chunk(offset=1)
        release.wait(10)

    host.functions["FetchMaskedWeights"] = weights
    deadline = 0.5 if end == "deadline" else 10.0
    chunks = host.peer.download(
        "FetchMaskedWeights", pb.FetchMaskedWeightsRequest(), pb.Chunk, Counters(), deadline
    )
    next(chunks)
    if end == "closing":
        threading.Timer(0.2, host.peer.close).start()
    began = time.monotonic()
    with pytest.raises(DeadlineError if end == "deadline" else ConnectionLostError):
        next(chunks)
    assert time.monotonic() - began < 5
    release.set()


def test_error_in_the_middle_of_a_download(host: Any) -> None:
    def weights(request: pb.FetchMaskedWeightsRequest, _: Call) -> Iterator[pb.Chunk]:
        yield pb.Chunk(offset=1)
        raise SessionStateError("no more")

    host.functions["FetchMaskedWeights"] = weights
    request = pb.FetchMaskedWeightsRequest()
    chunks = host.peer.download("FetchMaskedWeights", request, pb.Chunk, Counters())
    assert next(chunks).offset == 1
    with pytest.raises(SessionStateError, match="no more"):
        next(chunks)


def test_frames_are_dealt_as_frames(identities: dict[Role, Identity]) -> None:
    sent = [Frame(SESSION, gate, Kind.CORRECTION, 0, bytes(gate)) for gate in range(4)]
    only = frozenset({Role.MODEL_OWNER})
    handlers = {
        "Register": Handler(lambda *_: pb.RegisterReply(), only),
        "Reserve": Handler(lambda *_: pb.ReserveReply(), frozenset({Role.DATA_OWNER})),
        "Deal": Handler(lambda request, _: iter(sent), only),
    }
    server = Server(identities[Role.CRYPTO_PROVIDER], handlers)
    address = f"127.0.0.1:{server.start('127.0.0.1:0')}"
    counters = Counters()
    try:
        with Peer(Role.CRYPTO_PROVIDER, address, identities[Role.MODEL_OWNER]) as peer:
            dealt = list(peer.download_frames("Deal", pb.DealRequest(), counters))
        with (
            Peer(Role.CRYPTO_PROVIDER, address, identities[Role.DATA_OWNER]) as peer,
            pytest.raises(RoleError, match="Deal is for model-owner"),
        ):
            list(peer.download_frames("Deal", pb.DealRequest(), Counters()))
    finally:
        server.stop(0)
    assert dealt == sent
    assert counters.received_bytes == sum(len(frames.encode(frame)) for frame in sent)


def test_upload_of_a_header_and_frames(host: Any) -> None:
    received: list[Any] = []

    def prepare(requests: Iterator[pb.PrepareRequest], call: Call) -> pb.PrepareReply:
        received.append(messages.session_id(next(requests).header.session))
        received.extend(messages.to_frame(request.frame) for request in requests)
        return pb.PrepareReply(
            dealer_seconds=1.5, crypto_provider_to_model_owner_bytes=call.counters.received_bytes
        )

    host.functions["Prepare"] = prepare
    sent = [Frame(SESSION, gate, Kind.OFFLINE, 0, bytes(200_000)) for gate in range(10)]
    requests = [
        pb.PrepareRequest(header=pb.PrepareHeader(session=SESSION)),
        *(pb.PrepareRequest(frame=messages.from_frame(frame)) for frame in sent),
    ]
    counters = Counters()
    reply = host.peer.upload("Prepare", iter(requests), pb.PrepareReply, counters)
    assert received == [SESSION, *sent]
    assert counters.sent_bytes == sum(request.ByteSize() for request in requests)
    assert reply.crypto_provider_to_model_owner_bytes == counters.sent_bytes
    assert counters.sent_messages == 11


def test_what_the_uploading_side_raises_is_raised_to_it(host: Any) -> None:
    seen: list[Exception] = []

    def prepare(requests: Iterator[pb.PrepareRequest], _: Call) -> pb.PrepareReply:
        try:
            list(requests)
        except RadiopaqueError as error:
            seen.append(error)
            raise
        return pb.PrepareReply()

    def requests() -> Iterator[pb.PrepareRequest]:
        yield pb.PrepareRequest(header=pb.PrepareHeader(session=SESSION))
        raise SessionStateError("burnt here")

    host.functions["Prepare"] = prepare
    with pytest.raises(SessionStateError, match="burnt here"):
        host.peer.upload("Prepare", requests(), pb.PrepareReply, Counters())
    host.functions["ListModels"] = no_models
    list_models(host.peer)
    assert all(type(error) is ConnectionLostError for error in seen)


def test_server_may_refuse_an_upload_before_it_is_complete(host: Any) -> None:
    def prepare(requests: Iterator[pb.PrepareRequest], _: Call) -> pb.PrepareReply:
        next(requests)
        raise SessionStateError("known already")

    def requests() -> Iterator[pb.PrepareRequest]:
        frame = messages.from_frame(Frame(SESSION, 1, Kind.OFFLINE, 0, bytes(1 << 20)))
        for _ in range(1000):
            yield pb.PrepareRequest(frame=frame)

    host.functions["Prepare"] = prepare
    with pytest.raises(SessionStateError, match="known already"):
        host.peer.upload("Prepare", requests(), pb.PrepareReply, Counters())


def test_a_peer_that_is_back_is_found_within_seconds(identities: dict[Role, Identity]) -> None:
    """gRPC by itself waits longer after every failure, up to two minutes."""
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{reserved.getsockname()[1]}"
    names = pb.DESCRIPTOR.services_by_name["ModelOwner"].methods_by_name
    handler = Handler(no_models, frozenset({Role.DATA_OWNER}))
    server = Server(identities[Role.MODEL_OWNER], dict.fromkeys(names, handler))
    with Peer(Role.MODEL_OWNER, address, identities[Role.DATA_OWNER]) as peer:
        absent = time.monotonic() + 3.0
        while time.monotonic() < absent:
            with pytest.raises(PeerUnavailableError):
                list_models(peer)
            time.sleep(0.05)
        server.start(address)
        try:
            back = time.monotonic()
            found = False
            while not found and time.monotonic() - back < 1.8:
                try:
                    list_models(peer)
                    found = True
                except PeerUnavailableError:
                    time.sleep(0.05)
            assert found
        finally:
            server.stop(0)


def raw_call(host: Any, method: str, data: bytes) -> grpc.RpcError:
    options = [("grpc.ssl_target_name_override", Role.MODEL_OWNER.server_name)]
    credentials = client_credentials(host.identities[Role.DATA_OWNER])
    with grpc.secure_channel(host.address, credentials, options) as channel:
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary(f"/radiopaque.v1.ModelOwner/{method}")(
                data, timeout=5, metadata=versions.own()
            )
        return caught.value


def test_requests_are_decoded_strictly(host: Any) -> None:
    host.functions["FetchPlan"] = lambda *_: pb.FetchPlanReply()
    good = pb.FetchPlanRequest(name="n", version="1").SerializeToString()
    for bad in (good + b"\x18\x01", good + good, b"\x0a\x05abc", b"\x0a\x01\xff"):
        error = raw_call(host, "FetchPlan", bad)
        assert dict(error.trailing_metadata())["radiopaque-error"] == "MessageValueError", bad
    host.peer.call("FetchPlan", pb.FetchPlanRequest(), pb.FetchPlanReply, Counters())


def test_replies_are_decoded_strictly(host: Any) -> None:
    host.functions["ListModels"] = lambda *_: pb.Chunk(offset=7)
    with pytest.raises(MessageValueError, match="ListModelsReply"):
        list_models(host.peer)


def test_texts_over_the_limit(host: Any) -> None:
    """Before a handler or a client has them, in parts of a message, too."""
    named: list[str] = []

    def fetch(request: pb.FetchPlanRequest, _: Call) -> pb.FetchPlanReply:
        named.append(request.name)
        return pb.FetchPlanReply()

    def ask(name: str) -> None:
        host.peer.call("FetchPlan", pb.FetchPlanRequest(name=name), pb.FetchPlanReply, Counters())

    host.functions["FetchPlan"] = fetch
    ask("é" * 1000)
    with pytest.raises(MessageSizeError, match="has 1001 characters, 1000 are the most"):
        ask("é" * 1001)
    assert named == ["é" * 1000]
    host.functions["ListModels"] = lambda *_: pb.ListModelsReply(
        models=[pb.ModelEntry(name="n"), pb.ModelEntry(name="n", version="v" * 1001)]
    )
    with pytest.raises(MessageSizeError, match="in ListModelsReply has 1001 characters"):
        list_models(host.peer)


def test_messages_over_the_limit(host: Any) -> None:
    host.functions["FetchPlan"] = lambda *_: pb.FetchPlanReply(plan=bytes(5 << 20))
    with pytest.raises(MessageSizeError):
        host.peer.call(
            "FetchPlan", pb.FetchPlanRequest(name="x" * (5 << 20)), pb.FetchPlanReply, Counters()
        )
    with pytest.raises(MessageSizeError):
        host.peer.call("FetchPlan", pb.FetchPlanRequest(), pb.FetchPlanReply, Counters())
    error = raw_call(host, "FetchPlan", bytes(5 << 20))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_unknown_method_is_refused(host: Any) -> None:
    assert raw_call(host, "Steal", b"").code() is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize("role", [Role.CRYPTO_PROVIDER, Role.MODEL_OWNER])
def test_every_method_checks_the_role(host: Any, role: Role) -> None:
    def entered(*_: Any) -> None:
        raise AssertionError("the handler must not run")

    host.functions.update(dict.fromkeys(("ListModels", "Infer", "Prepare"), entered))
    host.functions["FetchMaskedWeights"] = entered
    with host.peer_of(host.identities[role]) as peer:
        with pytest.raises(RoleError, match=f"ListModels is for data-owner; .* the {role}"):
            list_models(peer)
        with pytest.raises(RoleError):
            peer.upload("Prepare", [pb.PrepareRequest()], pb.PrepareReply, Counters())
        with pytest.raises(RoleError):
            next(peer.download("FetchMaskedWeights", pb.Chunk(), pb.Chunk, Counters()))
        with pytest.raises(RoleError):
            peer.open("Infer").receive()


def test_a_table_with_a_method_missing_is_refused(identities: dict[Role, Identity]) -> None:
    with pytest.raises(ConfigError, match="Reserve"):
        Server(identities[Role.CRYPTO_PROVIDER], {})


def test_deadline_of_a_call(host: Any) -> None:
    release = threading.Event()

    def slow(*_: Any) -> pb.ListModelsReply:
        release.wait(10)
        return pb.ListModelsReply()

    host.functions["ListModels"] = slow
    with pytest.raises(DeadlineError, match="model owner"):
        list_models(host.peer, deadline_seconds=0.2)
    release.set()


def test_a_call_must_state_a_deadline_within_the_limit(make_host: Callable[..., Any]) -> None:
    host = make_host(deadline_seconds=100)
    host.functions["ListModels"] = no_models
    list_models(host.peer, deadline_seconds=100)
    with pytest.raises(MessageValueError, match="at most 100 s"):
        list_models(host.peer, deadline_seconds=1000)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_peer_down_names_address_and_remedy(identities: dict[Role, Identity]) -> None:
    address = f"127.0.0.1:{free_port()}"
    with (
        Peer(Role.MODEL_OWNER, address, identities[Role.DATA_OWNER]) as peer,
        pytest.raises(PeerUnavailableError, match=f"model owner at {address}; check that it is"),
    ):
        list_models(peer)


def test_unknown_host_is_unavailable(identities: dict[Role, Identity]) -> None:
    with (
        Peer(Role.MODEL_OWNER, "no-such-host.invalid:1", identities[Role.DATA_OWNER]) as peer,
        pytest.raises(PeerUnavailableError, match=r"no-such-host\.invalid"),
    ):
        list_models(peer, deadline_seconds=20)


def test_port_in_use(host: Any, identities: dict[Role, Identity]) -> None:
    roles = frozenset({Role.DATA_OWNER})
    names = ("ListModels", "FetchPlan", "FetchMaskedWeights", "Prepare", "Infer", "Audit")
    table = {name: Handler(no_models, roles) for name in names}
    with pytest.raises(ConfigError, match=host.address):
        Server(identities[Role.MODEL_OWNER], table).start(host.address)


MESSAGES_ALONE = "from grpc_health.v1 import health_pb2"
"""Of protobuf, without the library."""


def test_one_module_imports_grpc() -> None:
    """The cipher suites must be set before the library is loaded."""
    root = Path(tls.__file__).parents[2]
    parties = ("radiopaque", "crypto_provider", "model_owner", "data_owner")
    sources = [path for party in parties for path in (root / party).rglob("*.py")]
    importing = [
        path.name
        for path in sources
        if any(
            line.lstrip().startswith(("import grpc", "from grpc")) and line != MESSAGES_ALONE
            for line in path.read_text().splitlines()
        )
    ]
    assert importing == ["tls.py"]
