"""A site's end: a SuperNode that speaks Flower's Fleet API and hands questions to a function.

Flower's own SuperNode fetches the code of an app from the SuperLink and runs it, which would let
the coordinator run what it likes beside the images, and starts a process for every message, in
which the secrets of a round could only live by being handed around. This one fetches messages and
nothing else, and answers them in this process. It uses Flower's client, signatures and messages.
"""

from __future__ import annotations

import contextlib
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

import httpx
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from flwr.app import Message, RecordDict
from flwr.app.message import make_message, remove_content_from_message
from flwr.common.constant import HEARTBEAT_MIN_INTERVAL
from flwr.common.serde import message_to_proto
from flwr.common.serde_utils import metadata_from_proto
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    DeactivateNodeRequest,
    PullMessagesRequest,
    PushMessagesRequest,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import (
    ConfirmMessageReceivedRequest,
    PullObjectRequest,
    PushObjectRequest,
)
from flwr.proto.node_pb2 import Node
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from training.errors import RefusedMessageError, SettingsError, TrainingError
from training.flower.parcels import OBJECT_BYTES, inflate, inventory, pack, unpack

COORDINATOR = "coordinator"
_RESPONSE_BYTES = OBJECT_BYTES + (1 << 16)
_TIMEOUT_SECONDS = 60.0
_EAGER_SECONDS = 10.0
_EAGER_INTERVAL = 0.1
_IDLE_INTERVAL = 1.0
_FIRST_RETRY_SECONDS = 1.0
_LONGEST_RETRY_SECONDS = 5.0
_HEARTBEAT_SECONDS = 0.8 * HEARTBEAT_MIN_INTERVAL

Answer = Callable[[bytes], bytes]
Report = Callable[[str], None]
Returned = TypeVar("Returned")


class UnreachableError(TrainingError):
    """The coordinator does not answer, or has forgotten this node; worth another try."""


