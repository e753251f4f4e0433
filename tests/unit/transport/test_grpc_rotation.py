"""What changes while a party runs, over real sockets: certificates, authorities, revocations."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from radiopaque.certificates import CertificateFiles, Identity, Role, init_directory, issue, revoke
from radiopaque.certificates import identity as identity_module
from radiopaque.errors import AuthenticationError, ConnectionLostError
from radiopaque.transport.grpc_client import Peer
from radiopaque.transport.grpc_server import Call
from radiopaque.transport.tls import grpc
from radiopaque.wire.v1 import services_pb2 as pb
from tests.unit.certificates.hospital import Authority, root
from tests.unit.transport.calls import list_models, no_models
from tests.unit.transport.conftest import Host, load

Parties = dict[Role, CertificateFiles]
Refused = (AuthenticationError, ConnectionLostError)
"""A server can refuse a client's certificate only after the handshake, as a closed connection."""


@pytest.fixture
def authority(tmp_path: Path) -> Path:
    """A folder with an authority and certificates that a test may change."""
    init_directory(tmp_path / "pki")
    return tmp_path / "pki"


def parties(authority: Path, **more: Any) -> Parties:
    return {
        role: CertificateFiles(
            authority / f"{role}.crt", authority / f"{role}.key", authority / "ca.crt", **more
        )
        for role in Role
    }


def presented(
    port: int, ca: Path, server_name: str = Role.MODEL_OWNER.server_name
) -> x509.Certificate:
    """The certificate that a server shows to a new connection."""
    context = ssl.create_default_context(cafile=str(ca))
    with (
        socket.create_connection(("127.0.0.1", port), timeout=5) as connection,
        context.wrap_socket(connection, server_hostname=server_name) as secure,
    ):
        return x509.load_der_x509_certificate(secure.getpeercert(binary_form=True) or b"")


def renew(authority: Path, role: Role, name: str | None = None) -> None:
    """Another certificate in the place of a party's, key first, as an operator's script would."""
    folder = authority.parent / "renewed"
    folder.mkdir(exist_ok=True)
    for path in folder.iterdir():
        path.unlink()
    made = issue(authority, role, name or str(role), output=folder)
    made.key.rename(authority / f"{role}.key")
    made.certificate.rename(authority / f"{role}.crt")


@contextmanager
def started(loaded: dict[Role, Identity]) -> Iterator[Host]:
    host = Host(loaded)
    host.functions["ListModels"] = no_models
    try:
        yield host
    finally:
        host.close()


def serial(path: Path) -> int:
    return x509.load_pem_x509_certificate(path.read_bytes()).serial_number


def test_a_server_shows_its_new_certificate_to_new_connections(
    authority: Path, hosting: Callable[[Parties], Host]
) -> None:
    files = parties(authority)
    host = hosting(files)
    list_models(host.peer)
    before = serial(files[Role.MODEL_OWNER].certificate)
    assert presented(host.port, authority / "ca.crt").serial_number == before
    renew(authority, Role.MODEL_OWNER)
    after = serial(files[Role.MODEL_OWNER].certificate)
    assert before != after
    assert presented(host.port, authority / "ca.crt").serial_number == after
    list_models(host.peer)
    with host.peer_of(load(files[Role.DATA_OWNER], Role.DATA_OWNER)) as peer:
        list_models(peer)


def test_a_half_replaced_pair_is_not_shown(
    authority: Path, hosting: Callable[[Parties], Host]
) -> None:
    host = hosting(parties(authority))
    before = presented(host.port, authority / "ca.crt").serial_number
    key = authority / "model-owner.key"
    old = key.read_bytes()
    renew(authority, Role.MODEL_OWNER)
    new, after = key.read_bytes(), serial(authority / "model-owner.crt")
    key.write_bytes(old)
    assert presented(host.port, authority / "ca.crt").serial_number == before
    list_models(host.peer)
    key.write_bytes(new)
    assert presented(host.port, authority / "ca.crt").serial_number == after
    # a client's, whose connection is there
    key = authority / "data-owner.key"
    old = key.read_bytes()
    renew(authority, Role.DATA_OWNER)
    new = key.read_bytes()
    for pair in (old, new):
        key.write_bytes(pair)
        list_models(host.peer)


