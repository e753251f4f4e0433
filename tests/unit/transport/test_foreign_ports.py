"""What a client says of an address where another program answers."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Iterator

import pytest

from radiopaque.certificates import CertificateFiles, Identity, Role
from radiopaque.errors import AuthenticationError, PeerUnavailableError
from radiopaque.transport.grpc_client import Peer
from tests.unit.transport.calls import list_models

HTTP = b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n"


@pytest.fixture
def serving() -> Iterator[Callable[[Callable[[socket.socket], None]], str]]:
    """Starts a program that deals with each connection as told; gives its address."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def start(deal: Callable[[socket.socket], None]) -> str:
            def serve() -> None:
                while True:
                    try:
                        connection, _ = listener.accept()
                    except OSError:
                        return
                    try:
                        with connection:
                            deal(connection)
                    except OSError:
                        continue

            threading.Thread(target=serve, daemon=True).start()
            return f"127.0.0.1:{listener.getsockname()[1]}"

        yield start
        listener.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize("server_name", [None, "vendor.example"])
def test_a_port_without_tls(
    serving: Callable[..., str], identities: dict[Role, Identity], server_name: str | None
) -> None:
    def answer(connection: socket.socket) -> None:
        connection.recv(1 << 16)
        connection.sendall(HTTP)
        connection.recv(1)

    address = serving(answer)
    with (
        Peer(Role.MODEL_OWNER, address, identities[Role.DATA_OWNER], server_name) as peer,
        pytest.raises(AuthenticationError) as raised,
    ):
        list_models(peer)
    assert str(raised.value) == (
        f"no TLS server answers at {address}, so it is no model owner; another program has this "
        "port: check the address and the port"
    )


def test_a_port_with_tls_for_something_else(
    serving: Callable[..., str],
    identities: dict[Role, Identity],
    certificate_files: dict[Role, CertificateFiles],
) -> None:
    """With the right certificate: that of the metrics, for example."""
    files = certificate_files[Role.MODEL_OWNER]
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.certificate, files.key)

    def answer(connection: socket.socket) -> None:
        with context.wrap_socket(connection, server_side=True) as secure:
            secure.recv(1)

    with (
        Peer(Role.MODEL_OWNER, serving(answer), identities[Role.DATA_OWNER]) as peer,
        pytest.raises(PeerUnavailableError, match="knows no gRPC, so it is no model owner"),
    ):
        list_models(peer)
