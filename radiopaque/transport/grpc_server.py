"""A serving party's end of gRPC with mutual TLS: strict messages, typed errors."""

from __future__ import annotations

import resource
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import Final

from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from radiopaque.certificates import Identity, Role, Watch
from radiopaque.errors import (
    ConfigError,
    ConnectionLostError,
    DeadlineError,
    RadiopaqueError,
    without_traceback,
)
from radiopaque.telemetry import get_logger
from radiopaque.transport.admission import Admission, Call, Guard, Handler, party_of
from radiopaque.transport.channel import Channel
from radiopaque.transport.grpc_client import SERVICES
from radiopaque.transport.health import SERVICE as HEALTH
from radiopaque.transport.health import Health
from radiopaque.transport.inbox import Inbox
from radiopaque.transport.observer import Observer
from radiopaque.transport.status import public_error
from radiopaque.transport.tls import check_refuses_tls12, grpc, server_credentials
from radiopaque.wire import frames, messages
from radiopaque.wire.frames import MAX_MESSAGE_BYTES, Frame

__all__ = ["Call", "Handler", "Server", "ServingChannel"]

_OPTIONS: Final = (
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    # Two servers on one port would each see a part of a session's calls.
    ("grpc.so_reuseport", 0),
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    # Twice as often as clients ping, so that none is turned away as a nuisance.
    ("grpc.http2.min_ping_interval_without_data_ms", 15_000),
)
_FLUSH_SECONDS: Final = 1.0
_MOST_CONNECTIONS: Final = 1000
"""Held at once, whether they have shown a certificate yet or not; others are closed at once."""
_HANDSHAKE_SECONDS: Final = 10.0
"""In which a connection has to show one."""
_SPARE_CALLS: Final = 8
"""Let in beyond the limit, to be told when to try again, or to ask for health; more are turned away
by gRPC, which tells them nothing."""

_log = get_logger(__name__)


class Server:
    """Serves one party's methods.

    ``deadline_seconds`` is the most that a call may ask for; ``concurrent_calls`` and
    ``calls_per_peer`` bound the calls under way, of all peers and of each.
    """

    def __init__(
        self,
        identity: Identity,
        handlers: Mapping[str, Handler],
        *,
        concurrent_calls: int = 32,
        calls_per_peer: int = 8,
        deadline_seconds: float = 3600.0,
        observer: Observer | None = None,
    ) -> None:
        service = SERVICES[identity.role]
        if set(handlers) != set(service.methods_by_name):
            raise ConfigError(
                f"the table of {service.name} must name {sorted(service.methods_by_name)}, "
                f"it names {sorted(handlers)}"
            )
        self._role = str(identity.role)
        self._watch = Watch(identity)
        most = concurrent_calls + _SPARE_CALLS
        self._pool = ThreadPoolExecutor(most, thread_name_prefix="radiopaque-call")
        self._server = grpc.server(
            self._pool, options=(*_OPTIONS, *_bounds()), maximum_concurrent_rpcs=most
        )
        self._admission = admission = Admission(
            deadline_seconds, concurrent_calls, calls_per_peer, self._watch, observer
        )
        table = {
            name: _method_handler(service.methods_by_name[name], handler, admission)
            for name, handler in handlers.items()
        }
        self._health = Health(service.full_name)
        check = Handler(self._health.check, frozenset(Role), any_version=True)
        # admitted apart: a party that is busy, or stopping, still says so
        asking = {
            "Check": _method_handler(
                HEALTH.methods_by_name["Check"],
                check,
                Admission(deadline_seconds, most, calls_per_peer, self._watch),
            )
        }
        self._server.add_generic_rpc_handlers(
            (
                grpc.method_handlers_generic_handler(service.full_name, table),
                grpc.method_handlers_generic_handler(HEALTH.full_name, asking),
            )
        )

    def start(self, listen: str) -> int:
        """Listen on ``host:port`` (port 0: any free one) and return the port.

        Raises ConfigError when the address cannot be used, or TLS 1.2 would be accepted.
        """
        try:
            port = self._server.add_secure_port(listen, server_credentials(self._watch))
        except RuntimeError as error:
            raise ConfigError(
                f"cannot listen on {listen}; check that the address is one of this machine and "
                "that no other program uses the port"
            ) from error
        self._server.start()
        try:
            check_refuses_tls12(listen, port, self._watch.identity())
        except BaseException:
            self._server.stop(0).wait()
            raise
        _log.info("listening", address=listen, role=str(self._watch.identity().role))
        return int(port)

    def stop(self, grace_seconds: float = 5.0) -> None:
        """Drain: refuse new calls, give those under way ``grace_seconds``, then cancel them.

        Until the last one has ended the server still answers: health checks with NOT_SERVING, all
        else with PeerUnavailableError.
        """
        self._health.serving = False
        under_way = self._admission.under_way()
        _log.info("draining", role=self._role, count=under_way, seconds=grace_seconds)
        drained = self._admission.drain(grace_seconds)
        left = self._admission.under_way()
        # a call that has left may still have its last bytes to send
        self._server.stop(_FLUSH_SECONDS if drained else 0).wait()
        # gRPC leaves the threads of a pool that it was given waiting for more
        self._pool.shutdown(wait=False)
        if drained:
            _log.info("stopped", role=self._role)
        else:
            _log.warning("stopped, calls were broken off", role=self._role, count=left)

    def wait(self) -> None:
        """Block until the server has stopped."""
        self._server.wait_for_termination()


