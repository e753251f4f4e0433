"""Clients that ask for a host's name, which says nothing of a server's role, over real sockets."""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from radiopaque.certificates import (
    CertificateFiles,
    Identity,
    PeerIdentity,
    Role,
    Watch,
    authority,
    init_directory,
    issue,
    request,
    revoke,
)
from radiopaque.errors import AuthenticationError, ConnectionLostError, RoleError
from radiopaque.transport import grpc_server, tls
from radiopaque.transport.grpc_client import Peer
from radiopaque.wire.v1 import services_pb2 as pb
from tests.unit.certificates.hospital import root
from tests.unit.transport.calls import list_models, no_models
from tests.unit.transport.conftest import METHODS, Host, load

HOST = "localhost"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An authority and certificates; those of both serving roles carry the host's name."""
    init_directory(tmp_path / "pki")
    return tmp_path / "pki"


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """For how many seconds each look at a certificate may wait."""
    seen: list[Any] = []
    connect = socket.create_connection

    def counted(address: Any, timeout: float) -> socket.socket:
        seen.append(timeout)
        return connect(address, timeout)

    monkeypatch.setattr(socket, "create_connection", counted)
    return seen


def parties(folder: Path) -> dict[Role, CertificateFiles]:
    return {
        role: CertificateFiles(folder / f"{role}.crt", folder / f"{role}.key", folder / "ca.crt")
        for role in Role
    }


@pytest.mark.parametrize("lists", [False, True])
def test_another_serving_party_with_that_name_is_not_called(
    folder: Path, hosting: Callable[..., Host], lists: bool
) -> None:
    """What a clinic tells the crypto provider would give the model owner its image."""
    files = parties(folder)
    host = hosting(files)
    other = issue(folder, Role.DATA_OWNER, "other")
    crl = revoke(folder, other.certificate) if lists else None
    clinic = load(replace(files[Role.DATA_OWNER], crl=crl), Role.DATA_OWNER)
    with (
        Peer(Role.CRYPTO_PROVIDER, host.address, clinic, HOST) as peer,
        pytest.raises(RoleError, match="a crypto provider is due at"),
    ):
        peer.check_health(5.0)
    with host.peer_of(clinic, server_name=HOST) as peer:
        list_models(peer)


