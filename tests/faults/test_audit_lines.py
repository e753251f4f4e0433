"""What the three parties' audit logs say of sessions, of refusals and of a crash."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from data_owner import Client
from radiopaque.audit import AuditLog, verify
from radiopaque.audit.observer import Auditor
from radiopaque.certificates import Role
from radiopaque.errors import RadiopaqueError, RoleError, StoreError, UnknownSessionError
from radiopaque.transport.channel import Counters
from radiopaque.transport.grpc_client import GrpcChannel, Peer
from radiopaque.wire.v1 import services_pb2 as pb
from tests.e2e.parties import Clinic, Deployment, until
from tests.faults.hand import SECONDS, Hand
from tests.unit.transport.calls import list_models, no_models
from tests.unit.transport.conftest import (  # noqa: F401 - fixtures
    certificate_files,
    identities,
    make_host,
)

KEYS = {
    "number",
    "time",
    "party",
    "event",
    "peer",
    "model",
    "version",
    "session",
    "outcome",
    "count",
    "received_bytes",
    "sent_bytes",
    "previous",
}


def entries(store: Path) -> list[dict[str, Any]]:
    """All lines of a store's log, of which nothing is missing."""
    folder = store / "audit"
    assert verify(folder).broken is None
    return [
        json.loads(line)
        for path in sorted(folder.glob("audit-*.jsonl"))
        for line in path.read_text().splitlines()
    ]


def of(store: Path, **wanted: str) -> list[dict[str, Any]]:
    return [
        entry
        for entry in entries(store)
        if all(entry.get(name) == value for name, value in wanted.items())
    ]


def test_all_three_parties_say_who_did_what_with_which_outcome(
    serving: Deployment, clinic: Clinic
) -> None:
    network = serving.networks["lungs-1.10"]
    with Client.from_config(clinic.config) as client:
        (prepared,) = client.prepare()
        answer = client.infer_tensor(network.images())
    assert answer.session == prepared.session
    session = prepared.session.hex()[:8]
    who = f"data-owner '{clinic.name}'"
    until(lambda: bool(of(serving.owner.store, session=session, event="Infer ended")))
    (own,) = of(clinic.store, session=session, event="Infer ended")
    (infer,) = of(serving.owner.store, session=session, event="Infer ended")
    (prepare,) = of(serving.owner.store, session=session, event="Prepare ended")
    (deal,) = of(serving.provider.store, session=session, event="Deal ended")
    assert own["party"] == infer["peer"] == prepare["peer"] == who
    assert (deal["party"], deal["peer"]) == (
        "crypto-provider 'crypto-provider'",
        "model-owner 'model-owner'",
    )
    for entry in (own, infer, prepare):
        assert (entry["model"], entry["version"]) == ("lungs", "1.10")
        assert entry["outcome"] == "ok"
    # the clinic counts from the masked image on, the vendor START and READY too
    assert 0 <= infer["received_bytes"] - own["sent_bytes"] < 200
    assert 0 <= infer["sent_bytes"] - own["received_bytes"] < 200
    for store in (clinic.store, serving.owner.store, serving.provider.store):
        assert {key for entry in entries(store) for key in entry} <= KEYS


