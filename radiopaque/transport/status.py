"""How an error crosses the network: status code, class name in the trailing metadata, message.

What concerns the server's own disk or configuration, and every unexpected exception, crosses as a
reference into the server's log and nothing else.
"""

from __future__ import annotations

import math
import re
import secrets
from typing import Final

from radiopaque import errors
from radiopaque.errors import (
    AccessError,
    AuthenticationError,
    ConfigError,
    ConnectionLostError,
    DeadlineError,
    EngineError,
    InputError,
    MessageSizeError,
    PeerUnavailableError,
    ProtocolError,
    RadiopaqueError,
    ResourceError,
    SessionError,
    StoreError,
    UnsupportedModelError,
)
from radiopaque.telemetry import get_logger
from radiopaque.transport.tls import NO_TLS_SIGN, grpc, no_tls

ERROR_KEY: Final = "radiopaque-error"
RETRY_KEY: Final = "radiopaque-retry-seconds"
"""Whole seconds before which another try is in vain, with a ResourceError that knows."""
_MAX_DETAILS: Final = 2000
_SECONDS: Final = re.compile(r"[0-9]{1,9}", re.ASCII)
_LOCAL_ERRORS: Final = (ConfigError, EngineError, StoreError)

_CLASSES: Final[dict[str, type[RadiopaqueError]]] = {
    name: value
    for name, value in vars(errors).items()
    if isinstance(value, type)
    and issubclass(value, RadiopaqueError)
    and value is not UnsupportedModelError
}
_BY_STATUS: Final[dict[grpc.StatusCode, type[RadiopaqueError]]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InputError,
    grpc.StatusCode.FAILED_PRECONDITION: SessionError,
    grpc.StatusCode.NOT_FOUND: SessionError,
    grpc.StatusCode.ABORTED: ProtocolError,
    grpc.StatusCode.UNIMPLEMENTED: ProtocolError,
    grpc.StatusCode.PERMISSION_DENIED: AccessError,
    grpc.StatusCode.UNAUTHENTICATED: AuthenticationError,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: ResourceError,
    grpc.StatusCode.UNAVAILABLE: ConnectionLostError,
    grpc.StatusCode.CANCELLED: ConnectionLostError,
}
_TLS_SIGNS: Final = ("ssl", "certificate", "handshake", "verification")
# The server said nothing, or closed the connection before its part of the handshake, as one does
# that holds as many as it may: no matter of certificates.
_SILENT_SIGNS: Final = ("handshake read failed", "handshake write failed")
_CONNECT_SIGN: Final = "failed to connect"
_NAME_SIGN: Final = "resol"
_NO_GRPC_SIGN: Final = "missing selected ALPN property"
# A server that refuses a certificate in TLS 1.3 can do so only after the client's last message of
# the handshake; it then closes the connection.
_CLOSED_SIGNS: Final = ("socket closed", "connection reset", "broken pipe")

# A TLS record that was changed on the way.
_REMOVED_SIGN: Final = "stream removed"

_log = get_logger(__name__)


def public_error(error: Exception, method: str, party: str) -> RadiopaqueError:
    """What a peer may know of ``error``; what it may not know is logged under a reference.

    ``party`` is the role of the one that failed: a call may fail at a third party, further on.
    """
    if isinstance(error, RadiopaqueError) and not isinstance(error, _LOCAL_ERRORS):
        return error
    reference = secrets.token_hex(4)
    _log.failure("a call failed inside", error, method=method, reference=reference)
    kind = type(error) if isinstance(error, RadiopaqueError) else RadiopaqueError
    return kind(
        f"the {party.replace('-', ' ')} failed inside; its operator finds the cause in its log "
        f"under {reference}"
    )


def abort(context: grpc.ServicerContext, error: RadiopaqueError) -> None:
    """End a call on the server; never returns, gRPC unwinds the handler with an exception."""
    metadata = [(ERROR_KEY, type(error).__name__)]
    if isinstance(error, ResourceError) and error.retry_seconds is not None:
        metadata.append((RETRY_KEY, str(math.ceil(error.retry_seconds))))
    context.set_trailing_metadata(tuple(metadata))
    context.abort(grpc.StatusCode[error.status], str(error)[:_MAX_DETAILS])


def from_rpc_error(error: grpc.RpcError, peer: str, address: str) -> RadiopaqueError:
    """The client's view of a failed call to ``peer`` (its role) at ``address``."""
    code = error.code()
    details = _printable(error.details() or "")
    metadata = dict(error.trailing_metadata() or ())
    stated = metadata.get(ERROR_KEY)
    if isinstance(stated, str) and stated in _CLASSES:
        typed = _CLASSES[stated](details)
        seconds = metadata.get(RETRY_KEY)
        if isinstance(typed, ResourceError) and isinstance(seconds, str):
            typed.retry_seconds = float(seconds) if _SECONDS.fullmatch(seconds) else None
        return typed
    lowered = details.lower().replace(address.lower(), "")
    unconnected = _CONNECT_SIGN in lowered
    silent = any(sign in lowered for sign in _SILENT_SIGNS)
    refused = unconnected and any(sign in lowered for sign in _CLOSED_SIGNS)
    distrusted = any(sign in lowered for sign in _TLS_SIGNS)
    unavailable = code is grpc.StatusCode.UNAVAILABLE
    if unavailable and NO_TLS_SIGN in details:
        return no_tls(peer, address)
    if unavailable and _NO_GRPC_SIGN in details:
        return PeerUnavailableError(
            f"the TLS server at {address} knows no gRPC, so it is no {peer}; another program has "
            "this port: check the address and the port"
        )
    if unavailable and not silent and (refused or distrusted):
        return AuthenticationError(
            f"the {peer} at {address} and this party do not accept each other's certificates; "
            f"check that both trust the same authority, that neither certificate has expired, and "
            f"that a {peer} listens there ({details})"
        )
    if unavailable and (unconnected or _NAME_SIGN in lowered):
        return PeerUnavailableError(
            f"cannot reach the {peer} at {address}; check that it is running, that the address is "
            f"right and that no firewall is in between ({details})"
        )
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than max" in lowered:
        return MessageSizeError(
            f"a message between this party and the {peer} is too long: {details}"
        )
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return DeadlineError(
            f"the {peer} at {address} did not finish in the time allowed; allow more with "
            "deadline_seconds in the config, or look for the cause in its log"
        )
    damaged = code is grpc.StatusCode.UNKNOWN and _REMOVED_SIGN in lowered
    if damaged or code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
        return ConnectionLostError(
            f"the connection to the {peer} at {address} broke off ({details}); "
            "a session under way is spent, prepare another"
        )
    known = _BY_STATUS.get(code, RadiopaqueError)
    return known(f"the {peer} at {address} refused: {code.name} {details}")


def _printable(text: str) -> str:
    """A peer's text without what could steer a terminal."""
    return "".join(c if c.isprintable() or c == "\n" else "?" for c in text[:_MAX_DETAILS])
