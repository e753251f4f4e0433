"""Flower's SuperLink behind its guard, and SuperNodes: real TLS on loopback, in one process."""

from __future__ import annotations

import base64
import http.client
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("opacus")
pytest.importorskip("flwr")

import httpx
from cryptography.hazmat.primitives.asymmetric.ec import SECP384R1, generate_private_key
from flwr.common.constant import TIMESTAMP_HEADER
from flwr.proto.fleet_pb2 import ActivateNodeRequest, PullMessagesRequest
from flwr.proto.node_pb2 import Node
from flwr.supercore.constant import (
    FLEET_HTTP_PUBLIC_KEY_HEADER,
    FLEET_HTTP_SIGNATURE_HEADER,
)
from flwr.supercore.date import now
from flwr.supercore.primitives.asymmetric import public_key_to_bytes, sign_message
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE

from tests.unit.training.hospitals import NAMES, Hospitals, build
from training.errors import SettingsError
from training.flower import supernode
from training.flower.command import set_logging
from training.flower.keys import load_node, make_coordinator_keys, tls_files
from training.flower.members import split_address
from training.flower.superlink import _BODY_BYTES, Reply, SuperLink
from training.flower.supernode import BoundedTransport, SuperNode, UnreachableError

LONGEST = 1 << 16
FAST = 10.0


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


@pytest.fixture(scope="module")
def hospitals(tmp_path_factory: pytest.TempPathFactory) -> Hospitals:
    set_logging(False)
    return build(tmp_path_factory.mktemp("trees"), free_port())


def link_of(hospitals: Hospitals) -> SuperLink:
    entry = hospitals.members.coordinator
    return SuperLink(
        hospitals.members.node_keys(),
        split_address(entry.address),
        tls_files(hospitals.coordinator_keys, entry.certificate),
    )


@pytest.fixture(scope="module")
def link(hospitals: Hospitals) -> Iterator[SuperLink]:
    running = link_of(hospitals)
    running.start()
    yield running
    running.stop()


def node_of(hospitals: Hospitals, name: str, **changes: Any) -> SuperNode:
    entry = hospitals.members.coordinator
    values: dict[str, Any] = {
        "address": entry.address,
        "certificate": entry.certificate,
        "key": load_node(hospitals.root / name / "keys"),
        "longest": LONGEST,
        "report": lambda line: None,
    }
    return SuperNode(**{**values, **changes})


class Sites:
    """SuperNodes in threads, until the block ends."""

    def __init__(self, hospitals: Hospitals, answer: Callable[[str, bytes], bytes]) -> None:
        self._hospitals, self._answer = hospitals, answer
        self.lines: dict[str, list[str]] = {name: [] for name in NAMES}
        self._done = threading.Event()

    def __enter__(self) -> Sites:
        self._threads = [threading.Thread(target=self._serve, args=(name,)) for name in NAMES]
        for thread in self._threads:
            thread.start()
        return self

    def _serve(self, name: str) -> None:
        node = node_of(self._hospitals, name, report=self.lines[name].append)
        node.serve(lambda question: self._answer(name, question), self._done.is_set, b"unreadable")

    def __exit__(self, *ignored: object) -> None:
        self._done.set()
        for thread in self._threads:
            thread.join()


def wait_for(link: SuperLink, names: tuple[str, ...]) -> None:
    deadline = time.monotonic() + 30.0
    while link.online() != set(names):
        assert time.monotonic() < deadline, link.online()
        time.sleep(0.02)


def replies(asked: Iterator[Reply]) -> dict[str, bytes | str | None]:
    return {reply.name: reply.payload if not reply.reason else reply.reason for reply in asked}


def test_questions_are_answered_and_nothing_is_left_behind(
    hospitals: Hospitals, link: SuperLink
) -> None:
    with Sites(hospitals, lambda name, question: name.encode() + question[::-1]):
        wait_for(link, NAMES)
        for body in (b"", b"abc", bytes(1000)):
            found = replies(link.ask(dict.fromkeys(NAMES, body), LONGEST, FAST))
            assert found == {name: name.encode() + body[::-1] for name in NAMES}
        own = {name: name.encode() * 3 for name in NAMES[:2]}
        assert replies(link.ask(own, LONGEST, FAST)) == {
            "elm": b"elmmlemlemle",
            "oak": b"oakkaokaokao",
        }
    wait_for(link, ())
    assert len(link._state.object_store) == 0
    assert link._state.num_message_ins() == link._state.num_message_res() == 0


