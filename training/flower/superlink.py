"""The coordinator's end: Flower's SuperLink, and questions to the sites behind it.

The SuperLink is Flower's own application (`flwr.superlink.main`), in this process, with its state
in memory. Of what it serves, a guard lets through the calls that a site makes, from the node keys
that the list of members names. The rest of it, on the same port in Flower 1.41, would let anybody
who can reach that port start and stop runs, and enrol nodes.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn
from cryptography.hazmat.primitives.serialization import load_der_public_key
from flwr.app import Message, MessageType
from flwr.app.message import remove_content_from_message
from flwr.common.constant import (
    CONTROL_API_DEFAULT_SERVER_ADDRESS,
    ISOLATION_MODE_PROCESS,
    NOOP_ACCOUNT_NAME,
    NOOP_FLWR_AID,
    SUPERLINK_NODE_ID,
    TRANSPORT_TYPE_GRPC_RERE,
)
from flwr.supercore.constant import (
    FLEET_HTTP_PUBLIC_KEY_HEADER,
    FLWR_IN_MEMORY_DB_NAME,
    NOOP_FEDERATION_ID,
    TaskType,
)
from flwr.supercore.heartbeat import HeartbeatSender
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.auth_plugin import NoOpControlAuthnPlugin
from flwr.superlink.cli.flower_superlink import SuperLinkLifespan
from flwr.superlink.config_loader import SuperLinkLifespanConfig
from flwr.superlink.main import create_app

from training.errors import RefusedMessageError, SettingsError, TrainingError
from training.flower.parcels import OBJECT_BYTES, inflate, inventory, pack, unpack

_PATHS = frozenset(
    f"/v1/fleet/{call}"
    for call in (
        "activate-node",
        "deactivate-node",
        "send-node-heartbeat",
        "pull-messages",
        "push-messages",
        "pull-object",
        "push-object",
        "confirm-message-received",
    )
)
_BODY_BYTES = OBJECT_BYTES + (1 << 16)
_LENGTH, _ENCODING = b"content-length", b"transfer-encoding"
_KEY = FLEET_HTTP_PUBLIC_KEY_HEADER.lower().encode()
# Given twice, they could be read differently here and behind.
_READ_HERE = frozenset({_LENGTH, _ENCODING, _KEY})
_POLL_SECONDS = 0.05
_START_SECONDS = 60.0
_TTL_MARGIN = 60.0

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Scope]]
Send = Callable[[Scope], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]


class LinkError(TrainingError):
    """Flower's SuperLink does not do what it is there for; starting anew helps."""


class _PendingError(Exception):
    """An object of a reply has not arrived yet."""


class Guard:
    """Lets through what a site has to call, of a size that it needs, from keys that are pinned.

    That the caller holds the key is checked by Flower behind it; here the point is that nobody else
    gets as far as sending a body.
    """

    def __init__(self, application: Application, keys: frozenset[bytes]) -> None:
        self._application = application
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection as ASGI has it."""
        if scope["type"] == "lifespan":
            await self._application(scope, receive, send)
            return
        status = self._refusal(scope)
        if status is None:
            await self._application(scope, receive, send)
            return
        headers = [(b"content-length", b"0"), (b"connection", b"close")]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b""})

    def _refusal(self, scope: Scope) -> int | None:
        if scope["type"] != "http" or scope["method"] != "POST" or scope["path"] not in _PATHS:
            return 404
        headers: dict[bytes, bytes] = {}
        for name, value in scope["headers"]:
            if name in headers and name in _READ_HERE:
                return 400
            headers[name] = value
        length = headers.get(_LENGTH, b"")
        if not length.isdigit() or int(length) > _BODY_BYTES or _ENCODING in headers:
            return 413
        try:
            known = base64.b64decode(headers.get(_KEY, b""), validate=True) in self._keys
        except binascii.Error:
            known = False
        return None if known else 403


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back from a site, or why nothing did."""

    name: str
    payload: bytes | None
    reason: str = ""


