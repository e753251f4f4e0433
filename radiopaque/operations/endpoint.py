"""The port on which a party's metrics are read: HTTP on loopback, mutual TLS 1.3 elsewhere.

Metrics name clinics and how much they do, so a certificate alone is not enough: it must carry this
party's own role and name.
"""

from __future__ import annotations

import ipaddress
import ssl
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socket import AF_INET, AF_INET6
from typing import Final
from urllib.error import URLError
from urllib.request import urlopen

from cryptography import x509
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from radiopaque.certificates import PeerIdentity, Role, peer_identity
from radiopaque.config import TlsConfig
from radiopaque.errors import AuthenticationError, ConfigError, PeerUnavailableError, StoreError
from radiopaque.telemetry import get_logger

_SECONDS: Final = 10.0
_LARGEST_ANSWER: Final = 1 << 24

_log = get_logger(__name__)


def is_loopback(address: str) -> bool:
    """Whether ``host:port`` can be reached from this machine alone."""
    host = address.rpartition(":")[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Endpoint:
    """Serves ``/metrics`` on ``listen`` (port 0: any free one) until it is closed."""

    def __init__(
        self, registry: CollectorRegistry, listen: str, tls: TlsConfig, own: PeerIdentity
    ) -> None:
        self._admitted = None if is_loopback(listen) else own
        handler = _handler(registry, self._admitted)
        host, _, port = listen.rpartition(":")
        try:
            self._server = _Http((host.strip("[]"), int(port)), handler)
        except OSError as error:
            raise ConfigError(
                f"cannot serve metrics on {listen}: {error.strerror}; choose another address "
                "for metrics"
            ) from error
        if self._admitted is not None:
            context = _context(ssl.PROTOCOL_TLS_SERVER, tls)
            self._server.socket = context.wrap_socket(
                # the handshake is the request thread's, so that nobody can hold up the others
                self._server.socket,
                server_side=True,
                do_handshake_on_connect=False,
            )
        self.address = f"{host}:{self._server.server_address[1]}"
        self._thread = threading.Thread(
            target=self._server.serve_forever, name="radiopaque-metrics", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Let go of the port."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def read_metrics(address: str, tls: TlsConfig, role: Role) -> str:
    """A party's metrics, as text, from its endpoint at ``host:port``.

    Raises PeerUnavailableError where nothing of the kind answers.
    """
    secure = not is_loopback(address)
    context = _context(ssl.PROTOCOL_TLS_CLIENT, tls) if secure else None
    if context is not None:
        # the authority's word that this is a server is enough: nothing secret is sent to it
        context.check_hostname = False
    url = f"{'https' if secure else 'http'}://{address}/metrics"
    try:
        with urlopen(url, timeout=_SECONDS, context=context) as answer:  # noqa: S310 - from the config
            return str(answer.read(_LARGEST_ANSWER).decode())
    except (URLError, OSError, ValueError) as error:
        raise PeerUnavailableError(
            f"no metrics of the {role} at {address}: {_reason(error)}; check that it is running, "
            "and `metrics` in its config"
        ) from error


def _reason(error: Exception) -> str:
    inner = getattr(error, "reason", None)
    return (isinstance(inner, OSError) and inner.strerror) or str(error)


class _Http(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        self.address_family = AF_INET6 if ":" in address[0] else AF_INET
        super().__init__(address, handler)

    def handle_error(self, request: object, client_address: object) -> None:
        _log.debug("a request for metrics broke off")


def _handler(
    registry: CollectorRegistry, admitted: PeerIdentity | None
) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = _SECONDS
        server_version = "radiopaque"
        sys_version = ""

        def setup(self) -> None:
            self.request.settimeout(_SECONDS)
            if isinstance(self.request, ssl.SSLSocket):
                self.request.do_handshake()
            super().setup()

        def do_GET(self) -> None:
            if admitted is not None and _presented(self.request) != admitted:
                self.send_error(403, "this party's own role and name only")
            elif self.path != "/metrics":
                self.send_error(404)
            else:
                self._answer()

        def _answer(self) -> None:
            try:
                body = generate_latest(registry)
            except StoreError as error:
                _log.failure("metrics cannot be read", error)
                self.send_error(503)
                return
            self.send_response(200)
            self.send_header("Content-Type", CONTENT_TYPE_PLAIN_0_0_4)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: object) -> None:
            """Not logged: a scraper asks every few seconds."""

    return Handler


def _presented(connection: ssl.SSLSocket) -> PeerIdentity | None:
    der = connection.getpeercert(binary_form=True)
    try:
        return peer_identity(x509.load_der_x509_certificate(der or b""))
    except (AuthenticationError, ValueError):
        return None


def _context(protocol: int, tls: TlsConfig) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(tls.certificate, tls.key)
    context.load_verify_locations(tls.ca)
    if protocol == ssl.PROTOCOL_TLS_SERVER:
        context.verify_mode = ssl.CERT_REQUIRED
    return context