@pytest.mark.parametrize("damage", ["gone", "open", "another name"])
def test_files_that_do_not_serve_are_not_taken_over(
    authority: Path, hosting: Callable[[Parties], Host], damage: str
) -> None:
    host = hosting(parties(authority))
    before = presented(host.port, authority / "ca.crt").serial_number
    if damage == "gone":
        (authority / "model-owner.crt").unlink()
    else:
        renew(authority, Role.MODEL_OWNER, "someone-else" if damage == "another name" else None)
        (authority / "model-owner.key").chmod(0o644 if damage == "open" else 0o600)
    assert presented(host.port, authority / "ca.crt").serial_number == before
    list_models(host.peer)


def test_a_client_shows_its_new_certificate(
    authority: Path, hosting: Callable[[Parties], Host]
) -> None:
    host = hosting(parties(authority))
    seen: list[int] = []
    service: Any = host.server._admission

    class Looking:
        def check(self, certificate: x509.Certificate, _: str) -> None:
            seen.append(certificate.serial_number)

    service.watch = Looking()
    list_models(host.peer)
    before = serial(authority / "data-owner.crt")
    renew(authority, Role.DATA_OWNER)
    list_models(host.peer)
    list_models(host.peer)
    after = serial(authority / "data-owner.crt")
    assert seen == [before, after, after]
    assert before != after


def test_a_new_authority_is_trusted_without_a_restart(
    authority: Path, tmp_path: Path, hosting: Callable[[Parties], Host]
) -> None:
    host = hosting(parties(authority))
    init_directory(tmp_path / "other")
    both = (tmp_path / "other" / "ca.crt").read_bytes() + (authority / "ca.crt").read_bytes()
    (tmp_path / "bundle.pem").write_bytes(both)
    stranger = replace(parties(tmp_path / "other")[Role.DATA_OWNER], ca=tmp_path / "bundle.pem")
    with host.peer_of(load(stranger, Role.DATA_OWNER)) as peer, pytest.raises(Refused):
        list_models(peer)
    (authority / "ca.crt").write_bytes(both)
    with host.peer_of(load(stranger, Role.DATA_OWNER)) as peer:
        list_models(peer)


# Revocation, in both directions.


def test_a_clinic_that_is_revoked_is_refused_from_its_next_call(
    authority: Path, hosting: Callable[[Parties], Host]
) -> None:
    """On the connection that it has, and on new ones."""
    other = issue(authority, Role.DATA_OWNER, "other")
    crl = revoke(authority, other.certificate)
    files = parties(authority)
    host = hosting({**files, Role.MODEL_OWNER: replace(files[Role.MODEL_OWNER], crl=crl)})
    list_models(host.peer)
    revoke(authority, files[Role.DATA_OWNER].certificate)
    with pytest.raises(AuthenticationError, match="data-owner' was revoked by"):
        list_models(host.peer)
    with (
        host.peer_of(load(files[Role.DATA_OWNER], Role.DATA_OWNER)) as peer,
        pytest.raises(AuthenticationError, match="was revoked"),
    ):
        list_models(peer)


@pytest.mark.parametrize("revoked", [Role.DATA_OWNER, Role.MODEL_OWNER])
def test_a_list_that_is_replaced_while_a_party_starts(authority: Path, revoked: Role) -> None:
    """Minutes may pass between the reading of a party's files and its first call."""
    other = issue(authority, Role.DATA_OWNER, "other")
    crl = revoke(authority, other.certificate)
    loaded = {role: load(one, role) for role, one in parties(authority, crl=crl).items()}
    revoke(authority, authority / f"{revoked}.crt")
    with started(loaded) as host, pytest.raises(AuthenticationError, match="was revoked by"):
        list_models(host.peer)


