"""The port on which a party's metrics are read: HTTP on loopback, mutual TLS 1.3 elsewhere.

Metrics name clinics and how much they do, so a certificate alone is not enough: it must carry this
party's own role and name.
"""

from __future__ import annotations

import ipaddress
import ssl
import threading
from contextlib import closing
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socket import AF_INET, AF_INET6, socket
from typing import Any, Final

from cryptography import x509
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from radiopaque.certificates import Identity, PeerIdentity, Role, Watch, peer_identity
from radiopaque.config import TlsConfig
from radiopaque.errors import AuthenticationError, ConfigError, PeerUnavailableError, StoreError
from radiopaque.telemetry import get_logger
from radiopaque.transport.tls import client_context, server_context

_SECONDS: Final = 10.0
_LARGEST_ANSWER: Final = 1 << 24
_MOST_READERS: Final = 16
"""Connections at once; others are closed, so that strangers do not take up the party's threads."""

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
    """Serves ``/metrics`` on ``listen`` (port 0: any free one) until it is closed.

    Off loopback with the certificate, authorities and revocation lists that the party's files hold
    at each connection.
    """

    def __init__(self, registry: CollectorRegistry, listen: str, identity: Identity) -> None:
        watch = None if is_loopback(listen) else Watch(identity)
        host, _, port = listen.rpartition(":")
        try:
            self._server = _Http((host.strip("[]"), int(port)), _handler(registry, watch), watch)
        except OSError as error:
            raise ConfigError(
                f"cannot serve metrics on {listen}: {error.strerror}; choose another address "
                "for metrics"
            ) from error
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

    Raises PeerUnavailableError where nothing of the kind answers; off loopback also what loading
    the party's certificate raises, and AuthenticationError for an endpoint whose own was revoked.
    """
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    identity = None if is_loopback(address) else tls.load(role)
    try:
        connection = (
            HTTPConnection(host, int(port), timeout=_SECONDS)
            if identity is None
            else HTTPSConnection(
                host, int(port), timeout=_SECONDS, context=client_context(identity)
            )
        )
        with closing(connection):
            connection.connect()
            if identity is not None and identity.revoked is not None:
                identity.revoked.check(_presented(connection.sock), f"of the {role} at {address}")
            connection.request("GET", "/metrics")
            answer = connection.getresponse()
            if answer.status != HTTPStatus.OK:
                raise HTTPException(f"HTTP {answer.status} {answer.reason}")
            return answer.read(_LARGEST_ANSWER).decode()
    except (HTTPException, OSError, ValueError) as error:
        raise PeerUnavailableError(
            f"no metrics of the {role} at {address}: {_reason(error)}; check that it is running, "
            "and `metrics` in its config"
        ) from error


def _reason(error: Exception) -> str:
    return (isinstance(error, OSError) and error.strerror) or str(error)


class _Http(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 4 * _MOST_READERS

    def __init__(
        self,
        address: tuple[str, int],
        handler: type[BaseHTTPRequestHandler],
        watch: Watch | None,
    ) -> None:
        self.address_family = AF_INET6 if ":" in address[0] else AF_INET
        self._watch = watch
        self._shown: tuple[Identity, ssl.SSLContext] | None = None
        self._places = threading.Semaphore(_MOST_READERS)
        super().__init__(address, handler)

    def get_request(self) -> tuple[socket, Any]:
        connection, address = super().get_request()
        if self._watch is None:
            return connection, address
        identity = self._watch.identity()
        if self._shown is None or self._shown[0] is not identity:
            self._shown = identity, server_context(identity)
        # the handshake is the request thread's, so that nobody can hold up the others
        secure = self._shown[1].wrap_socket(
            connection, server_side=True, do_handshake_on_connect=False
        )
        return secure, address

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._places.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def handle_error(self, request: object, client_address: object) -> None:
        _log.debug("a request for metrics broke off")


def _handler(registry: CollectorRegistry, watch: Watch | None) -> type[BaseHTTPRequestHandler]:
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
            if watch is not None and not _admitted(self.request, watch):
                self.send_error(403, "this party's own role and name only, not revoked")
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


def _admitted(connection: ssl.SSLSocket, watch: Watch) -> bool:
    own = watch.identity()
    try:
        certificate = _presented(connection)
        watch.check(certificate, "of a reader of metrics")
        return peer_identity(certificate) == PeerIdentity(own.role, own.name)
    except (AuthenticationError, ValueError):
        return False


def _presented(connection: Any) -> x509.Certificate:
    return x509.load_der_x509_certificate(connection.getpeercert(binary_form=True) or b"")
