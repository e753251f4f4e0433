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
import tempfile
from pathlib import Path
from typing import Final

from radiopaque.certificates import Identity
from radiopaque.errors import ConfigError

_RSA_ONLY_SUITES: Final = "ECDHE-RSA-AES256-GCM-SHA384:ECDHE-RSA-CHACHA20-POLY1305"
os.environ["GRPC_SSL_CIPHER_SUITES"] = _RSA_ONLY_SUITES
# Refused handshakes and the like would clutter the operator's terminal; errors are raised anyway.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
# gRPC's older way to wait for sockets: 1.6 times the rate for two thirds of the processor time
# (docs/performance.md). Versions that do not know these names ignore them.
os.environ.setdefault("GRPC_EXPERIMENTS", "-event_engine_client,-event_engine_listener")

import grpc  # noqa: E402 - the environment must be set first

__all__ = ["check_refuses_tls12", "client_credentials", "grpc", "server_credentials"]

_CHECK_SECONDS: Final = 10.0
_LOOPBACK: Final = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # noqa: S104 - read, not bound


def client_credentials(identity: Identity) -> grpc.ChannelCredentials:
    return grpc.ssl_channel_credentials(
        identity.authorities, identity.private_key, identity.certificate
    )


def server_credentials(identity: Identity) -> grpc.ServerCredentials:
    """Credentials that refuse clients without a certificate of a trusted authority."""
    return grpc.ssl_server_credentials(
        [(identity.private_key, identity.certificate)],
        root_certificates=identity.authorities,
        require_client_auth=True,
    )


def check_refuses_tls12(listen: str, port: int, identity: Identity) -> None:
    """Connect to the own server, which listens on ``listen``, with TLS 1.2 as the newest version.

    Raises ConfigError when the server agrees to it, which happens when gRPC was loaded by somebody
    else before this module, or when it cannot be reached at its own address.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.load_verify_locations(cadata=identity.authorities.decode("ascii"))
    with tempfile.TemporaryDirectory() as folder:
        pair = Path(folder) / "pair.pem"
        pair.touch(mode=0o600)
        pair.write_bytes(identity.private_key + identity.certificate)
        context.load_cert_chain(pair)
    host = listen.rpartition(":")[0].strip("[]")
    host = _LOOPBACK.get(host, host)
    try:
        connection = socket.create_connection((host, port), timeout=_CHECK_SECONDS)
    except OSError as error:
        raise ConfigError(
            f"this server cannot be reached at its own address {listen}: {error.strerror}; "
            "check `listen` and the firewall of this host"
        ) from error
    with connection:
        try:
            with context.wrap_socket(connection, server_hostname=identity.role.server_name):
                pass
        except OSError:
            return
    raise ConfigError(
        "this server would accept TLS 1.2, because gRPC was imported before radiopaque; "
        "import radiopaque first"
    )
