"""Who may speak to whom over gRPC: certificates, roles, authorities and the version of TLS."""

from __future__ import annotations

import socket
import ssl
import subprocess
import sys
import threading
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from radiopaque.certificates import (
    CertificateFiles,
    Identity,
    Role,
    identity,
    init_directory,
    load_identity,
)
from radiopaque.errors import (
    AuthenticationError,
    ConnectionLostError,
    RadiopaqueError,
)
from radiopaque.transport.channel import Counters
from radiopaque.transport.grpc_client import Peer
from radiopaque.transport.tls import grpc
from radiopaque.wire.v1 import services_pb2 as pb
from tests.unit.transport.calls import list_models, no_models


def test_server_in_another_role_is_refused(host: Any) -> None:
    with (
        Peer(Role.CRYPTO_PROVIDER, host.address, host.identities[Role.DATA_OWNER]) as peer,
        pytest.raises(AuthenticationError, match="crypto provider"),
    ):
        peer.call("Reserve", pb.ReserveRequest(), pb.ReserveReply, Counters())
    host.functions["ListModels"] = no_models
    list_models(host.peer)


def test_server_name_of_a_host_can_be_asked_for(host: Any) -> None:
    host.functions["ListModels"] = no_models
    data_owner = host.identities[Role.DATA_OWNER]
    with host.peer_of(data_owner, server_name="localhost") as peer:
        list_models(peer)
    with (
        host.peer_of(data_owner, server_name="vendor.example") as peer,
        pytest.raises(AuthenticationError),
    ):
        list_models(peer)


def test_another_authority_is_refused_by_both_sides(
    host: Any, tmp_path: Path, certificate_files: dict[Role, CertificateFiles]
) -> None:
    other = init_directory(tmp_path / "other")[Role.DATA_OWNER]
    stranger = load_identity(other.certificate, other.key, other.ca, Role.DATA_OWNER)
    with host.peer_of(stranger) as peer, pytest.raises(AuthenticationError, match="certificates"):
        list_models(peer)
    trusting = Identity(
        stranger.role,
        stranger.name,
        stranger.not_after,
        stranger.certificate,
        stranger.private_key,
        certificate_files[Role.DATA_OWNER].ca.read_bytes(),
    )
    with host.peer_of(trusting) as peer, pytest.raises((AuthenticationError, ConnectionLostError)):
        list_models(peer)
    host.functions["ListModels"] = no_models
    list_models(host.peer)


def tls_context(identity: Identity, folder: Path, version: ssl.TLSVersion) -> ssl.SSLContext:
    context = ssl.create_default_context(cadata=identity.authorities.decode())
    context.minimum_version = context.maximum_version = version
    pair = folder / "pair.pem"
    pair.write_bytes(identity.private_key + identity.certificate)
    context.load_cert_chain(pair)
    return context


def handshake(host: Any, context: ssl.SSLContext) -> str | None:
    with (
        socket.create_connection(("127.0.0.1", host.port), timeout=5) as connection,
        context.wrap_socket(connection, server_hostname="model-owner.radiopaque") as secure,
    ):
        return secure.version()


def test_tls_13_alone_is_spoken(host: Any, tmp_path: Path) -> None:
    identity = host.identities[Role.DATA_OWNER]
    versions = ssl.TLSVersion
    assert handshake(host, tls_context(identity, tmp_path, versions.TLSv1_3)) == "TLSv1.3"
    with pytest.raises((ssl.SSLError, ConnectionResetError)):
        handshake(host, tls_context(identity, tmp_path, versions.TLSv1_2))


@pytest.mark.parametrize("version", ["TLSv1_2", "TLSv1_3"])
def test_a_client_speaks_tls_13_alone(
    identities: dict[Role, Identity], tmp_path: Path, version: str
) -> None:
    """With a server whose certificate is as all are here."""
    identity = identities[Role.MODEL_OWNER]
    (tmp_path / "pair").write_bytes(identity.private_key + identity.certificate)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = context.maximum_version = ssl.TLSVersion[version]
    context.load_cert_chain(tmp_path / "pair")
    context.set_alpn_protocols(["h2"])
    spoken: list[str | None] = []
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def accept() -> None:
            connection = listening.accept()[0]
            with connection, suppress(ssl.SSLError, OSError):
                connection.settimeout(5)
                with context.wrap_socket(connection, server_side=True) as secure:
                    spoken.append(secure.version())

        accepting = threading.Thread(target=accept)
        accepting.start()
        address = f"127.0.0.1:{listening.getsockname()[1]}"
        with (
            Peer(Role.MODEL_OWNER, address, identities[Role.DATA_OWNER]) as peer,
            pytest.raises(RadiopaqueError),
        ):
            list_models(peer, deadline_seconds=5.0)
        accepting.join()
    assert spoken == (["TLSv1.3"] if version == "TLSv1_3" else [])