class SuperNode:
    """Serves one coordinator. `certificate` (PEM) is the only one it accepts; TLS 1.3 at least.

    `longest` bounds the questions it fetches, in bytes.
    """

    def __init__(
        self,
        address: str,
        certificate: str,
        key: EllipticCurvePrivateKey,
        longest: int,
        report: Report,
        proxy: str | None = None,
    ) -> None:
        public = key.public_key()
        context = _pinning(certificate)
        self._address = address
        self._public = public_key_to_bytes(public)
        self._longest = longest
        self._report = report
        self._client = FleetHttpClient(
            f"https://{address}",
            interceptors=[NodeAuthHttpInterceptor(key, public)],
            verify=context,
        )
        # Flower's client would follow redirections, read answers of any size, and take proxies from
        # the environment.
        self._client._client.close()
        self._client._client = httpx.Client(
            transport=BoundedTransport(httpx.HTTPTransport(verify=context, proxy=proxy)),
            timeout=_TIMEOUT_SECONDS,
            follow_redirects=False,
            headers={"accept-encoding": "identity"},
        )
        self._node: Node | None = None

    def serve(self, answer: Answer, finished: Callable[[], bool], unreadable: bytes) -> None:
        """Answer questions until `finished`; the coordinator may come and go meanwhile.

        `unreadable` is the answer to a question that is refused before `answer` gets to see it.

        Raises:
            SettingsError: the coordinator is not the pinned one, or does not know this node's key.
            Whatever `answer` raises.
        """
        told, pause = "", _FIRST_RETRY_SECONDS
        while not finished():
            try:
                with self._connected():
                    self._report(f"connected to {self._address}")
                    told, pause = "", _FIRST_RETRY_SECONDS
                    self._pull(answer, finished, unreadable)
            except UnreachableError as error:
                if str(error) != told:
                    self._report(f"{error}; trying again until it works")
                told = str(error)
                time.sleep(pause)
                pause = min(1.5 * pause, _LONGEST_RETRY_SECONDS)

    def check(self) -> None:
        """Connect, and disconnect.

        Raises:
            SettingsError, UnreachableError: it does not work; says why.
        """
        with self._connected():
            pass

    @contextlib.contextmanager
    def _connected(self) -> Iterator[None]:
        self._node = None
        request = ActivateNodeRequest(
            public_key=self._public, heartbeat_interval=HEARTBEAT_MIN_INTERVAL
        )
        response = self._call(lambda: self._client.ActivateNode(request))
        self._node = Node(node_id=response.node_id)
        stop = threading.Event()
        beating = threading.Thread(target=self._beat, args=(self._node, stop), daemon=True)
        beating.start()
        try:
            yield
        finally:
            stop.set()
            with contextlib.suppress(UnreachableError, SettingsError):
                leaving = DeactivateNodeRequest(node_id=response.node_id)
                self._call(lambda: self._client.DeactivateNode(leaving))

    def _beat(self, node: Node, stop: threading.Event) -> None:
        request = SendNodeHeartbeatRequest(node=node, heartbeat_interval=HEARTBEAT_MIN_INTERVAL)
        while not stop.wait(_HEARTBEAT_SECONDS):
            # A heartbeat that fails is the next call's failure, too, which reports it.
            with contextlib.suppress(UnreachableError, SettingsError):
                self._call(lambda: self._client.SendNodeHeartbeat(request))

    def _pull(self, answer: Answer, finished: Callable[[], bool], unreadable: bytes) -> None:
        heard = 0.0
        while not finished():
            response = self._call(
                lambda: self._client.PullMessages(PullMessagesRequest(node=self._node))
            )
            if not response.messages_list:
                eager = time.monotonic() - heard < _EAGER_SECONDS
                time.sleep(_EAGER_INTERVAL if eager else _IDLE_INTERVAL)
                continue
            metadata = metadata_from_proto(response.messages_list[0].metadata)
            question = make_message(metadata=metadata, content=RecordDict())
            try:
                question = self._fetch(metadata.run_id, metadata.message_id)
                payload = unpack(COORDINATOR, question.content, self._longest)
            except RefusedMessageError as error:
                self._report(f"{error}. Its network may be larger than the one agreed on")
                self._push(question, unreadable)
            else:
                self._push(question, answer(payload))
            heard = time.monotonic()

    def _fetch(self, run: int, message_id: str) -> Message:
        def fetch(object_id: str) -> bytes:
            request = PullObjectRequest(node=self._node, run_id=run, object_id=object_id)
            deadline = time.monotonic() + _TIMEOUT_SECONDS
            while time.monotonic() < deadline:
                response = self._call(lambda: self._client.PullObject(request))
                if not response.object_found:
                    break
                if response.object_available:
                    return bytes(response.object_content)
                time.sleep(_EAGER_INTERVAL)
            raise RefusedMessageError(
                COORDINATOR, "an object is missing: the question was recalled"
            )

        names = inventory(COORDINATOR, message_id, fetch, self._longest)
        message = inflate(COORDINATOR, names, fetch)
        received = ConfirmMessageReceivedRequest(
            node=self._node, run_id=run, message_object_id=message_id
        )
        self._call(lambda: self._client.ConfirmMessageReceived(received))
        return message

    def _push(self, question: Message, payload: bytes) -> None:
        reply = Message(pack(payload), reply_to=question)
        run = question.metadata.run_id
        with no_object_id_recompute():
            reply.metadata.__dict__["_message_id"] = reply.object_id
            objects = get_all_nested_objects(reply)
            request = PushMessagesRequest(
                node=self._node,
                messages_list=[message_to_proto(remove_content_from_message(reply))],
                message_object_trees=[get_object_tree(reply)],
                clientapp_runtime_list=[0.0],
            )
            response = self._call(lambda: self._client.PushMessages(request))
            for object_id in response.objects_to_push:
                if object_id not in objects:
                    raise RefusedMessageError(COORDINATOR, "it asks for an object of nobody's")
                push = PushObjectRequest(
                    node=self._node,
                    run_id=run,
                    session_id=response.session_id,
                    object_id=object_id,
                    object_content=objects[object_id].deflate(),
                )
                self._call(lambda push=push: self._client.PushObject(push))  # type: ignore[misc]

    def _call(self, call: Callable[[], Returned]) -> Returned:
        try:
            return call()
        except httpx.HTTPStatusError as error:
            raise self._refused(error.response.status_code) from error
        except httpx.RequestError as error:
            if "CERTIFICATE_VERIFY_FAILED" in str(error):
                raise SettingsError(
                    f"{self._address} does not show the certificate that the list of members pins "
                    f"({error}); do not go on before the coordinator has explained that"
                ) from error
            raise UnreachableError(
                f"the coordinator {self._address} cannot be reached ({type(error).__name__})"
            ) from error
        except ValueError as error:
            raise UnreachableError(
                f"the coordinator {self._address} answers what is not of Flower 1.41"
            ) from error

    def _refused(self, status: int) -> TrainingError:
        if status == httpx.codes.FORBIDDEN:
            return SettingsError(
                "the coordinator does not know this site's node key: its list of members is not "
                "this site's, or the folder of keys is another one"
            )
        if status == httpx.codes.UNAUTHORIZED and self._node is None:
            return SettingsError(
                "the coordinator does not accept this site's signature; set the clocks right (they "
                "may differ by 5 minutes at most), or restore the key"
            )
        if self._node is None:
            return UnreachableError(
                "the coordinator still holds an earlier connection of this site"
            )
        return UnreachableError(f"the coordinator has ended the connection (status {status})")


class BoundedTransport(httpx.BaseTransport):
    """Reads no answer longer than an object of a parcel, and none that is compressed."""

    def __init__(self, inner: httpx.BaseTransport, longest: int = _RESPONSE_BYTES) -> None:
        self._inner = inner
        self._longest = longest

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Pass a request on, and bound what is read of the response."""
        response = self._inner.handle_request(request)
        stream = response.stream
        if not isinstance(stream, httpx.SyncByteStream) or "content-encoding" in response.headers:
            response.close()
            raise httpx.ReadError("the answer is encoded in a way that was not asked for")
        return httpx.Response(
            response.status_code,
            headers=response.headers,
            stream=_Bounded(stream, self._longest),
            extensions=response.extensions,
        )

    def close(self) -> None:
        """Close the connections."""
        self._inner.close()


class _Bounded(httpx.SyncByteStream):
    def __init__(self, inner: httpx.SyncByteStream, longest: int) -> None:
        self._inner = inner
        self._left = longest

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self._inner:
            self._left -= len(chunk)
            if self._left < 0:
                raise httpx.ReadError("the answer is longer than anything that is asked for")
            yield chunk

    def close(self) -> None:
        self._inner.close()


def _pinning(certificate: str) -> ssl.SSLContext:
    """Accept one certificate, whoever issued it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.load_verify_locations(cadata=certificate)
    return context