def test_a_clinic_that_leaves_at_once_has_not_abandoned_its_session(
    serving: Deployment, clinic: Clinic, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The vendor sees the end of a session that is done before the connection is closed."""
    done: list[str] = []
    close_channel, close_peer = GrpcChannel.close, Peer.close

    def slowly(channel: GrpcChannel, error: RadiopaqueError | None = None) -> None:
        time.sleep(0.5)
        close_channel(channel, error)
        done.append("stream")

    def close(peer: Peer) -> None:
        done.append("connection")
        close_peer(peer)

    monkeypatch.setattr(GrpcChannel, "close", slowly)
    monkeypatch.setattr(Peer, "close", close)
    with Client.from_config(clinic.config) as client:
        answer = client.infer_tensor(serving.networks["lungs-1.10"].images())
    assert done[0] == "stream"
    session = answer.session.hex()[:8]
    until(lambda: bool(of(serving.owner.store, session=session, event="Infer ended")))
    (ended,) = of(serving.owner.store, session=session, event="Infer ended")
    assert ended["outcome"] == "ok"


def test_a_failed_call_and_a_refused_one(serving: Deployment, hand: Hand) -> None:
    with pytest.raises(UnknownSessionError):
        hand.start()
    until(
        lambda: any(
            entry["event"] == "Infer ended" and entry["outcome"] == "UnknownSessionError"
            for entry in entries(serving.owner.store)
        )
    )
    vendor = serving.identity(Role.MODEL_OWNER)
    with (
        Peer(Role.MODEL_OWNER, serving.owner.address, vendor) as peer,
        pytest.raises(RoleError),
    ):
        peer.call("ListModels", pb.ListModelsRequest(), pb.ListModelsReply, Counters(), SECONDS)
    until(lambda: bool(of(serving.owner.store, event="ListModels refused", outcome="RoleError")))
    assert of(serving.owner.store, event="ListModels refused")[-1]["peer"] == (
        "model-owner 'model-owner'"
    )


def test_a_crash_in_an_inference_leaves_its_beginning(
    serving: Deployment, hand: Hand, clinic: Clinic
) -> None:
    """And the log goes on after it."""
    hand.prepare()
    before = len(of(serving.owner.store, event="Infer begun"))
    channel = hand.start()
    serving.owner.kill()
    channel.close()
    begun = of(serving.owner.store, event="Infer begun")
    assert len(begun) == before + 1
    number = begun[-1]["number"]
    serving.owner.restart()
    after = [entry for entry in entries(serving.owner.store) if entry["number"] > number]
    assert after[0]["event"] == "party started"


def test_a_party_says_when_it_is_stopped(serving: Deployment) -> None:
    assert serving.provider.stop() == 0
    assert entries(serving.provider.store)[-1]["event"] == "party stopped"
    serving.provider.restart()
    assert entries(serving.provider.store)[-1]["event"] == "party started"


def test_refusals_of_one_caller_do_not_fill_the_log(serving: Deployment) -> None:
    """Those without lines of their own are in the log when the party has stopped, at the latest."""
    clinic = serving.identity(Role.DATA_OWNER)
    store = serving.provider.store
    who = "data-owner 'data-owner'"
    with Peer(Role.CRYPTO_PROVIDER, serving.provider.address, clinic) as peer:
        for _ in range(35):
            with pytest.raises(RoleError):
                peer.call("Register", pb.RegisterRequest(), pb.RegisterReply, Counters(), SECONDS)
    assert serving.provider.stop() == 0
    try:
        lines = of(store, event="Register refused", outcome="RoleError", peer=who)
        assert sum(line.get("count", 1) for line in lines) >= 35
        # a machine that is slow enough sees two minutes of it
        assert len(lines) <= 2 * 11
        assert any(line.get("count", 1) > 1 for line in lines)
        assert entries(store)[-1]["event"] == "party stopped"
    finally:
        serving.provider.restart()


@pytest.fixture
def audited(
    tmp_path: Path,
    make_host: Callable[..., Any],  # noqa: F811
) -> Iterator[tuple[Any, AuditLog]]:
    log = AuditLog(tmp_path / "audit", "model-owner 'vendor'")
    host = make_host(observer=Auditor(log), calls_per_peer=2)
    host.functions["ListModels"] = no_models
    yield host, log
    log.close()


def test_what_cannot_be_written_down_is_not_served(
    audited: tuple[Any, AuditLog], monkeypatch: pytest.MonkeyPatch
) -> None:
    host, _ = audited
    called = threading.Event()

    def listing(*arguments: Any) -> Any:
        called.set()
        return no_models(*arguments)

    list_models(host.peer)
    host.functions["ListModels"] = listing

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fdatasync", full)
    # more often than there are slots: a call that was refused leaves its own
    for _ in range(5):
        with pytest.raises(StoreError, match="the model owner failed inside"):
            list_models(host.peer)
    assert not called.is_set()


def test_a_call_whose_end_cannot_be_written_down_is_the_last(
    audited: tuple[Any, AuditLog], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    host, log = audited

    def breaking(*arguments: Any) -> Any:
        monkeypatch.setattr(log, "_segment_bytes", 1)
        monkeypatch.setattr(log, "_folder", Path("/nowhere"))
        return no_models(*arguments)

    host.functions["ListModels"] = breaking
    list_models(host.peer)
    until(lambda: "a line is missing in the audit log" in caplog.text)
    with pytest.raises(StoreError):
        list_models(host.peer)