def test_slow_long_and_lost_sites_are_given_up(hospitals: Hospitals, link: SuperLink) -> None:
    release = threading.Event()

    def answer(name: str, question: bytes) -> bytes:
        if name == "elm":
            release.wait()
        return bytes(200) if name == "oak" else b"short"

    with Sites(hospitals, answer):
        wait_for(link, NAMES)
        found = replies(link.ask(dict.fromkeys(NAMES, b"question"), 100, 1.5))
        assert found["elm"] == "did not answer within 2 s"
        assert "100 bytes" in str(found["oak"])
        assert found["yew"] == b"short"
        release.set()
        # What comes too late is not taken for the answer to the next question.
        assert replies(link.ask({"elm": b"again"}, 100, FAST)) == {"elm": b"short"}
    wait_for(link, ())
    assert replies(link.ask({"elm": b"nobody there"}, 100, FAST)) == {"elm": "lost its connection"}
    assert len(link._state.object_store) == 0


def test_a_question_that_is_too_long_is_refused_by_the_site(
    hospitals: Hospitals, link: SuperLink, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bytes] = []

    def answer(name: str, question: bytes) -> bytes:
        seen.append(question)
        return b"answered"

    with Sites(hospitals, answer) as sites:
        wait_for(link, NAMES)
        found = replies(link.ask({"yew": bytes(LONGEST + 1)}, 100, FAST))
        assert found == {"yew": b"unreadable"}
        assert seen == []
        assert "larger" in sites.lines["yew"][-1]
        assert replies(link.ask({"yew": b"fits"}, 100, FAST)) == {"yew": b"answered"}


# -- who gets in ------------------------------------------------------------------------------


def request(hospitals: Hospitals, path: str, body: bytes, key: Any = None, **headers: str) -> int:
    """Send a request as a SuperNode signs it, or differently; return the status."""
    signed = {"content-type": PROTOBUF_MEDIA_TYPE, **headers}
    if key is not None:
        timestamp = headers.pop("timestamp", now().isoformat())
        signer = headers.pop("signer", key)
        signed |= {
            FLEET_HTTP_PUBLIC_KEY_HEADER: base64.b64encode(
                public_key_to_bytes(key.public_key())
            ).decode(),
            TIMESTAMP_HEADER: timestamp,
            FLEET_HTTP_SIGNATURE_HEADER: base64.b64encode(
                sign_message(signer, timestamp.encode())  # type: ignore[arg-type]
            ).decode(),
        }
        signed = {name: value for name, value in signed.items() if isinstance(value, str)}
    context = ssl.create_default_context(cadata=hospitals.members.coordinator.certificate)
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    host, port = split_address(hospitals.members.coordinator.address)
    connection = http.client.HTTPSConnection(host, port, context=context, timeout=FAST)
    try:
        connection.request("POST", path, body, signed)
        return connection.getresponse().status
    finally:
        connection.close()


def activation(key: Any) -> bytes:
    return ActivateNodeRequest(
        public_key=public_key_to_bytes(key.public_key()), heartbeat_interval=10
    ).SerializeToString()


ACTIVATE = "/v1/fleet/activate-node"
PULL = "/v1/fleet/pull-messages"


@pytest.mark.parametrize(
    "path",
    [
        "/v1/control/start-run",
        "/v1/control/list-nodes",
        "/v1/control/register-node",
        "/v1/runtime/acquire-task",
        "/v1/fleet/register-node",
        "/v1/fleet/unregister-node",
        "/v1/fleet/get-fab",
        "/v1/fleet/get-run",
        "/v1/fleet/activate-node/",
        "/v1/fleet/../control/list-nodes",
        "/docs",
        "/openapi.json",
        "/",
    ],
)
def test_all_that_a_site_does_not_need_is_not_there(
    path: str, hospitals: Hospitals, link: SuperLink
) -> None:
    key = load_node(hospitals.root / "elm" / "keys")
    assert request(hospitals, path, b"", key) == 404


