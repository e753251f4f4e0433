"""Parties of two protocol versions: each side finds out, and says who has to upgrade.

The server is a real one. An older or newer party is one that states so: a raw call with other
metadata, or a party whose own metadata are replaced.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

import radiopaque
from radiopaque import versions
from radiopaque.certificates import Role
from radiopaque.errors import ProtocolError, RadiopaqueError, SessionError, VersionError
from radiopaque.transport import status
from radiopaque.transport.channel import Counters
from radiopaque.transport.tls import client_credentials, grpc
from radiopaque.versions import PROTOCOL, Stated
from radiopaque.wire.frames import Frame, Kind
from radiopaque.wire.v1 import services_pb2 as pb
from tests.unit.transport.calls import list_models, no_models

OLD = (("radiopaque-protocol", str(PROTOCOL - 1)), ("radiopaque-release", "0.0.9"))
NEW = (("radiopaque-protocol", str(PROTOCOL + 1)), ("radiopaque-release", "9.0.0"))
SILENT: tuple[tuple[str, str], ...] = ()


def raw_list_models(host: Any, metadata: Any) -> grpc.RpcError:
    """ListModels by a caller that states ``metadata``, and how it is refused."""
    options = [("grpc.ssl_target_name_override", Role.MODEL_OWNER.server_name)]
    credentials = client_credentials(host.identities[Role.DATA_OWNER])
    with grpc.secure_channel(host.address, credentials, options) as channel:
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary("/radiopaque.v1.ModelOwner/ListModels")(
                b"", timeout=5, metadata=metadata
            )
        return caught.value


@pytest.mark.parametrize(
    ("metadata", "upgrade"),
    [
        (SILENT, "upgrade the data owner"),
        (OLD, "upgrade the data owner"),
        (NEW, "upgrade the model owner"),
        ((*versions.own(), *versions.own()), "upgrade the data owner"),
        ((("radiopaque-protocol", f"0{PROTOCOL}"),), "upgrade the data owner"),
        ((("radiopaque-protocol", "9" * 4000),), "upgrade the data owner"),
    ],
    ids=["states nothing", "older", "newer", "twice", "leading zero", "long"],
)
def test_a_server_refuses_callers_of_another_version(
    host: Any, metadata: Any, upgrade: str
) -> None:
    called = []

    def noted(*_: Any) -> pb.ListModelsReply:
        called.append(1)
        return pb.ListModelsReply()

    host.functions["ListModels"] = noted
    error = raw_list_models(host, metadata)
    assert not called
    typed = status.from_rpc_error(error, "model owner", host.address)
    assert type(typed) is VersionError
    assert str(typed).endswith(upgrade)
    assert f"the model owner speaks protocol {PROTOCOL} (release " in str(typed)
    list_models(host.peer)


def test_what_release_0_1_0_makes_of_it(host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not know the class, and takes the nearest one of the status code."""
    error = raw_list_models(host, SILENT)
    known = {name: one for name, one in status._CLASSES.items() if name != "VersionError"}
    monkeypatch.setattr(status, "_CLASSES", known)
    typed = status.from_rpc_error(error, "model owner", host.address)
    assert type(typed) is SessionError
    assert str(typed).endswith("upgrade the data owner")


def unary(host: Any) -> None:
    list_models(host.peer)


def upload(host: Any) -> None:
    host.peer.upload("Prepare", [pb.PrepareRequest()], pb.PrepareReply, Counters())


def download(host: Any) -> None:
    request = pb.FetchMaskedWeightsRequest(artefact=bytes(16))
    next(host.peer.download("FetchMaskedWeights", request, pb.Chunk, Counters()))


def channel(host: Any) -> None:
    opened = host.peer.open("Infer")
    opened.send(Frame(bytes(16), 0, Kind.START))
    try:
        opened.receive()
    finally:
        opened.close(ProtocolError("enough"))


@pytest.fixture
def serving(host: Any) -> Any:
    """A model owner that answers every method."""

    def prepare(requests: Iterator[Any], _: object) -> pb.PrepareReply:
        list(requests)
        return pb.PrepareReply()

    host.functions.update(
        ListModels=no_models,
        Prepare=prepare,
        FetchMaskedWeights=lambda *_: iter([pb.Chunk(data=b"x")]),
        Infer=lambda channel, _: channel.send(channel.receive()),
    )
    return host


@pytest.mark.parametrize("call", [unary, upload, download, channel])
@pytest.mark.parametrize(
    ("metadata", "upgrade"),
    [
        (SILENT, "upgrade the model owner"),
        (OLD, "upgrade the model owner"),
        (NEW, "upgrade the data owner"),
    ],
    ids=["states nothing", "older", "newer"],
)
def test_a_caller_uses_no_answer_of_another_version(
    serving: Any,
    monkeypatch: pytest.MonkeyPatch,
    call: Callable[[Any], None],
    metadata: Any,
    upgrade: str,
) -> None:
    """The server answers as it always does, with the metadata of another version."""
    call(serving)
    own = versions.own()
    served = iter([own, metadata])  # the caller's, then the server's
    monkeypatch.setattr(versions, "own", lambda: next(served))
    with pytest.raises(VersionError, match=upgrade):
        call(serving)


def test_releases_of_one_protocol_version_work_together(
    serving: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = (("radiopaque-protocol", str(PROTOCOL)), ("radiopaque-release", "7.7.7"))
    monkeypatch.setattr(versions, "own", lambda: own)
    for call in (unary, upload, download, channel):
        call(serving)


def test_what_a_party_states_is_what_it_reads() -> None:
    read = versions.stated(versions.own())
    assert (read.protocol, read.release) == (PROTOCOL, radiopaque.__version__)
    assert read.seconds is not None
    versions.check(read, "model owner", "data owner")


@pytest.mark.parametrize(
    "metadata",
    [
        None,
        [("radiopaque-protocol", b"2")],
        [("radiopaque-protocol", "2 ")],
        [("radiopaque-protocol", "-2")],
        [("radiopaque-protocol", "٢")],
        [("radiopaque-release", "1\x1b[2J")],
        [("radiopaque-release", "x" * 51)],
        [("radiopaque-time", "nan")],
        [("radiopaque-time", "1e9")],
    ],
)
def test_malformed_statements_state_nothing(metadata: Any) -> None:
    assert versions.stated(metadata) == Stated(None, None, None)


def test_the_error_crosses_the_network_as_itself() -> None:
    assert issubclass(VersionError, RadiopaqueError)
    assert status._CLASSES["VersionError"] is VersionError
