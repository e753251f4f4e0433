"""A call and an answer for tests that are about something else."""

from __future__ import annotations

from typing import Any

from radiopaque.transport.channel import Counters
from radiopaque.transport.grpc_client import Peer
from radiopaque.transport.grpc_server import Call
from radiopaque.wire.v1 import services_pb2 as pb


def list_models(peer: Peer, **options: Any) -> pb.ListModelsReply:
    return peer.call(
        "ListModels", pb.ListModelsRequest(), pb.ListModelsReply, Counters(), **options
    )


def no_models(request: pb.ListModelsRequest, call: Call) -> pb.ListModelsReply:
    return pb.ListModelsReply()
