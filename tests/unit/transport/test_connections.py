"""What strangers hold of a server who connect and show no certificate."""

from __future__ import annotations

import os
import resource
import socket
from collections.abc import Callable, Iterator

import pytest

from radiopaque.certificates import Role
from radiopaque.errors import PeerUnavailableError
from radiopaque.transport import grpc_server
from radiopaque.transport.tls import trusting_only
from tests.unit.transport.calls import list_models, no_models
from tests.unit.transport.conftest import Host

MOST = 20


@pytest.fixture
def bounded(make_host: Callable[..., Host], monkeypatch: pytest.MonkeyPatch) -> Host:
    monkeypatch.setattr(grpc_server, "_MOST_CONNECTIONS", MOST)
    host = make_host()
    host.functions["ListModels"] = no_models
    list_models(host.peer)
    return host


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture
def strangers() -> Iterator[list[socket.socket]]:
    opened: list[socket.socket] = []
    yield opened
    for one in opened:
        one.close()


def crowd(host: Host, opened: list[socket.socket], count: int) -> None:
    opened.extend(
        socket.create_connection(("127.0.0.1", host.port), timeout=10) for _ in range(count)
    )


def test_beyond_so_many_connections_others_are_closed(
    bounded: Host, strangers: list[socket.socket]
) -> None:
    """Who is connected is served on; who is not hears of a peer that is away, and tries again."""
    before = descriptors()
    crowd(bounded, strangers, 3 * MOST)
    closed = [one for one in strangers[MOST:] if not one.recv(1)]
    assert len(closed) == 2 * MOST
    assert descriptors() - before <= 3 * MOST + MOST
    list_models(bounded.peer)
    clinic = bounded.identities[Role.DATA_OWNER]
    with bounded.peer_of(clinic) as peer:
        with pytest.raises(PeerUnavailableError, match="Handshake read failed"):
            list_models(peer)
        for one in strangers:
            one.close()
        peer.await_back(20)
        list_models(peer)


def test_a_server_that_has_no_room_is_no_server_without_a_certificate(
    bounded: Host, strangers: list[socket.socket]
) -> None:
    crowd(bounded, strangers, 2 * MOST)
    clinic = bounded.identities[Role.DATA_OWNER]
    with pytest.raises(PeerUnavailableError, match="cannot reach the model owner"):
        trusting_only(clinic, bounded.address, Role.MODEL_OWNER.server_name, Role.MODEL_OWNER, 10.0)


def test_silent_connections_do_not_stay(
    make_host: Callable[..., Host], monkeypatch: pytest.MonkeyPatch, strangers: list[socket.socket]
) -> None:
    monkeypatch.setattr(grpc_server, "_HANDSHAKE_SECONDS", 1.0)
    host = make_host()
    crowd(host, strangers, 3)
    assert [one.recv(1) for one in strangers] == [b""] * 3


def test_half_of_the_files_are_left_for_other_things(monkeypatch: pytest.MonkeyPatch) -> None:
    for files, most in ((200, 100), (4096, 1000), (resource.RLIM_INFINITY, 1000)):
        monkeypatch.setattr(resource, "getrlimit", lambda _, soft=files: (soft, soft))
        assert dict(grpc_server._bounds())["grpc.max_allowed_incoming_connections"] == most
