"""grpc.health.v1 of a real server, asked by our client and by the standard one; and draining."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from radiopaque.certificates import Role, Watch, init_directory
from radiopaque.errors import PeerUnavailableError, VersionError
from radiopaque.transport.grpc_client import Peer
from radiopaque.transport.tls import client_credentials, grpc, server_credentials
from radiopaque.versions import PROTOCOL
from radiopaque.wire.v1 import services_pb2 as pb
from tests.unit.transport.calls import list_models, no_models

SERVING = health_pb2.HealthCheckResponse.SERVING
NAME = "radiopaque.v1.ModelOwner"


@pytest.mark.parametrize("role", list(Role))
def test_every_role_may_ask(host: Any, role: Role) -> None:
    with host.peer_of(host.identities[role]) as peer:
        health = peer.check_health(5.0)
    assert health.serving
    assert health.version.protocol == PROTOCOL
    assert health.clock_seconds is not None
    assert abs(health.clock_seconds) <= health.round_trip_seconds + 0.01


def test_the_standard_client(host: Any) -> None:
    """It states no version of radiopaque's, and asks by name or for the whole server."""
    options = [("grpc.ssl_target_name_override", Role.MODEL_OWNER.server_name)]
    credentials = client_credentials(host.identities[Role.DATA_OWNER])
    with grpc.secure_channel(host.address, credentials, options) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        for name in ("", NAME):
            asked = health_pb2.HealthCheckRequest(service=name)
            assert stub.Check(asked, timeout=5).status == SERVING
        for name in ("radiopaque.v1.CryptoProvider", "x" * 1000):
            with pytest.raises(grpc.RpcError) as caught:
                stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=5)
            assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        watching = stub.Watch(health_pb2.HealthCheckRequest(), timeout=5)
        with pytest.raises(grpc.RpcError) as caught:
            next(watching)
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize("shown", ["nothing", "another authority's"])
def test_health_is_not_for_strangers(host: Any, tmp_path: Path, shown: str) -> None:
    """They trust this server; it does not know them."""
    stranger = init_directory(tmp_path / "other")[Role.DATA_OWNER]
    pair = (stranger.key.read_bytes(), stranger.certificate.read_bytes())
    authorities = host.identities[Role.DATA_OWNER].authorities
    credentials = grpc.ssl_channel_credentials(
        authorities, *(pair if shown == "another authority's" else (None, None))
    )
    options = [("grpc.ssl_target_name_override", Role.MODEL_OWNER.server_name)]
    with grpc.secure_channel(host.address, credentials, options) as channel:
        with pytest.raises(grpc.RpcError) as caught:
            health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=5)
        assert caught.value.code() in (
            grpc.StatusCode.UNAVAILABLE,
            grpc.StatusCode.UNAUTHENTICATED,
        )


class Held:
    """A call that a server is busy with until ``leave`` is set."""

    def __init__(self, host: Any) -> None:
        self.entered, self.leave = threading.Event(), threading.Event()
        host.functions["ListModels"] = self._wait

    def _wait(self, *_: Any) -> pb.ListModelsReply:
        self.entered.set()
        self.leave.wait(20)
        return pb.ListModelsReply(models=[pb.ModelEntry(name="held")])


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What the server logged of its end."""
    lines = [record.getMessage() for record in caplog.records]
    return [line for line in lines if line.startswith(("draining", "stopped"))]


def test_draining_ends_what_is_under_way_and_refuses_the_rest(
    make_host: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    host = make_host()
    held = Held(host)
    with ThreadPoolExecutor(2) as pool:
        call = pool.submit(list_models, host.peer)
        assert held.entered.wait(10)
        stopping = pool.submit(host.server.stop, 20.0)
        with host.peer_of(host.identities[Role.DATA_OWNER]) as late:
            deadline = time.monotonic() + 10
            while late.check_health(5.0).serving:
                assert time.monotonic() < deadline
            with pytest.raises(PeerUnavailableError, match="try again in a minute"):
                list_models(late)
        assert not call.done()
        assert not stopping.done()
        assert told(caplog) == ["draining role=model-owner count=1 seconds=20.0"]
        held.leave.set()
        assert call.result(10).models[0].name == "held"
        stopping.result(10)
    assert told(caplog)[1:] == ["stopped role=model-owner"]
    with pytest.raises(PeerUnavailableError, match="cannot reach"):
        fresh_call(host)


def test_what_outlasts_the_grace_is_cancelled(
    make_host: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    host = make_host()
    held = Held(host)
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(list_models, host.peer)
        assert held.entered.wait(10)
        host.server.stop(0.2)
        with pytest.raises(Exception, match=r"broke off|cannot reach"):
            call.result(10)
        held.leave.set()
    assert told(caplog) == [
        "draining role=model-owner count=1 seconds=0.2",
        "stopped, calls were broken off role=model-owner count=1",
    ]


def test_a_peer_with_its_share_of_calls_still_hears_how_the_server_is(
    make_host: Callable[..., Any],
) -> None:
    host = make_host(calls_per_peer=1)
    held = Held(host)
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(list_models, host.peer)
        assert held.entered.wait(10)
        assert host.peer.check_health(5.0).serving
        held.leave.set()
        call.result(10)
    host.functions["ListModels"] = no_models
    list_models(host.peer)


def fresh_call(host: Any) -> None:
    with Peer(Role.MODEL_OWNER, host.address, host.identities[Role.DATA_OWNER]) as peer:
        list_models(peer)


def test_a_party_that_is_too_old_to_answer(identities: Any) -> None:
    server = grpc.server(ThreadPoolExecutor(1))
    credentials = server_credentials(Watch(identities[Role.MODEL_OWNER]))
    port = server.add_secure_port("127.0.0.1:0", credentials)
    server.start()
    address = f"127.0.0.1:{port}"
    with (
        Peer(Role.MODEL_OWNER, address, identities[Role.DATA_OWNER]) as peer,
        pytest.raises(VersionError, match=r"upgrade the model owner$"),
    ):
        peer.check_health(5.0)
    server.stop(0).wait()
