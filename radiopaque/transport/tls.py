"""The one place that imports gRPC, so that TLS 1.2 is ruled out before the library is loaded.

gRPC for Python has no setting for the lowest TLS version. It does read the list of TLS 1.2 cipher
suites from the environment; that list is set to suites for RSA certificates alone, and all
certificates here are on P-256, so no TLS 1.2 suite is left that both ends could agree on. The
suites of TLS 1.3 are not affected. :func:`check_refuses_tls12` proves it on a running server.
"""

from __future__ import annotations

import os
import socket
import ssl
from dataclasses import replace
from typing import Final

from cryptography import x509

from radiopaque.certificates import Identity, Role, Watch, check_validity, peer_identity
from radiopaque.errors import AuthenticationError, ConfigError, PeerUnavailableError, RoleError

_RSA_ONLY_SUITES: Final = "ECDHE-RSA-AES256-GCM-SHA384:ECDHE-RSA-CHACHA20-POLY1305"
os.environ["GRPC_SSL_CIPHER_SUITES"] = _RSA_ONLY_SUITES
# Refused handshakes and the like would clutter the operator's terminal; errors are raised anyway.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

import grpc  # noqa: E402 - the environment must be set first

__all__ = [
    "NO_TLS_SIGN",
    "accepts_tls12",
    "check_refuses_tls12",
    "client_context",
    "client_credentials",
    "grpc",
    "no_tls",
    "server_context",
    "server_credentials",
    "trusting_only",
]

NO_TLS_SIGN: Final = "WRONG_VERSION_NUMBER"
"""What both TLS libraries say of bytes that are not TLS."""
_CHECK_SECONDS: Final = 10.0
_LOOPBACK: Final = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # noqa: S104 - read, not bound


def client_credentials(identity: Identity) -> grpc.ChannelCredentials:
    return grpc.ssl_channel_credentials(
        identity.authorities, identity.private_key, identity.certificate
    )


def server_credentials(watch: Watch) -> grpc.ServerCredentials:
    """Credentials that refuse clients without a certificate of a trusted authority.

    Every handshake takes the pair and the authorities that the files hold then.
    """
    latest = watch.identity()

    def changed() -> grpc.ServerCertificateConfiguration | None:
        nonlocal latest
        identity = watch.identity()
        if identity is latest:
            return None
        latest = identity
        return _server_configuration(identity)

    return grpc.dynamic_ssl_server_credentials(
        _server_configuration(latest), changed, require_client_authentication=True
    )


def _server_configuration(identity: Identity) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration(
        [(identity.private_key, identity.certificate)], root_certificates=identity.authorities
    )


def trusting_only(
    identity: Identity, address: str, server_name: str, role: Role, seconds: float
) -> Identity:
    """``identity``, trusting nobody but the server that answers at ``address`` now.

    gRPC for Python lets no client look at a server's certificate. So it is fetched in a handshake
    before the one that counts, held to the authorities, the name, the role and the revocation
    lists, and gRPC is then given this very certificate as the only one to trust: whoever answers
    must hold its key. Raises PeerUnavailableError, AuthenticationError, RoleError.
    """
    context = _verifying(identity)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    host, _, port = address.rpartition(":")
    try:
        with (
            socket.create_connection((host.strip("[]"), int(port)), timeout=seconds) as connection,
            context.wrap_socket(connection, server_hostname=server_name) as secure,
        ):
            presented = secure.getpeercert(binary_form=True) or b""
    except OSError as error:
        # one that holds as many connections as it may closes others before its part of a handshake
        if isinstance(error, ssl.SSLError) and error.reason == NO_TLS_SIGN:
            raise no_tls(role.text, address) from error
        if isinstance(error, ssl.SSLError) and not isinstance(error, ssl.SSLEOFError):
            raise AuthenticationError(
                f"the {role.text} at {address} has no certificate that this party accepts; check "
                "that both trust the same authority, that the certificate carries the name "
                f"{server_name} and that a {role.text} listens there ({_reason(error)})"
            ) from error
        raise PeerUnavailableError(
            f"cannot reach the {role.text} at {address}; check that it is running, that the "
            "address is right and that no firewall is in between "
            f"({error.strerror or type(error).__name__})"
        ) from error
    certificate = x509.load_der_x509_certificate(presented)
    stated = peer_identity(certificate)
    check_validity(certificate, f"of {stated}")
    if stated.role is not role:
        raise RoleError(
            f"a {role.text} is due at {address}, the certificate there is of the {stated}"
        )
    if identity.revoked is not None:
        identity.revoked.check(certificate, f"of {stated}")
    pem = ssl.DER_cert_to_PEM_cert(presented).encode("ascii")
    return replace(identity, authorities=pem)


def no_tls(peer: str, address: str) -> AuthenticationError:
    """For an answer that is not one of TLS, where ``peer`` (its role) is due."""
    return AuthenticationError(
        f"no TLS server answers at {address}, so it is no {peer}; another program has this port: "
        "check the address and the port"
    )


def _reason(error: ssl.SSLError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return error.verify_message.rstrip(".")
    return error.reason


def client_context(identity: Identity) -> ssl.SSLContext:
    """For connections beside gRPC to a server of any name."""
    context = _verifying(identity)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    _present(context, identity)
    return context


def server_context(identity: Identity) -> ssl.SSLContext:
    """For ports beside gRPC: clients must show a certificate of a trusted authority."""
    context = _verifying(identity, ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    _present(context, identity)
    return context


def _verifying(identity: Identity, protocol: int = ssl.PROTOCOL_TLS_CLIENT) -> ssl.SSLContext:
    """A context that trusts what gRPC trusts: every certificate of the bundle."""
    context = ssl.SSLContext(protocol)
    context.load_verify_locations(cadata=identity.authorities.decode("ascii"))
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    return context


def accepts_tls12(address: str, identity: Identity, seconds: float) -> bool:
    """Whether a server agrees to TLS 1.2, whichever certificate it then shows.

    Raises OSError where nothing answers.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    # a certificate that is not accepted comes after the version was agreed on
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    _present(context, identity)
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    with socket.create_connection((_LOOPBACK.get(host, host), int(port)), seconds) as connection:
        try:
            with context.wrap_socket(connection):
                return True
        except (ssl.SSLError, ConnectionError):
            return False


def check_refuses_tls12(listen: str, port: int, identity: Identity) -> None:
    """Connect to the own server, which listens on ``listen``, with TLS 1.2 as the newest version.

    Raises ConfigError when the server agrees to it, which happens when gRPC was loaded by somebody
    else before this module, or when it cannot be reached at its own address.
    """
    try:
        accepted = accepts_tls12(f"{listen.rpartition(':')[0]}:{port}", identity, _CHECK_SECONDS)
    except OSError as error:
        raise ConfigError(
            f"this server cannot be reached at its own address {listen}: "
            f"{error.strerror or type(error).__name__}; check `listen` and the firewall of this "
            "host"
        ) from error
    if accepted:
        raise ConfigError(
            "this server would accept TLS 1.2, because gRPC was imported before radiopaque; "
            "import radiopaque first"
        )


def _present(context: ssl.SSLContext, identity: Identity) -> None:
    """Have the context show the party's certificate; the key is written to no disk."""
    descriptor = os.memfd_create("pair", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, identity.private_key + identity.certificate)
        context.load_cert_chain(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)
