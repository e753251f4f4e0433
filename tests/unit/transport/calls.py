"""A call, an answer and an error for tests that are about something else."""

from __future__ import annotations

from typing import Any

from radiopaque.transport.channel import Counters
from radiopaque.transport.grpc_client import Peer
from radiopaque.transport.grpc_server import Call
from radiopaque.transport.tls import grpc
from radiopaque.wire.v1 import services_pb2 as pb


def list_models(peer: Peer, **options: Any) -> pb.ListModelsReply:
    return peer.call(
        "ListModels", pb.ListModelsRequest(), pb.ListModelsReply, Counters(), **options
    )


def no_models(request: pb.ListModelsRequest, call: Call) -> pb.ListModelsReply:
    return pb.ListModelsReply()


class FakeRpcError(grpc.RpcError):  # type: ignore[misc]
    """A status from a server that is not ours."""

    def __init__(self, code: grpc.StatusCode, details: str, name: str | None) -> None:
        self._status = (code, details, name)

    def code(self) -> grpc.StatusCode:
        return self._status[0]

    def details(self) -> str:
        return self._status[1]

    def trailing_metadata(self) -> tuple[tuple[str, str], ...] | None:
        return None if self._status[2] is None else (("radiopaque-error", self._status[2]),)