def test_another_clinic_with_that_name_is_not_called(
    folder: Path, tmp_path: Path, hosting: Callable[..., Host], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of an authority that grants what is asked of it; our own command does not ask for it."""
    files = parties(folder)
    hospital = root()
    monkeypatch.setattr(Role, "serves", True)
    made = request(tmp_path, Role.DATA_OWNER, "posing", [HOST])
    monkeypatch.undo()
    certificate = tmp_path / "posing.crt"
    certificate.write_bytes(hospital.sign(made.request.read_bytes()))
    bundle = tmp_path / "bundle.pem"
    bundle.write_bytes(hospital.pem + (folder / "ca.crt").read_bytes())
    clinic = load(replace(files[Role.DATA_OWNER], ca=bundle), Role.DATA_OWNER)
    posing = replace(
        load(CertificateFiles(certificate, made.key, bundle), Role.DATA_OWNER),
        role=Role.MODEL_OWNER,
        files=None,
    )
    server = grpc_server.Server(posing, serving_all())
    port = server.start("127.0.0.1:0")
    try:
        with (
            Peer(Role.MODEL_OWNER, f"127.0.0.1:{port}", clinic, HOST) as peer,
            pytest.raises(RoleError, match="the certificate there is of the data-owner 'posing'"),
        ):
            list_models(peer)
    finally:
        server.stop(0)


def serving_all() -> dict[str, grpc_server.Handler]:
    handler = grpc_server.Handler(no_models, frozenset(Role))
    return dict.fromkeys(METHODS, handler)


def test_a_certificate_of_a_clinic_is_good_for_no_server(
    folder: Path, hosting: Callable[..., Host]
) -> None:
    """As `certs issue` makes it, whatever name is asked for: it has no server's key usage."""
    files = parties(folder)
    names = authority._alternative_names
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(
            authority,
            "_alternative_names",
            lambda _, hosts: names(Role.MODEL_OWNER, [HOST, *hosts]),
        )
        posing = issue(folder, Role.DATA_OWNER, "posing")
    host = hosting({**files, Role.MODEL_OWNER: posing})
    clinic = load(files[Role.DATA_OWNER], Role.DATA_OWNER)
    for name in (None, HOST):
        with host.peer_of(clinic, server_name=name) as peer, pytest.raises(AuthenticationError):
            list_models(peer)


def test_a_certificate_is_looked_at_once(
    folder: Path, hosting: Callable[..., Host], looks: list[Any]
) -> None:
    files = parties(folder)
    host = hosting(files)
    clinic = load(files[Role.DATA_OWNER], Role.DATA_OWNER)
    looks.clear()  # a server's own, before it serves
    with host.peer_of(clinic, server_name=HOST) as peer:
        for _ in range(3):
            list_models(peer, deadline_seconds=100.0)
    assert looks == [5.0]
    with host.peer_of(clinic) as peer:
        list_models(peer)
    assert looks == [5.0]


def test_a_new_certificate_of_this_party_is_shown_all_the_same(
    folder: Path, tmp_path: Path, hosting: Callable[..., Host], looks: list[Any]
) -> None:
    files = parties(folder)
    host = hosting(files)
    names: list[str] = []

    def noted(request: pb.ListModelsRequest, call: grpc_server.Call) -> pb.ListModelsReply:
        names.append(call.peer.name)
        return no_models(request, call)

    host.functions["ListModels"] = noted
    own = files[Role.DATA_OWNER]
    with host.peer_of(load(own, Role.DATA_OWNER), server_name=HOST) as peer:
        list_models(peer)
        revoked = revoke(folder, own.certificate)
        host.server._admission.watch = Watch(
            load(replace(files[Role.MODEL_OWNER], crl=revoked), Role.MODEL_OWNER)
        )
        with pytest.raises(AuthenticationError, match="was revoked"):
            list_models(peer)
        renewed = issue(folder, Role.DATA_OWNER, "data-owner", output=tmp_path)
        renewed.key.replace(own.key)
        renewed.certificate.replace(own.certificate)
        list_models(peer)
    assert names == ["data-owner"] * 2


def test_the_server_that_was_looked_at_is_the_one_that_is_called(
    folder: Path, hosting: Callable[..., Host], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another party of the same name that relays the look cannot answer with its own key."""
    files = parties(folder)
    honest = hosting(files)
    posing = replace(
        load(files[Role.CRYPTO_PROVIDER], Role.CRYPTO_PROVIDER), role=Role.MODEL_OWNER, files=None
    )
    server = grpc_server.Server(posing, serving_all())
    port = server.start("127.0.0.1:0")
    connect = socket.create_connection
    monkeypatch.setattr(
        socket,
        "create_connection",
        lambda address, timeout: connect((address[0], honest.port), timeout),
    )
    clinic = load(files[Role.DATA_OWNER], Role.DATA_OWNER)
    try:
        with (
            Peer(Role.MODEL_OWNER, f"127.0.0.1:{port}", clinic, HOST) as peer,
            pytest.raises(AuthenticationError),
        ):
            list_models(peer)
    finally:
        server.stop(0)


def restarted(host: Host, identity: Identity) -> grpc_server.Server:
    """The server gone, and another on its port that shows ``identity``."""
    host.server.stop(0)
    server = grpc_server.Server(identity, serving_all())
    server.start(host.address)
    return server


def test_a_certificate_that_was_replaced_is_taken_at_the_next_try(
    folder: Path, tmp_path: Path, hosting: Callable[..., Host]
) -> None:
    """The first call after a lost connection says so, with an error that is tried again."""
    files = parties(folder)
    host = hosting(files)
    clinic = load(files[Role.DATA_OWNER], Role.DATA_OWNER)
    renewed = issue(folder, Role.MODEL_OWNER, "vendor", output=tmp_path)
    with host.peer_of(clinic, server_name=HOST) as peer:
        list_models(peer)
        server = restarted(host, load(renewed, Role.MODEL_OWNER))
        try:
            with pytest.raises(ConnectionLostError, match="has replaced its certificate"):
                list_models(peer)
            # what else was under way fails for the same reason
            other = peer._trust.explain(failure(peer))
            assert isinstance(other, ConnectionLostError)
            list_models(peer)
        finally:
            server.stop(0)


def failure(peer: Peer) -> AuthenticationError:
    """What a call over the channel that is there ends with."""
    try:
        check = peer._channels[0].unary_unary("/grpc.health.v1.Health/Check")
        check(b"", timeout=5.0)
    except tls.grpc.RpcError as error:
        from radiopaque.transport.status import from_rpc_error

        typed = from_rpc_error(error, "peer", peer.address)
        assert isinstance(typed, AuthenticationError)
        return typed
    raise AssertionError("the certificate that was replaced did")


def test_a_server_in_another_role_in_its_place_is_named(
    folder: Path, hosting: Callable[..., Host]
) -> None:
    files = parties(folder)
    host = hosting(files)
    posing = load(files[Role.CRYPTO_PROVIDER], Role.CRYPTO_PROVIDER)
    with host.peer_of(load(files[Role.DATA_OWNER], Role.DATA_OWNER), server_name=HOST) as peer:
        list_models(peer)
        server = restarted(host, replace(posing, role=Role.MODEL_OWNER, files=None))
        try:
            for _ in range(2):
                with pytest.raises(RoleError, match="is of the crypto-provider"):
                    list_models(peer)
        finally:
            server.stop(0)


def test_a_server_that_refuses_this_party_is_not_taken_for_another(
    folder: Path, hosting: Callable[..., Host]
) -> None:
    files = parties(folder)
    host = hosting(files)

    def refusing(*_: object) -> None:
        raise AuthenticationError(f"{PeerIdentity(Role.DATA_OWNER, 'data-owner')} was revoked")

    with host.peer_of(load(files[Role.DATA_OWNER], Role.DATA_OWNER), server_name=HOST) as peer:
        list_models(peer)
        host.functions["ListModels"] = refusing
        with pytest.raises(AuthenticationError, match="was revoked"):
            list_models(peer)


def test_waiting_for_a_peer_that_is_away_raises_nothing(
    folder: Path, hosting: Callable[..., Host]
) -> None:
    """Between attempts of a submission: the next attempt says what is wrong."""
    files = parties(folder)
    host = hosting(files)
    host.server.stop(0)
    with host.peer_of(load(files[Role.DATA_OWNER], Role.DATA_OWNER), server_name=HOST) as peer:
        peer.await_back(0.1)