class SuperLink:
    """Serves the sites from `start` to `stop`. `nodes` are their node keys, DER, by name.

    `files` are certificate and key, PEM; TLS 1.3 is the least that is spoken.
    """

    def __init__(
        self, nodes: Mapping[str, bytes], address: tuple[str, int], files: tuple[Path, Path]
    ) -> None:
        application = create_app(_configuration(address), SuperLinkLifespan)
        self._state = application.state.linkstate_factory.state()
        pems = {name: _pem(key) for name, key in nodes.items()}
        self._ids = {
            name: self._state.create_node(NOOP_FLWR_AID, NOOP_ACCOUNT_NAME, pem, 0)
            for name, pem in pems.items()
        }
        self._run, task = self._make_run()
        self._alive = HeartbeatSender(lambda: bool(self._state.acknowledge_task_heartbeat(task)))
        self._address = address
        config = uvicorn.Config(
            Guard(application, frozenset(pems.values())),
            ssl_certfile=str(files[0]),
            ssl_keyfile=str(files[1]),
            log_level="critical",
            access_log=False,
            server_header=False,
            ws="none",
            workers=1,
            timeout_keep_alive=30,
            timeout_graceful_shutdown=2,
            limit_concurrency=4 * len(nodes) + 32,
        )
        config.load()
        if config.ssl is None:
            raise SettingsError("TLS could not be set up, and without it nothing is served")
        config.ssl.minimum_version = ssl.TLSVersion.TLSv1_3
        self._server = uvicorn.Server(config)
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Listen.

        Raises:
            SettingsError: the address cannot be listened on.
            LinkError: nothing happens on it.
        """
        host, port = self._address
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            listening = socket.create_server((host, port), family=family)
        except OSError as error:
            raise SettingsError(
                f"{host} port {port} cannot be listened on ({error.strerror}); free it, or pass "
                "another --listen"
            ) from error
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [listening]}, name="superlink", daemon=True
        )
        self._thread.start()
        deadline = time.monotonic() + _START_SECONDS
        while not self._server.started:
            if not self._thread.is_alive() or time.monotonic() > deadline:
                raise LinkError(f"Flower's SuperLink did not start on {host} port {port}")
            time.sleep(_POLL_SECONDS)
        self._alive.start()

    def stop(self) -> None:
        """Stop listening. What was not sent is lost."""
        if self._thread is not None:
            self._server.should_exit = True
            self._thread.join(timeout=10.0)
            self._alive.stop()
            self._thread = None

    def online(self) -> set[str]:
        """The sites that are connected, as their heartbeats tell."""
        nodes = self._state.get_nodes(self._run)
        return {name for name, node in self._ids.items() if node in nodes}

    def ask(self, questions: Mapping[str, bytes], longest: int, seconds: float) -> Iterator[Reply]:
        """Ask sites; yield one reply for each as they come, of at most `longest` bytes.

        A site that loses its connection, or takes more than `seconds`, is given up.

        Raises:
            LinkError: nothing can be asked any more.
        """
        sent = {self._send(name, body, seconds): name for name, body in questions.items()}
        arriving: dict[str, str] = {}
        deadline = time.monotonic() + seconds
        try:
            while sent and time.monotonic() < deadline:
                before = len(sent)
                yield from self._gather(sent, arriving, longest)
                if len(sent) == before:
                    time.sleep(_POLL_SECONDS)
            for name in sent.values():
                yield Reply(name, None, f"did not answer within {seconds:.0f} s")
        finally:
            self._forget(set(sent))

    def _gather(
        self, sent: dict[str, str], arriving: dict[str, str], longest: int
    ) -> Iterator[Reply]:
        waiting = set(sent) - set(arriving)
        for message in self._state.get_message_res(waiting, self._run) if waiting else ():
            asked = message.metadata.reply_to_message_id
            if message.has_error():
                self._discard(message.metadata.message_id)
                yield self._done(sent, asked, Reply(sent[asked], None, "lost its connection"))
            else:
                arriving[asked] = message.metadata.message_id
        for asked, message_id in list(arriving.items()):
            try:
                reply = self._open(sent[asked], message_id, longest)
            except _PendingError:
                continue
            del arriving[asked]
            self._discard(message_id)
            yield self._done(sent, asked, reply)

    def _open(self, name: str, message_id: str, longest: int) -> Reply:
        """Build a reply out of the objects that the site has sent.

        Raises:
            _PendingError: not all of them have arrived.
        """

        def fetch(object_id: str) -> bytes:
            content = self._state.get_object(self._run, object_id)
            if content is None:
                raise RefusedMessageError(name, "an object was not announced")
            if content == b"":
                raise _PendingError
            return bytes(content)

        try:
            names = inventory(name, message_id, fetch, longest)
            for part in names.parts:
                fetch(part)
            return Reply(name, unpack(name, inflate(name, names, fetch).content, longest))
        except RefusedMessageError as error:
            return Reply(name, None, f"was refused ({error.reason})")

    def _done(self, sent: dict[str, str], asked: str, reply: Reply) -> Reply:
        del sent[asked]
        self._forget({asked})
        return reply

    def _forget(self, asked: set[str]) -> None:
        self._state.delete_messages(asked)
        for message_id in asked:
            self._discard(message_id)

    def _discard(self, message_id: str) -> None:
        # A hostile site can announce objects inside each other thousands deep.
        with contextlib.suppress(RecursionError):
            self._state.object_store.delete(message_id)

    def _send(self, name: str, payload: bytes, seconds: float) -> str:
        message = Message(
            pack(payload), self._ids[name], MessageType.QUERY, ttl=seconds + _TTL_MARGIN
        )
        with no_object_id_recompute():
            identity = message.object_id
            message.metadata.__dict__["_message_id"] = identity
            objects = get_all_nested_objects(message)
            session = self._state.start_session(self._run)
            stored, missing = self._state.store_message_and_object_tree(
                remove_content_from_message(message), get_object_tree(message), session
            )
            if not stored:
                raise LinkError(
                    f"Flower does not take a question to site {name!r}: its run has ended, as it "
                    "does when this machine sleeps for a minute. Go on with --resume"
                )
            for object_id in missing:
                self._state.store_object(
                    self._run, session, object_id, objects[object_id].deflate()
                )
        return str(identity)

    def _make_run(self) -> tuple[int, int]:
        run = self._state.create_run(
            None, None, None, {}, NOOP_FEDERATION_ID, None, NOOP_FLWR_AID, TaskType.SERVER_APP
        )
        task = self._state.get_run_info(run_ids=[run])[0].primary_task_id
        if self._state.claim_task(task) is None or not self._state.activate_task(task):
            raise LinkError("Flower's SuperLink does not begin a run; look whether it is 1.41")
        # What `Message` writes into its metadata.
        TaskIdentity.run_id, TaskIdentity.task_id = run, task
        TaskIdentity.node_id = SUPERLINK_NODE_ID
        return run, task


def _pem(key: bytes) -> bytes:
    return public_key_to_bytes(load_der_public_key(key))  # type: ignore[arg-type]


def _configuration(address: tuple[str, int]) -> SuperLinkLifespanConfig:
    """A SuperLink that keeps its state in memory and starts no process of its own."""
    return SuperLinkLifespanConfig(
        control_address=CONTROL_API_DEFAULT_SERVER_ADDRESS,
        health_server_address=None,
        host=address[0],
        port=address[1],
        insecure=False,
        certificates=None,
        superexec_auth_secret=None,
        authn_plugin=NoOpControlAuthnPlugin(),
        event_log_plugin=None,
        fleet_event_log_plugin=None,
        enable_event_log=False,
        artifact_provider=None,
        enable_supernode_auth=True,
        fleet_api_type=TRANSPORT_TYPE_GRPC_RERE,
        fleet_api_address=None,
        simulation=False,
        ssl_ca_certfile=None,
        ssl_certfile=None,
        ssl_keyfile=None,
        database=FLWR_IN_MEMORY_DB_NAME,
        isolation=ISOLATION_MODE_PROCESS,
        runtime_dependency_install=False,
    )