def _bounds() -> tuple[tuple[str, int], ...]:
    """Of connections: half of the files that may be open are left for calls and the store."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _MOST_CONNECTIONS
    if files != resource.RLIM_INFINITY:
        most = min(most, files // 2)
    return (
        ("grpc.max_allowed_incoming_connections", most),
        ("grpc.server_handshake_timeout_ms", round(_HANDSHAKE_SECONDS * 1000)),
    )


class ServingChannel:
    """The serving end of a stream; see :class:`radiopaque.transport.channel.Channel`.

    The party's function works on it in a thread of its own, while gRPC's thread takes what is to be
    sent from ``replies()``, so that neither computing nor waiting for a frame holds back sending.
    """

    def __init__(
        self, requests: Iterator[bytes], call: Call, context: grpc.ServicerContext
    ) -> None:
        self.counters = call.counters
        self.error: RadiopaqueError | None = None
        self._call = call
        self._context = context
        self._inbox = Inbox(lambda: _next_request(requests, context))
        self._closing = threading.Lock()
        self._ended: RadiopaqueError | None = None
        self._outbox: SimpleQueue[bytes | None] = SimpleQueue()
        if not context.add_callback(self._on_termination):
            self._on_termination()

    def send(self, frame: Frame) -> None:
        if self._ended is not None:
            raise without_traceback(self._ended)
        data = frames.encode(frame)
        self._outbox.put(data)
        self.counters.count_sent(len(data))

    def receive(self, more: bool = False) -> Frame:
        if self._ended is not None:
            raise without_traceback(self._ended)
        data = self._inbox.get()
        if data is None:
            error = ConnectionLostError("the peer has ended the stream")
            raise without_traceback(self._ended or error)
        if more:
            self._inbox.look_ahead()
        frame = frames.decode(data)
        self.counters.count_received_frame(frame, len(data))
        return frame

    def close(self, error: RadiopaqueError | None = None) -> None:
        reported = without_traceback(error) if error else None
        self._end(reported or ConnectionLostError("this side has closed the channel"), reported)

    def replies(self) -> Iterator[bytes]:
        """What is to be sent, until the channel is closed."""
        return iter(self._outbox.get, None)

    def _on_termination(self) -> None:
        self._inbox.let_go()
        self._end(_interruption(self._context), None)

    def _end(self, ended: RadiopaqueError, reported: RadiopaqueError | None) -> None:
        with self._closing:
            if self._ended is None:
                self.error, self._ended = reported, ended
                self._outbox.put(None)


def _method_handler(
    method: MethodDescriptor, handler: Handler, admission: Admission
) -> grpc.RpcMethodHandler:
    """gRPC's view of a row of the table; messages stay bytes and are decoded strictly here."""
    request_type = GetMessageClass(method.input_type)

    def decode(data: bytes, call: Call) -> Message:
        call.counters.count_received(len(data))
        return messages.decode(request_type, data)

    def encode(reply: Message | Frame, call: Call) -> bytes:
        data = frames.encode(reply) if isinstance(reply, Frame) else messages.encode(reply)
        call.counters.count_sent(len(data))
        return data

    def unary(data: bytes, context: grpc.ServicerContext) -> bytes:
        with Guard(method, handler, admission, context) as call:
            return encode(handler.function(decode(data, call), call), call)

    def downloading(data: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        with Guard(method, handler, admission, context) as call:
            for reply in handler.function(decode(data, call), call):
                yield encode(reply, call)

    def uploading(requests: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
        with Guard(method, handler, admission, context) as call:
            decoded = (decode(data, call) for data in _received(requests, context))
            return encode(handler.function(decoded, call), call)

    def both(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        with Guard(method, handler, admission, context) as call:
            channel = ServingChannel(requests, call, context)
            worker = threading.Thread(
                target=_serve_channel, args=(handler.function, channel, call, method), daemon=True
            )
            worker.start()
            try:
                yield from channel.replies()
            finally:
                # The slot of this call stays taken until the party's function has let go.
                worker.join()
            if channel.error is not None:
                raise without_traceback(channel.error)

    if method.client_streaming:
        if method.server_streaming:
            return grpc.stream_stream_rpc_method_handler(both)
        return grpc.stream_unary_rpc_method_handler(uploading)
    if method.server_streaming:
        return grpc.unary_stream_rpc_method_handler(downloading)
    return grpc.unary_unary_rpc_method_handler(unary)


def _serve_channel(
    function: Callable[[Channel, Call], None],
    channel: ServingChannel,
    call: Call,
    method: MethodDescriptor,
) -> None:
    try:
        function(channel, call)
    except Exception as error:
        channel.close(public_error(error, method.name, party_of(method)))
    else:
        channel.close()


def _received(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterable[bytes]:
    while (data := _next_request(requests, context)) is not None:
        yield data


def _next_request(requests: Iterator[bytes], context: grpc.ServicerContext) -> bytes | None:
    """The next message, or None at the end of the stream."""
    try:
        return next(requests, None)
    except grpc.RpcError:
        raise _interruption(context) from None


def _interruption(context: grpc.ServicerContext) -> RadiopaqueError:
    remaining = context.time_remaining()
    if remaining is not None and remaining <= 0:
        return DeadlineError("the caller's deadline passed before the call was complete")
    return ConnectionLostError("the peer has broken off the call")