def test_strangers_are_refused_before_they_are_heard(hospitals: Hospitals, link: SuperLink) -> None:
    stranger = generate_private_key(SECP384R1())
    assert request(hospitals, ACTIVATE, activation(stranger)) == 403
    assert request(hospitals, ACTIVATE, activation(stranger), stranger) == 403
    garbled = {FLEET_HTTP_PUBLIC_KEY_HEADER: "!!"}
    assert request(hospitals, ACTIVATE, b"", **garbled) == 403


def test_a_known_key_without_its_private_half_is_refused(
    hospitals: Hospitals, link: SuperLink
) -> None:
    elm, oak = (load_node(hospitals.root / name / "keys") for name in ("elm", "oak"))
    stranger = generate_private_key(SECP384R1())
    forged: Any = {"signer": stranger}
    assert request(hospitals, ACTIVATE, activation(elm), elm, **forged) == 401
    assert request(hospitals, ACTIVATE, activation(oak), elm) == 401
    assert (
        request(hospitals, ACTIVATE, activation(elm), elm, timestamp="2026-01-01T00:00:00+00:00")
        == 401
    )
    others = PullMessagesRequest(node=Node(node_id=link._ids["oak"])).SerializeToString()
    assert request(hospitals, PULL, others, elm) == 401


def test_bodies_are_bounded(hospitals: Hospitals, link: SuperLink) -> None:
    key = load_node(hospitals.root / "elm" / "keys")
    large = {"content-length": str(_BODY_BYTES + 1)}
    assert request(hospitals, PULL, b"", key, **large) == 413
    assert request(hospitals, PULL, b"", key, **{"transfer-encoding": "chunked"}) == 413


def test_headers_that_could_be_read_in_two_ways_are_refused(
    hospitals: Hospitals, link: SuperLink
) -> None:
    host, port = split_address(hospitals.members.coordinator.address)
    context = ssl.create_default_context(cadata=hospitals.members.coordinator.certificate)
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    pinned = public_key_to_bytes(load_node(hospitals.root / "elm" / "keys").public_key())
    stranger = public_key_to_bytes(generate_private_key(SECP384R1()).public_key())
    with (
        socket.create_connection((host, port), timeout=FAST) as wire,
        context.wrap_socket(wire, server_hostname=host) as secured,
    ):
        head = f"POST {PULL} HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n"
        for key in (stranger, pinned):
            head += f"{FLEET_HTTP_PUBLIC_KEY_HEADER}: {base64.b64encode(key).decode()}\r\n"
        secured.sendall(f"{head}\r\n".encode())
        assert secured.recv(100).startswith(b"HTTP/1.1 400")


def test_no_other_language_is_spoken(hospitals: Hospitals, link: SuperLink) -> None:
    host, port = split_address(hospitals.members.coordinator.address)
    with socket.create_connection((host, port), timeout=FAST) as wire:
        wire.sendall(b"POST /v1/fleet/pull-messages HTTP/1.1\r\ncontent-length: 0\r\n\r\n")
        assert b"HTTP" not in wire.recv(100)
    old = ssl._create_unverified_context()
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    with socket.create_connection((host, port)) as wire, pytest.raises(OSError, match=r"SSL|EOF"):
        old.wrap_socket(wire).do_handshake()


def test_a_site_with_another_key_is_told_so(hospitals: Hospitals, link: SuperLink) -> None:
    node = node_of(hospitals, "elm", key=generate_private_key(SECP384R1()))
    with pytest.raises(SettingsError, match="does not know this site's node key"):
        node.check()


def test_only_the_pinned_certificate_is_accepted(
    hospitals: Hospitals, link: SuperLink, tmp_path: Path
) -> None:
    address = hospitals.members.coordinator.address
    make_coordinator_keys(tmp_path, address)
    other = (tmp_path / "certificate.pem").read_text()
    with pytest.raises(SettingsError, match="certificate that the list of members pins"):
        node_of(hospitals, "elm", certificate=other).check()
    _, port = split_address(address)
    with pytest.raises(SettingsError, match="certificate"):
        node_of(hospitals, "elm", address=f"localhost:{port}").check()


