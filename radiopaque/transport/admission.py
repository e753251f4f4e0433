"""Who is admitted to a call of a serving party, and how a call that fails is answered."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

from cryptography import x509
from google.protobuf.descriptor import MethodDescriptor

from radiopaque import versions
from radiopaque.certificates import PeerIdentity, Role, Watch, check_validity, peer_identity
from radiopaque.errors import (
    AuthenticationError,
    MessageValueError,
    PeerUnavailableError,
    ResourceError,
    RoleError,
)
from radiopaque.telemetry import get_logger
from radiopaque.transport.cancellation import Cancellation
from radiopaque.transport.channel import Counters
from radiopaque.transport.grpc_client import SERVICES
from radiopaque.transport.observer import ABANDONED, OK, Observer
from radiopaque.transport.status import abort, public_error
from radiopaque.transport.tls import grpc

_ROUNDED: Final = 1.01
"""gRPC sends a deadline in two or three digits, rounded up: 301 s for 300, 1,010 for 1,000.5."""
_RETRY_SECONDS: Final = 1.0
_PARTIES: Final = {service.full_name: role for role, service in SERVICES.items()}

_log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Call:
    """What a handler knows of the call it serves, besides the messages."""

    peer: PeerIdentity
    deadline_seconds: float
    counters: Counters = field(default_factory=Counters)
    about: dict[str, str] = field(default_factory=dict)
    """What its handler tells observers: ``model``, ``version``, ``session``. No secret."""
    began: float = field(default_factory=time.time)
    cancellation: Cancellation = field(default_factory=Cancellation)
    """Over when the call is, however it ended."""


@dataclass(frozen=True, slots=True)
class Handler:
    """One row of a party's table: what serves a method and which roles may call it.

    ``function`` by the shape of the method: ``(request, call) -> reply``;
    ``(request, call) -> iterator of replies``, which are messages or frames;
    ``(iterator of requests, call) -> reply``; ``(channel, call) -> None`` for frames both ways.
    """

    function: Callable[..., Any]
    roles: frozenset[Role]
    any_version: bool = False
    """Whether callers of another protocol version may call it, and those that state none."""
    admit: Callable[[PeerIdentity], None] | None = None
    """Raises an error for those in these roles that may not call it all the same."""


class Admission:
    """Bounds of one server's calls: how long each may take, how many at once, and of one peer."""

    def __init__(
        self,
        deadline_seconds: float,
        concurrent_calls: int,
        calls_per_peer: int,
        watch: Watch | None = None,
        observer: Observer | None = None,
    ) -> None:
        self.deadline_seconds = deadline_seconds
        self.watch = watch
        self.observer = observer or Observer()
        self._concurrent_calls = concurrent_calls
        self._calls_per_peer = calls_per_peer
        self._lock = threading.Lock()
        self._idle = threading.Condition(self._lock)
        self._under_way: Counter[PeerIdentity] = Counter()
        self._draining = False

    def enter(self, peer: PeerIdentity) -> None:
        """Raises ResourceError where the peer has its share of calls under way, or all have.

        Raises PeerUnavailableError once the server is being stopped.
        """
        with self._lock:
            if self._draining:
                raise PeerUnavailableError(
                    "this party is being stopped or restarted and takes no new calls; "
                    "try again in a minute"
                )
            if self._under_way[peer] >= self._calls_per_peer:
                raise ResourceError(
                    f"{self._calls_per_peer} calls of {peer} are under way, its limit here; "
                    "wait for one to end",
                    retry_seconds=_RETRY_SECONDS,
                )
            if self._under_way.total() >= self._concurrent_calls:
                raise ResourceError(
                    f"{self._concurrent_calls} calls are under way, the limit here; "
                    "try again in a second",
                    retry_seconds=_RETRY_SECONDS,
                )
            self._under_way[peer] += 1

    def leave(self, peer: PeerIdentity) -> None:
        """A call is over."""
        with self._lock:
            self._under_way[peer] -= 1
            if not self._under_way[peer]:
                del self._under_way[peer]
            self._idle.notify_all()

    def under_way(self) -> int:
        """How many calls there are."""
        with self._lock:
            return self._under_way.total()

    def drain(self, seconds: float) -> bool:
        """Admit nobody from now on, and wait for those under way to end; whether all did."""
        with self._lock:
            self._draining = True
            return self._idle.wait_for(lambda: not self._under_way, seconds)


def party_of(method: MethodDescriptor) -> str:
    """The role that serves a method."""
    return _PARTIES.get(method.containing_service.full_name, "party")


class Guard:
    """Around every call: admits the peer, and turns what goes wrong into a status."""

    def __init__(
        self,
        method: MethodDescriptor,
        handler: Handler,
        admission: Admission,
        context: grpc.ServicerContext,
    ) -> None:
        self._method: str = method.name
        self._party = party_of(method)
        self._handler = handler
        self._admission = admission
        self._context = context
        self._peer: PeerIdentity | None = None
        self._call: Call | None = None

    def __enter__(self) -> Call:
        try:
            call = self._admit()
            try:
                self._admission.observer.begun(self._method, call)
            except BaseException:
                self._admission.leave(call.peer)
                raise
        except Exception as error:
            self._abort(error)
            raise
        self._call = call
        return call

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if self._peer is not None:
            self._admission.leave(self._peer)
        if isinstance(error, Exception):
            self._abort(error)
        there = error is None and self._context.is_active()
        self._tell(OK if there else ABANDONED)

    def _admit(self) -> Call:
        with suppress(grpc.RpcError):  # the caller may have gone already
            self._context.send_initial_metadata(versions.own())
        presented = self._context.auth_context().get("x509_pem_cert")
        if not presented:
            raise AuthenticationError("the call came without a client certificate; present one")
        certificate = x509.load_pem_x509_certificate(presented[0])
        peer = peer_identity(certificate)
        self._peer = peer
        check_validity(certificate, f"of {peer}")
        if self._admission.watch is not None:
            self._admission.watch.check(certificate, f"of {peer}")
        if peer.role not in self._handler.roles:
            raise RoleError(
                f"{self._method} is for {' or '.join(sorted(self._handler.roles))}; "
                f"this certificate is that of the {peer}"
            )
        if self._handler.admit is not None:
            self._handler.admit(peer)
        if not self._handler.any_version:
            caller = versions.stated(self._context.invocation_metadata())
            versions.check(caller, peer.role, self._party)
        remaining = self._context.time_remaining()
        longest = self._admission.deadline_seconds
        if remaining is None or remaining > longest * _ROUNDED:
            raise MessageValueError(
                f"{self._method} must be called with a deadline of at most {longest:g} s; "
                "lower deadline_seconds in the caller's config"
            )
        self._admission.enter(peer)
        call = Call(peer, remaining)
        if not self._context.add_callback(call.cancellation.cancel):
            call.cancellation.cancel()
        return call

    def _abort(self, error: Exception) -> None:
        public = public_error(error, self._method, self._party)
        _log.warning(
            "call refused",
            method=self._method,
            peer=str(self._peer or "?"),
            error=f"{type(public).__name__}: {public}",
        )
        self._tell(type(public).__name__)
        abort(self._context, public)

    def _tell(self, outcome: str) -> None:
        observer, call = self._admission.observer, self._call
        if call is None:
            observer.refused(self._method, outcome, str(self._peer or "?"))
        else:
            observer.ended(self._method, call, outcome)