def test_a_list_that_is_replaced_while_it_is_read(
    authority: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = parties(authority)
    crl = revoke(authority, issue(authority, Role.DATA_OWNER, "other").certificate)
    loaded = {role: load(one, role) for role, one in files.items()}
    reading = identity_module.read

    def slow(path: Path, *limit: int) -> bytes:
        data = reading(path, *limit)
        if path == crl:
            revoke(authority, files[Role.DATA_OWNER].certificate)
        return data

    with monkeypatch.context() as patched:
        patched.setattr(identity_module, "read", slow)
        server = load(replace(files[Role.MODEL_OWNER], crl=crl), Role.MODEL_OWNER)
    with (
        started({**loaded, Role.MODEL_OWNER: server}) as host,
        pytest.raises(AuthenticationError, match="was revoked by"),
    ):
        list_models(host.peer)


def test_a_certificate_that_is_replaced_while_a_server_starts(authority: Path) -> None:
    files = parties(authority)
    loaded = {role: load(one, role) for role, one in files.items()}
    renew(authority, Role.MODEL_OWNER)
    with started(loaded) as host:
        shown = presented(host.port, authority / "ca.crt").serial_number
    assert shown == serial(files[Role.MODEL_OWNER].certificate)


def test_a_list_that_ends_while_a_server_runs_refuses_all(
    authority: Path, hosting: Callable[[Parties], Host], monkeypatch: pytest.MonkeyPatch
) -> None:
    crl = revoke(authority, issue(authority, Role.DATA_OWNER, "other").certificate, days=1)
    files = parties(authority)
    host = hosting({**files, Role.MODEL_OWNER: replace(files[Role.MODEL_OWNER], crl=crl)})
    list_models(host.peer)
    from datetime import datetime, timedelta

    from radiopaque.certificates import revocation

    class Later(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return datetime.now(tz) + timedelta(days=2)

    monkeypatch.setattr(revocation, "datetime", Later)
    with pytest.raises(AuthenticationError, match="ended on"):
        list_models(host.peer)


def test_a_damaged_list_does_not_replace_a_good_one(
    authority: Path, hosting: Callable[[Parties], Host]
) -> None:
    files = parties(authority)
    crl = revoke(authority, files[Role.DATA_OWNER].certificate)
    host = hosting({**files, Role.MODEL_OWNER: replace(files[Role.MODEL_OWNER], crl=crl)})
    crl.write_bytes(b"")
    with pytest.raises(AuthenticationError, match="was revoked"):
        list_models(host.peer)
    crl.unlink()
    with pytest.raises(AuthenticationError, match="was revoked"):
        list_models(host.peer)


def test_a_clinic_does_not_talk_to_a_server_that_is_revoked(
    authority: Path, hosting: Callable[[Parties], Host]
) -> None:
    other = issue(authority, Role.DATA_OWNER, "other")
    crl = revoke(authority, other.certificate)
    files = parties(authority)
    host = hosting(files)
    clinic = load(replace(files[Role.DATA_OWNER], crl=crl), Role.DATA_OWNER)
    called: list[int] = []

    def noted(request: pb.ListModelsRequest, call: Call) -> pb.ListModelsReply:
        called.append(1)
        return no_models(request, call)

    host.functions["ListModels"] = noted
    with host.peer_of(clinic) as peer:
        list_models(peer)
        revoke(authority, files[Role.MODEL_OWNER].certificate)
        with pytest.raises(AuthenticationError, match="model-owner' was revoked"):
            list_models(peer)
        assert called == [1]
        # the vendor's new certificate is found without a restart
        renew(authority, Role.MODEL_OWNER)
        list_models(peer)
    assert called == [1, 1]


def test_the_server_that_was_looked_at_is_the_one_that_is_called(
    authority: Path, hosting: Callable[[Parties], Host], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody who relays the first handshake cannot answer the second with another key."""
    issue(authority, Role.MODEL_OWNER, "stolen")
    crl = revoke(authority, authority / "stolen.crt")
    files = parties(authority)
    thief = {
        **files,
        Role.MODEL_OWNER: CertificateFiles(
            authority / "stolen.crt", authority / "stolen.key", authority / "ca.crt"
        ),
    }
    honest, stolen = hosting(files), hosting(thief)
    clinic = load(replace(files[Role.DATA_OWNER], crl=crl), Role.DATA_OWNER)
    connect = socket.create_connection

    def relayed(address: tuple[str, int], timeout: float) -> socket.socket:
        assert address[1] == stolen.port
        return connect((address[0], honest.port), timeout)

    monkeypatch.setattr(socket, "create_connection", relayed)
    with stolen.peer_of(clinic) as peer, pytest.raises(Refused):
        list_models(peer)
    # without lists the stolen certificate would have done
    with stolen.peer_of(load(files[Role.DATA_OWNER], Role.DATA_OWNER)) as peer:
        list_models(peer)


def test_a_hospitals_authority_with_an_intermediate(
    tmp_path: Path, authority: Path, hosting: Callable[[Parties], Host]
) -> None:
    """RSA root, P-384 intermediate, lists of both: a whole call, and a revoked one."""
    from radiopaque.certificates import request

    above: Authority = root()
    issuing = above.below("issuing")
    ca = tmp_path / "bundle.pem"
    ca.write_bytes(above.pem + issuing.pem)
    crl = tmp_path / "lists.pem"
    crl.write_bytes(above.revoking() + issuing.revoking())
    files: Parties = {}
    for role in Role:
        made = request(tmp_path, role, str(role))
        certificate = tmp_path / f"{role}.crt"
        certificate.write_bytes(issuing.sign(made.request.read_bytes()))
        files[role] = CertificateFiles(certificate, made.key, ca, crl)
    host = hosting(files)
    list_models(host.peer)
    pem = files[Role.DATA_OWNER].certificate.read_bytes()
    crl.write_bytes(above.revoking() + issuing.revoking([pem]))
    with pytest.raises(AuthenticationError, match="was revoked"):
        list_models(host.peer)


# No plaintext.


def test_nobody_is_served_without_tls_on_any_address(
    authority: Path, make_host: Callable[..., Host]
) -> None:
    """Nor on the addresses that other machines reach."""
    from radiopaque.transport.grpc_server import Handler, Server

    files = parties(authority)
    table = {
        name: Handler(no_models, frozenset({Role.DATA_OWNER}))
        for name in ("ListModels", "FetchPlan", "FetchMaskedWeights", "Prepare", "Infer", "Audit")
    }
    server = Server(load(files[Role.MODEL_OWNER], Role.MODEL_OWNER), table)
    port = server.start("0.0.0.0:0")
    try:
        for address in {"127.0.0.1", own_address()}:
            with grpc.insecure_channel(f"{address}:{port}") as channel:
                for method in (
                    "radiopaque.v1.ModelOwner/ListModels",
                    "grpc.health.v1.Health/Check",
                ):
                    with pytest.raises(grpc.RpcError) as caught:
                        channel.unary_unary(f"/{method}")(b"", timeout=5)
                    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            clinic = load(files[Role.DATA_OWNER], Role.DATA_OWNER)
            with Peer(Role.MODEL_OWNER, f"{address}:{port}", clinic) as peer:
                list_models(peer)
    finally:
        server.stop(0)


def own_address() -> str:
    """An address of this machine that others reach, if it has one."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing
        except OSError:
            return "127.0.0.1"
        return str(probe.getsockname()[0])


def test_no_code_opens_a_port_or_a_channel_without_tls() -> None:
    folder = Path(__file__).parents[3]
    for package in ("radiopaque", "crypto_provider", "model_owner", "data_owner"):
        for path in (folder / package).rglob("*.py"):
            text = path.read_text()
            assert "insecure" not in text, path