def test_a_second_connection_of_a_site_waits_for_the_first_to_end(
    hospitals: Hospitals, link: SuperLink
) -> None:
    with Sites(hospitals, lambda name, question: b""):
        wait_for(link, NAMES)
        with pytest.raises(UnreachableError, match="earlier connection"):
            node_of(hospitals, "elm").check()
    wait_for(link, ())
    node_of(hospitals, "elm").check()


# -- coming and going -------------------------------------------------------------------------


def test_sites_find_a_coordinator_that_was_restarted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supernode, "_LONGEST_RETRY_SECONDS", 0.2)
    monkeypatch.setattr(supernode, "_FIRST_RETRY_SECONDS", 0.1)
    own = build(tmp_path, free_port())
    with Sites(own, lambda name, question: question) as sites:
        for _ in range(2):
            link = link_of(own)
            link.start()
            wait_for(link, NAMES)
            assert replies(link.ask({"elm": b"x"}, 10, FAST)) == {"elm": b"x"}
            link.stop()
        last = link_of(own)
        last.start()
        wait_for(last, NAMES)
    last.stop()
    assert [line.split()[0] for line in sites.lines["elm"][:3]] == ["the", "connected", "the"]
    assert sum(line.startswith("connected") for line in sites.lines["elm"]) == 3


def test_a_port_that_is_taken_is_named(hospitals: Hospitals, link: SuperLink) -> None:
    with pytest.raises(SettingsError, match="cannot be listened on"):
        link_of(hospitals).start()


class Relay:
    """A proxy that knows CONNECT and nothing else, as hospitals have them."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            inner, _ = self._listening.accept()
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                head += inner.recv(1)
            self.asked.append(head.split(b"\r\n")[0].decode())
            outer = socket.create_connection(split_address(head.split()[1].decode()))
            inner.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            for source, sink in ((inner, outer), (outer, inner)):
                threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                sink.sendall(data)
        except OSError:
            pass


def test_the_hospitals_proxy_is_used_and_none_of_the_environment(
    hospitals: Hospitals, link: SuperLink, monkeypatch: pytest.MonkeyPatch
) -> None:
    relay, other = Relay(), Relay()
    monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{other.port}")
    monkeypatch.setenv("ALL_PROXY", f"http://127.0.0.1:{other.port}")
    node_of(hospitals, "elm").check()
    assert other.asked == relay.asked == []
    node_of(hospitals, "elm", proxy=f"http://127.0.0.1:{relay.port}").check()
    assert relay.asked
    assert relay.asked[0].startswith(f"CONNECT {hospitals.members.coordinator.address} ")
    assert other.asked == []


# -- what a site reads ------------------------------------------------------------------------


def bounded(handler: Callable[[httpx.Request], httpx.Response], longest: int) -> httpx.Client:
    return httpx.Client(transport=BoundedTransport(httpx.MockTransport(handler), longest))


def test_answers_of_the_coordinator_are_bounded() -> None:
    read: list[int] = []

    class Endless(httpx.SyncByteStream):
        def __iter__(self) -> Iterator[bytes]:
            for count in range(10**6):
                read.append(count)
                yield bytes(100)

    with bounded(lambda asked: httpx.Response(200, content=bytes(1000)), 1000) as client:
        assert len(client.get("https://a").content) == 1000
    with bounded(lambda asked: httpx.Response(200, stream=Endless()), 1000) as client:
        with pytest.raises(httpx.ReadError, match="longer"):
            client.get("https://a")
        assert len(read) == 11


def test_compressed_answers_are_refused() -> None:
    packed = {"content-encoding": "gzip"}
    answer = httpx.Response(200, headers=packed, stream=httpx.ByteStream(b"x"))
    client = bounded(lambda asked: answer, 1000)
    with client, pytest.raises(httpx.ReadError, match="encoded"):
        client.get("https://a")
