"""What an observer of a server hears: every call once, with its bytes and how it ended."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from radiopaque import versions
from radiopaque.certificates import PeerIdentity, Role
from radiopaque.errors import AccessError, ResourceError, RoleError, VersionError
from radiopaque.transport.channel import Counters
from radiopaque.transport.grpc_server import Call
from radiopaque.transport.observer import ABANDONED, OK, Observer, Observers
from radiopaque.wire.frames import Frame, Kind
from radiopaque.wire.v1 import services_pb2 as pb
from tests.e2e.parties import until
from tests.unit.transport.calls import list_models, no_models


class Heard(Observer):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.begun_calls: list[str] = []
        self.ended_calls: list[tuple[str, str, int, int]] = []
        self.refused_calls: list[tuple[str, str]] = []

    def begun(self, method: str, call: Call) -> None:
        self.begun_calls.append(method)

    def ended(self, method: str, call: Call, outcome: str) -> None:
        counters = call.counters
        self.ended_calls.append((method, outcome, counters.received_bytes, counters.sent_bytes))

    def refused(self, method: str, outcome: str, peer: str) -> None:
        self.refused_calls.append((method, outcome))


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture
def observed(make_host: Callable[..., Any], heard: Heard) -> Any:
    return make_host(observer=Observers((Observer(), heard)), calls_per_peer=1)


def test_every_shape_of_method_with_its_bytes(observed: Any, heard: Heard) -> None:
    peer = observed.peer

    def prepare(requests: Iterator[Any], _: object) -> pb.PrepareReply:
        list(requests)
        return pb.PrepareReply(dealer_seconds=1.0)

    observed.functions.update(
        ListModels=lambda *_: pb.ListModelsReply(models=[pb.ModelEntry(name="x" * 50)]),
        Prepare=prepare,
        FetchMaskedWeights=lambda *_: iter([pb.Chunk(data=bytes(100))] * 3),
        Infer=lambda channel, _: channel.send(channel.receive()),
    )
    mine = [Counters(), Counters(), Counters()]
    peer.call("ListModels", pb.ListModelsRequest(), pb.ListModelsReply, mine[0])
    until(lambda: len(heard.ended_calls) == 1)
    requests = [pb.PrepareRequest(frame=pb.Frame(payload=bytes(200)))] * 2
    peer.upload("Prepare", requests, pb.PrepareReply, mine[1])
    until(lambda: len(heard.ended_calls) == 2)
    request = pb.FetchMaskedWeightsRequest(artefact=bytes(16))
    list(peer.download("FetchMaskedWeights", request, pb.Chunk, mine[2]))
    until(lambda: len(heard.ended_calls) == 3)
    channel = peer.open("Infer")
    channel.send(Frame(bytes(16), 0, Kind.START))
    channel.receive()
    channel.close()
    until(lambda: len(heard.ended_calls) == 4)
    methods = ["ListModels", "Prepare", "FetchMaskedWeights", "Infer"]
    assert heard.begun_calls == methods
    assert heard.ended_calls == [
        (method, OK, counters.sent_bytes, counters.received_bytes)
        for method, counters in zip(methods, [*mine, channel.counters], strict=True)
    ]
    assert all(counters.sent_bytes + counters.received_bytes > 20 for counters in mine)


def test_failures_and_refusals(
    observed: Any, heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise ResourceError("no")

    def crash(*_: Any) -> None:
        raise RuntimeError("no text of this leaves")

    for function, expected in ((fail, "ResourceError"), (crash, "RadiopaqueError")):
        observed.functions["ListModels"] = function
        with pytest.raises(Exception, match=r"no|the model owner failed inside"):
            list_models(observed.peer)
        until(lambda expected=expected: heard.ended_calls[-1:] == [("ListModels", expected, 0, 0)])
    assert heard.refused_calls == []
    provider = observed.identities[Role.CRYPTO_PROVIDER]
    with observed.peer_of(provider) as peer, pytest.raises(RoleError):
        list_models(peer)
    own = versions.own()
    monkeypatch.setattr(versions, "own", lambda: own[1:])
    with pytest.raises(VersionError):
        list_models(observed.peer)
    assert heard.refused_calls == [("ListModels", "RoleError"), ("ListModels", "VersionError")]
    assert len(heard.ended_calls) == len(heard.begun_calls) == 2


def test_a_caller_that_goes_away(observed: Any, heard: Heard) -> None:
    entered = threading.Event()

    def infer(channel: Any, _: Call) -> None:
        channel.receive()
        entered.set()
        # the end of the stream may be there before the news that the call was cancelled
        until(lambda: not channel._context.is_active())

    observed.functions["Infer"] = infer
    channel = observed.peer.open("Infer")
    channel.send(Frame(bytes(16), 0, Kind.START))
    assert entered.wait(10)
    channel.close(ResourceError("gone"))
    until(lambda: bool(heard.ended_calls))
    assert heard.ended_calls[0][:2] == ("Infer", ABANDONED)


def test_health_checks_are_not_calls(observed: Any, heard: Heard) -> None:
    assert observed.peer.check_health(5.0).serving
    observed.functions["ListModels"] = no_models
    list_models(observed.peer)
    until(lambda: len(heard.ended_calls) == 1)
    assert heard.begun_calls == ["ListModels"]


def test_a_caller_that_is_not_admitted_is_refused_before_anything_begins(
    make_host: Callable[..., Any], heard: Heard
) -> None:
    def admit(caller: PeerIdentity) -> None:
        raise AccessError(f"{caller} is not on the list")

    host = make_host(admit=admit, observer=heard)
    with pytest.raises(AccessError, match="data-owner 'data-owner' is not on the list"):
        list_models(host.peer)
    until(lambda: heard.refused_calls == [("ListModels", "AccessError")])
    assert (heard.begun_calls, heard.ended_calls) == ([], [])
