"""Calls to a serving party over gRPC with mutual TLS."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, Final, TypeVar

from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import Message

from radiopaque import versions
from radiopaque.certificates import Identity, Role
from radiopaque.errors import (
    AuthenticationError,
    ConnectionLostError,
    RadiopaqueError,
    VersionError,
    without_traceback,
)
from radiopaque.transport import health
from radiopaque.transport.cancellation import Cancellation
from radiopaque.transport.channel import DEFAULT_DEADLINE_SECONDS, Counters
from radiopaque.transport.inbox import Inbox
from radiopaque.transport.status import from_rpc_error
from radiopaque.transport.tls import client_credentials, grpc
from radiopaque.transport.trust import Trust
from radiopaque.wire import frames, messages
from radiopaque.wire.frames import MAX_MESSAGE_BYTES, Frame
from radiopaque.wire.v1 import services_pb2 as pb

Reply = TypeVar("Reply", bound=Message)

SERVICES: Final[dict[Role, ServiceDescriptor]] = {
    Role.CRYPTO_PROVIDER: pb.DESCRIPTOR.services_by_name["CryptoProvider"],
    Role.MODEL_OWNER: pb.DESCRIPTOR.services_by_name["ModelOwner"],
}

_OPTIONS: Final = (
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    # A repeated message of the protocol is an attack or a bug; the library must not repeat any.
    ("grpc.enable_retries", 0),
    # A peer that is back after an outage is found within a second, not within up to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    # Notices a dead peer or a forgetful firewall within 40 s of silence during a call.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
)
_CLOSE_SECONDS: Final = 5.0
_LOOPBACK: Final = ("localhost:", "127.", "[::1]:")


@dataclass(frozen=True, slots=True)
class PeerHealth:
    """What a peer says of itself.

    ``clock_seconds``: how far its clock is ahead of this one's, to half of ``round_trip_seconds``;
    None where it does not tell.
    """

    serving: bool
    version: versions.Stated
    clock_seconds: float | None
    round_trip_seconds: float


class Peer:
    """A party that this one calls. Connects when first used; one per peer serves all threads.

    Each call takes the ``counters`` that its messages are added to, and raises the error that the
    peer ended with, or PeerUnavailableError, AuthenticationError, DeadlineError,
    ConnectionLostError, MessageSizeError, MessageValueError, VersionError.
    """

    def __init__(
        self, role: Role, address: str, identity: Identity, server_name: str | None = None
    ) -> None:
        self.role = role
        self.address = address
        self._own = identity.role
        self._service = SERVICES[role]
        self._server_name = server_name or role.server_name
        self._options: list[tuple[str, str | int]] = [
            *_OPTIONS,
            ("grpc.ssl_target_name_override", self._server_name),
        ]
        if address.startswith(_LOOPBACK):
            self._options.append(("grpc.enable_http_proxy", 0))
        self._trust = Trust(identity, role, address, self._server_name)
        self._lock = threading.Lock()
        # Calls may be under way over older channels; these let go of idle connections themselves.
        self._channels: list[grpc.Channel] = []
        self._shown: tuple[bytes, bytes] | None = None

    def close(self) -> None:
        with self._lock:
            for channel in self._channels:
                channel.close()

    def _connected(self, deadline_seconds: float) -> grpc.Channel:
        """A channel with the certificate that is in the files now, to a peer that still stands."""
        identity = self._trust.identity(deadline_seconds)
        shown = identity.certificate, identity.authorities
        with self._lock:
            if shown != self._shown:
                credentials = client_credentials(identity)
                channel = grpc.secure_channel(self.address, credentials, self._options)
                self._channels.append(channel)
                self._shown = shown
            return self._channels[-1]

    def await_back(self, seconds: float) -> None:
        """Return when the peer answers a health check, or after so long.

        gRPC's older polling (tls.py) makes a lost connection again only while a call waits for it.
        """
        path = f"/{health.SERVICE.full_name}/Check"
        data = messages.encode(health.Request())
        with suppress(grpc.RpcError, RadiopaqueError):
            check = self._connected(seconds).unary_unary(path)
            check(data, timeout=seconds, wait_for_ready=True)

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def call(
        self,
        method: str,
        request: Message,
        reply_type: type[Reply],
        counters: Counters,
        deadline_seconds: float = DEFAULT_DEADLINE_SECONDS,
        cancellation: Cancellation | None = None,
    ) -> Reply:
        """One message there, one back. Cancelled with ``cancellation``."""
        data = messages.encode(request)
        counters.count_sent(len(data))
        call = (
            self._connected(deadline_seconds)
            .unary_unary(self._path(method))
            .future(data, timeout=deadline_seconds, metadata=versions.own())
        )
        if cancellation is not None:
            cancellation.on(call.cancel)
        try:
            reply = call.result()
        except (grpc.RpcError, grpc.FutureCancelledError):
            raise self._typed(call) from None
        self._check_version(call)
        counters.count_received(len(reply))
        return messages.decode(reply_type, reply)

    def upload(
        self,
        method: str,
        requests: Iterable[Message],
        reply_type: type[Reply],
        counters: Counters,
        deadline_seconds: float = DEFAULT_DEADLINE_SECONDS,
    ) -> Reply:
        """Many messages there, one back. What ``requests`` raises is raised here."""
        failures: list[Exception] = []

        def encoded() -> Iterator[bytes]:
            try:
                for request in requests:
                    data = messages.encode(request)
                    counters.count_sent(len(data))
                    yield data
            except Exception as error:
                failures.append(error)
                call.cancel()

        call = (
            self._connected(deadline_seconds)
            .stream_unary(self._path(method))
            .future(encoded(), timeout=deadline_seconds, metadata=versions.own())
        )
        try:
            reply = call.result()
        except (grpc.RpcError, grpc.FutureCancelledError) as error:
            if failures:
                raise failures.pop() from None
            raise self._typed(error) from None
        self._check_version(call)
        counters.count_received(len(reply))
        return messages.decode(reply_type, reply)

    def download(
        self,
        method: str,
        request: Message,
        reply_type: type[Reply],
        counters: Counters,
        deadline_seconds: float = DEFAULT_DEADLINE_SECONDS,
    ) -> Iterator[Reply]:
        """One message there, many back."""

        def decode(data: bytes) -> Reply:
            counters.count_received(len(data))
            return messages.decode(reply_type, data)

        return self._stream(method, request, decode, counters, deadline_seconds)

    def download_frames(
        self,
        method: str,
        request: Message,
        counters: Counters,
        deadline_seconds: float = DEFAULT_DEADLINE_SECONDS,
        cancellation: Cancellation | None = None,
    ) -> Iterator[Frame]:
        """One message there, frames back. Cancelled with ``cancellation``."""

        def decode(data: bytes) -> Frame:
            frame = frames.decode(data)
            counters.count_received_frame(frame, len(data))
            return frame

        return self._stream(method, request, decode, counters, deadline_seconds, cancellation)

    def open(self, method: str, deadline_seconds: float = DEFAULT_DEADLINE_SECONDS) -> GrpcChannel:
        """Frames in both directions."""
        return GrpcChannel(
            self._connected(deadline_seconds).stream_stream(self._path(method)),
            deadline_seconds,
            self._typed,
            self._check_version,
        )

    def _stream(
        self,
        method: str,
        request: Message,
        decode: Callable[[bytes], Any],
        counters: Counters,
        deadline_seconds: float,
        cancellation: Cancellation | None = None,
    ) -> Iterator[Any]:
        data = messages.encode(request)
        counters.count_sent(len(data))
        call = self._connected(deadline_seconds).unary_stream(self._path(method))(
            data, timeout=deadline_seconds, metadata=versions.own()
        )
        if cancellation is not None:
            cancellation.on(call.cancel)
        try:
            for reply in self._checked(call):
                yield decode(reply)
        except grpc.RpcError as error:
            raise self._typed(error) from None
        finally:
            call.cancel()

    def check_health(self, deadline_seconds: float) -> PeerHealth:
        """Ask how the peer is, whatever its version; see :mod:`radiopaque.transport.health`."""
        path = f"/{health.SERVICE.full_name}/Check"
        asked = time.time()
        try:
            data, call = (
                self._connected(deadline_seconds)
                .unary_unary(path)
                .with_call(messages.encode(health.Request()), timeout=deadline_seconds)
            )
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.UNIMPLEMENTED:
                role = self.role.text
                raise VersionError(
                    f"the {role} at {self.address} answers no health checks, as releases before "
                    f"0.2.0; upgrade the {role}"
                ) from None
            raise self._typed(error) from None
        answered = time.time()
        version = versions.stated(call.initial_metadata())
        clock = None if version.seconds is None else version.seconds - (asked + answered) / 2
        reply = messages.decode(health.Reply, data)
        return PeerHealth(reply.status == health.Reply.SERVING, version, clock, answered - asked)

    def _checked(self, call: grpc.Call) -> Iterator[bytes]:
        """A call's replies, if the peer states this party's protocol version."""
        for number, reply in enumerate(call):
            if not number:
                self._check_version(call)
            yield reply

    def _check_version(self, call: grpc.Call) -> None:
        versions.check(versions.stated(call.initial_metadata()), self.role, self._own)

    def _path(self, method: str) -> str:
        return f"/{self._service.full_name}/{self._service.methods_by_name[method].name}"

    def _typed(self, error: grpc.RpcError) -> RadiopaqueError:
        error.__traceback__ = None  # it is the call, which its caller keeps
        typed = from_rpc_error(error, self.role.text, self.address)
        return self._trust.explain(typed) if isinstance(typed, AuthenticationError) else typed


class GrpcChannel:
    """The opening end of a stream; see :class:`radiopaque.transport.channel.Channel`."""

    def __init__(
        self,
        method: Callable[..., Any],
        deadline_seconds: float,
        typed: Callable[[grpc.RpcError], RadiopaqueError],
        check_version: Callable[[grpc.Call], None],
    ) -> None:
        self.counters = Counters()
        self._check_version: Callable[[grpc.Call], None] | None = check_version
        self._typed = typed
        self._outbox: SimpleQueue[bytes | None] = SimpleQueue()
        self._closing = threading.Lock()
        self._ended: RadiopaqueError | None = None
        self._terminated = threading.Event()
        self._call = method(
            iter(self._outbox.get, None), timeout=deadline_seconds, metadata=versions.own()
        )
        # The sentinel ends gRPC's sending thread, which would otherwise wait in the queue for ever.
        self._inbox = Inbox(lambda: next(self._call, None))
        self._call.add_done_callback(self._on_termination)

    def send(self, frame: Frame) -> None:
        if self._ended is not None:
            raise without_traceback(self._ended)
        if self._terminated.is_set():
            raise self._reason()
        data = frames.encode(frame)
        self.counters.count_sent(len(data))
        self._outbox.put(data)

    def receive(self, more: bool = False) -> Frame:
        if self._ended is not None:
            raise without_traceback(self._ended)
        try:
            data = self._inbox.get()
        except grpc.RpcError as error:
            error.__traceback__ = None  # it is the call, which is kept
            raise without_traceback(self._ended or self._reason()) from None
        if data is None:
            raise self._reason()
        if self._check_version is not None:
            self._check_version(self._call)
            self._check_version = None
        if more:
            self._inbox.look_ahead()
        frame = frames.decode(data)
        self.counters.count_received_frame(frame, len(data))
        return frame

    def close(self, error: RadiopaqueError | None = None) -> None:
        with self._closing:
            if self._ended is not None:
                return
            ended = error or ConnectionLostError("this side has closed the channel")
            self._ended = without_traceback(ended)
        self._outbox.put(None)
        if error is None:
            # Lets what was sent arrive, and the peer finish: cancelling at once would drop both.
            self._terminated.wait(_CLOSE_SECONDS)
        self._call.cancel()

    def _on_termination(self, _: object) -> None:
        self._terminated.set()
        self._inbox.let_go()
        self._outbox.put(None)

    def _reason(self) -> RadiopaqueError:
        if self._call.code() is grpc.StatusCode.OK:
            return ConnectionLostError(
                "the peer has ended the stream; the session is spent, prepare another"
            )
        return self._typed(self._call)
