"""Errors across the network: every class of ours as it is, other servers' by their status."""

from __future__ import annotations

from typing import Any

import pytest

from radiopaque import errors
from radiopaque.errors import (
    AuthenticationError,
    ConnectionLostError,
    PeerUnavailableError,
    RadiopaqueError,
    ResourceError,
    UnknownModelError,
)
from radiopaque.transport.status import from_rpc_error
from radiopaque.transport.tls import grpc
from tests.unit.transport.calls import FakeRpcError, list_models

ALL_ERRORS = [
    value
    for value in vars(errors).values()
    if isinstance(value, type) and issubclass(value, RadiopaqueError)
]


@pytest.mark.parametrize("error_type", ALL_ERRORS, ids=lambda one: one.__name__)
def test_every_error_of_the_tree_crosses(host: Any, error_type: type[RadiopaqueError]) -> None:
    text = "line one\nline two \x1b[31m ümlaut"

    def fail(*_: Any) -> None:
        raise error_type([text] if error_type is errors.UnsupportedModelError else text)

    host.functions["ListModels"] = fail
    with pytest.raises(RadiopaqueError) as caught:
        list_models(host.peer)
    assert caught.value.status == error_type.status
    if error_type in (errors.ConfigError, errors.EngineError, errors.StoreError):
        assert type(caught.value) is error_type
        assert "line one" not in str(caught.value)
    else:
        if error_type is not errors.UnsupportedModelError:
            assert type(caught.value) is error_type
        assert "line one\nline two ?[31m ümlaut" in str(caught.value)


@pytest.mark.parametrize("name", [None, "NoSuchError", "ModelCardWarning", "annotations"])
def test_unknown_class_names_are_mapped_by_status(name: str | None) -> None:
    def mapped(code: grpc.StatusCode) -> type[RadiopaqueError]:
        return type(from_rpc_error(FakeRpcError(code, "why", name), "model owner", "host:1"))

    status = grpc.StatusCode
    assert mapped(status.ABORTED) is errors.ProtocolError
    assert mapped(status.NOT_FOUND) is errors.SessionError
    assert mapped(status.PERMISSION_DENIED) is errors.AccessError
    assert mapped(status.RESOURCE_EXHAUSTED) is ResourceError
    assert mapped(status.UNKNOWN) is RadiopaqueError
    assert mapped(status.CANCELLED) is ConnectionLostError


@pytest.mark.parametrize(
    ("details", "expected"),
    [
        ("Failed to connect: Connection refused", PeerUnavailableError),
        ("Failed to connect: Handshake read failed (Endpoint closing)", PeerUnavailableError),
        ("Failed to connect: Ssl handshake failed: CERTIFICATE_VERIFY_FAILED", AuthenticationError),
        ("Failed to connect: Socket closed", AuthenticationError),
        ("Socket closed", ConnectionLostError),
    ],
)
def test_a_silent_peer_is_not_a_distrusted_one(
    details: str, expected: type[RadiopaqueError]
) -> None:
    """A handshake that was given up for lack of an answer says nothing about certificates."""
    text = details.replace("Failed to connect", "failed to connect to all addresses; last error")
    error = FakeRpcError(grpc.StatusCode.UNAVAILABLE, text, None)
    assert type(from_rpc_error(error, "model owner", "host:1")) is expected


def test_long_messages_are_cut(host: Any) -> None:
    def fail(*_: Any) -> None:
        raise UnknownModelError("x" * 100_000)

    host.functions["ListModels"] = fail
    with pytest.raises(UnknownModelError) as caught:
        list_models(host.peer)
    assert 1000 < len(str(caught.value)) <= 2000