def test_a_server_that_speaks_tls_12_does_not_start(
    certificate_files: dict[Role, CertificateFiles],
) -> None:
    """In a process that set its own suites and loaded gRPC first."""
    files = certificate_files[Role.MODEL_OWNER]
    program = f"""
import os
os.environ["GRPC_SSL_CIPHER_SUITES"] = "ECDHE-ECDSA-AES256-GCM-SHA384"
import grpc
grpc.server(__import__("concurrent.futures").futures.ThreadPoolExecutor(1))
from pathlib import Path
from radiopaque.certificates import Role, load_identity
from radiopaque.errors import ConfigError
from radiopaque.transport.grpc_server import Handler, Server
files = [Path(one) for one in {[str(files.certificate), str(files.key), str(files.ca)]}]
names = ("ListModels", "FetchPlan", "FetchMaskedWeights", "Prepare", "Infer", "Audit")
table = {{name: Handler(print, frozenset()) for name in names}}
try:
    Server(load_identity(*files, Role.MODEL_OWNER), table).start("127.0.0.1:0")
except ConfigError as error:
    print("refused:", error)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.startswith("refused: this server would accept TLS 1.2")


def test_no_certificate_no_call(host: Any) -> None:
    credentials = grpc.ssl_channel_credentials(host.identities[Role.DATA_OWNER].authorities)
    options = [("grpc.ssl_target_name_override", Role.MODEL_OWNER.server_name)]
    with grpc.secure_channel(host.address, credentials, options) as channel:
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary("/radiopaque.v1.ModelOwner/ListModels")(b"", timeout=5)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    with grpc.insecure_channel(host.address) as channel:
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary("/radiopaque.v1.ModelOwner/ListModels")(b"", timeout=5)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    host.functions["ListModels"] = no_models
    list_models(host.peer)


def reissue(ca_directory: Path, valid: tuple[timedelta, timedelta], roles: list[str]) -> Identity:
    """A data owner's identity with any validity and stated roles, around `load_identity`."""
    ca_key = serialization.load_pem_private_key((ca_directory / "ca.key").read_bytes(), None)
    assert isinstance(ca_key, ec.EllipticCurvePrivateKey)
    authority = (ca_directory / "ca.crt").read_bytes()
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.now(UTC)
    subject = x509.Name([x509.NameAttribute(x509.oid.NameOID.COMMON_NAME, "odd")])
    names = [x509.UniformResourceIdentifier(f"urn:radiopaque:role:{role}") for role in roles]
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(x509.load_pem_x509_certificate(authority).subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + valid[0])
        .not_valid_after(now + valid[1])
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    certificate = builder.sign(ca_key, hashes.SHA256())
    return Identity(
        Role.DATA_OWNER,
        "odd",
        certificate.not_valid_after_utc,
        certificate.public_bytes(serialization.Encoding.PEM),
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ),
        authority,
    )


def test_expired_certificate_is_refused_by_the_server(
    host: Any, certificate_files: dict[Role, CertificateFiles]
) -> None:
    ca_directory = certificate_files[Role.DATA_OWNER].ca.parent
    day = timedelta(days=1)
    good = reissue(ca_directory, (-day, day), ["data-owner"])
    host.functions["ListModels"] = no_models
    with host.peer_of(good) as peer:
        list_models(peer)
    expired = reissue(ca_directory, (-2 * day, -day), ["data-owner"])
    with host.peer_of(expired) as peer, pytest.raises((AuthenticationError, ConnectionLostError)):
        list_models(peer)
    list_models(host.peer)


@pytest.mark.parametrize("roles", [[], ["admin"], ["data-owner", "model-owner"]], ids=str)
def test_certificate_without_exactly_one_role_is_refused(
    host: Any, certificate_files: dict[Role, CertificateFiles], roles: list[str]
) -> None:
    ca_directory = certificate_files[Role.DATA_OWNER].ca.parent
    odd = reissue(ca_directory, (-timedelta(days=1), timedelta(days=1)), roles)
    with host.peer_of(odd) as peer, pytest.raises(AuthenticationError, match="role"):
        list_models(peer)


def test_expiry_is_checked_on_calls_over_an_old_connection(
    host: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.functions["ListModels"] = no_models
    list_models(host.peer)

    class Later(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return datetime.now(tz) + timedelta(days=500)

    monkeypatch.setattr(identity, "datetime", Later)
    with pytest.raises(AuthenticationError, match="expired"):
        list_models(host.peer)
