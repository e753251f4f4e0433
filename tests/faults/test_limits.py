"""Limits turn calls away with a typed error, cost nobody a session, and make room again."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_owner import Client
from radiopaque.certificates import Role
from radiopaque.config import CryptoProviderLimits
from radiopaque.errors import MessageValueError, PlanError, ResourceError, SessionStateError
from radiopaque.ledger import State
from radiopaque.prg import new_id
from radiopaque.transport.channel import Counters
from radiopaque.transport.grpc_client import GrpcChannel, Peer
from radiopaque.wire.v1 import services_pb2 as pb
from tests.e2e.networks import lungs
from tests.e2e.parties import Deployment, until
from tests.faults.hand import SECONDS, Hand
from tests.faults.inside import Inside, occupied

LIMITS = {
    "provider": (
        "models = 1\nreserved_sessions = 3\nreserved_per_clinic = 2\nreservation_seconds = 1.0"
    ),
    "owner": (
        "sessions_per_clinic = 2\nconcurrent_inferences = 1\nmaterial_bytes = 300_000\n"
        "window_bytes = 1\n"
        "concurrent_calls = 4\ncalls_per_peer = 3\nlongest_call_seconds = 60.0"
    ),
}


@pytest.fixture(scope="module")
def tight(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """Servers that bear little; each test leaves them empty."""
    network = lungs().offered_as("1.10")
    deployment = Deployment(tmp_path_factory.mktemp("tight"), {"lungs-1.10": network})
    deployment.provider.write_config(LIMITS["provider"])
    deployment.owner.write_config(LIMITS["owner"])
    with deployment:
        yield deployment


@pytest.fixture
def inside(tmp_path: Path) -> Iterator[Inside]:
    """Servers whose limits a test sets."""
    with Inside(tmp_path, lungs()) as inside:
        yield inside


def limit(inside: Inside, **limits: int) -> None:
    admission = inside.hosting._admission
    admission.limits = replace(admission.limits, **limits)


def list_models(peer: Peer) -> None:
    peer.call("ListModels", pb.ListModelsRequest(), pb.ListModelsReply, Counters(), SECONDS)


def use_up(*clients: Client) -> None:
    for client in clients:
        for _ in range(client.stock()):
            client.infer_tensor(lungs().images())


def test_prepared_sessions_of_a_clinic_and_of_all(tight: Deployment) -> None:
    with (
        Client.from_config(tight.clinic("hoarder").config) as hoarder,
        Client.from_config(tight.clinic("modest").config) as modest,
    ):
        hoarder.prepare(2)
        with pytest.raises(ResourceError, match="2 prepared sessions of this clinic wait here"):
            hoarder.prepare()
        # another clinic has its own share, until the disk is full
        modest.prepare()
        with pytest.raises(ResourceError, match="disk space for prepared sessions is used up"):
            modest.prepare()
        use_up(hoarder, modest)
        tight.assert_used_up(*(row for row in tight.owner.sessions()))
        hoarder.prepare()
        use_up(hoarder)


def test_prepared_sessions_of_all_clinics(inside: Inside) -> None:
    limit(inside, sessions=2)
    with Client.from_config(inside.clinic()) as client:
        client.prepare(2)
        with pytest.raises(ResourceError, match="2 prepared sessions wait here, the limit for all"):
            client.prepare()
        client.infer_tensor(lungs().images())
        # once it is over at the model owner, too
        until(lambda: len(inside.material()) == 2)
        client.prepare()


def test_sessions_that_have_waited_too_long_make_room(inside: Inside) -> None:
    """At the next preparation, not only when the vendor starts again; their clinic goes on."""
    network = lungs()
    limit(inside, sessions=2)
    with Client.from_config(inside.clinic()) as client:
        client.prepare(2)
        old = inside.hosting._ledger.sessions(State.READY)
        admission = inside.hosting._admission
        admission.limits = replace(admission.limits, session_seconds=0.0)
        client.prepare()
        (left,) = inside.hosting._ledger.sessions(State.READY)
        assert left not in old
        assert inside.hosting._ledger.sessions(State.BURNT) == old
        assert {Path(name).stem for name in inside.material()} == {left.hex()}
        value, bound = network.plaintext(network.images())
        assert (np.abs(client.infer_tensor(network.images()).outputs - value) <= bound).all()


def test_a_session_that_another_replica_begins_meanwhile_keeps_its_files(
    inside: Inside, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Replicas share the ledger and the folder: what is listed is older than what is asked."""
    ledger, folder = inside.hosting._ledger, inside.owner.store / "material"
    begun = new_id()
    asked = ledger.sessions

    def sessions(*states: State) -> set[bytes]:
        known = asked(*states)
        ledger.create(begun, artefact=bytes(16), peer="another clinic", secret=bytes(64))
        (folder / f"{begun.hex()}.offline").touch()
        return known

    monkeypatch.setattr(ledger, "sessions", sessions)
    with Client.from_config(inside.clinic()) as client:
        client.prepare()
    assert (folder / f"{begun.hex()}.offline").exists()


def test_sessions_that_are_on_their_way_count_as_material(
    inside: Inside, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their disk space is not taken yet when the next one is asked for."""
    identity = inside.identity(Role.DATA_OWNER)
    entered, leave = threading.Semaphore(0), threading.Event()

    writer = inside.hosting._material.writer

    def waiting(*arguments: Any) -> Any:
        entered.release()
        leave.wait(10)
        return writer(*arguments)

    monkeypatch.setattr(inside.hosting._material, "writer", waiting)
    with Hand(inside, identity, "it") as one, Hand(inside, identity, "it") as two:
        session_bytes = inside.hosting._material.needed(one.network.plan)
        limit(inside, material_bytes=session_bytes * 2 - 1)
        with ThreadPoolExecutor(1) as pool:
            preparing = pool.submit(one.prepare)
            assert entered.acquire(timeout=10)
            two.reserve()
            with pytest.raises(ResourceError, match="disk space for prepared sessions is used up"):
                two.upload()
            limit(inside, material_bytes=session_bytes * 2)
            leave.set()
            preparing.result(10)
        assert inside.hosting.stock().material_bytes == session_bytes
        two.renew()
        two.prepare()
        assert inside.hosting.stock().material_bytes == session_bytes * 2


def test_memory_for_one_gate_at_a_time(tight: Deployment) -> None:
    """At both parties: the result is the same."""
    network = tight.networks["lungs-1.10"]
    clinic = tight.clinic("small")
    clinic.config.write_text("window_bytes = 1\n" + clinic.config.read_text())
    images = network.images(3)
    value, bound = network.plaintext(images)
    with Client.from_config(clinic.config) as client:
        answer = client.infer_tensor(images)
    assert (np.abs(answer.outputs - value) <= bound).all()


def test_inferences_at_once(tight: Deployment) -> None:
    """Turned away before anything is spent: the session waits for its turn."""
    identity = tight.clinic("eager").identity()
    with Hand(tight, identity) as first, Hand(tight, identity) as second:
        first.prepare()
        second.prepare()
        channel = first.start()
        with pytest.raises(ResourceError, match="1 inferences are under way") as refused:
            second.start()
        assert refused.value.retry_seconds == 1.0
        assert tight.owner.sessions()[second.session] == ("READY", True)
        first.run(channel)
        tight.assert_used_up(first.session)
        second.infer()


def test_a_busy_vendor_costs_a_clinic_nothing(tight: Deployment) -> None:
    with (
        Hand(tight, tight.clinic("slow").identity()) as slow,
        Client.from_config(tight.clinic("quick").config) as client,
    ):
        slow.prepare()
        (prepared,) = client.prepare()
        channel = slow.start()
        with pytest.raises(ResourceError):
            client.infer_tensor(lungs().images())
        assert client.stock() == 1
        slow.run(channel)
        tight.assert_used_up(slow.session)
        assert client.infer_tensor(lungs().images()).session == prepared.session


def test_reservations_of_a_clinic_and_of_all(tight: Deployment) -> None:
    time.sleep(1.1)  # until those expire that earlier tests left
    with (
        Hand(tight, tight.clinic("many")) as many,
        Hand(tight, tight.clinic("few")) as few,
        Hand(tight, tight.clinic("third")) as third,
    ):
        for _ in range(2):
            many.renew()
            many.reserve()
        many.renew()
        with pytest.raises(ResourceError, match="2 sessions wait to be dealt, the limit here"):
            many.reserve()
        few.reserve()
        with pytest.raises(ResourceError, match="3 sessions wait to be dealt, the limit here"):
            third.reserve()
        # one is dealt, and there is room again
        few.upload()
        third.reserve()
        third.upload()
        # the others expire, and their keys with them
        time.sleep(1.1)
        many.prepare()
        reserved = [state for state in tight.provider.sessions().values() if state[1]]
        assert reserved == []
        for hand in (many, few, third):
            hand.infer()
            tight.assert_used_up(hand.session)


def test_sessions_dealt_at_once(inside: Inside) -> None:
    """Others wait for their turn."""
    with (
        Hand(inside, inside.identity(Role.DATA_OWNER), "it") as hand,
        ThreadPoolExecutor(1) as pool,
    ):
        hand.reserve()
        with occupied(inside.dealing._dealing, CryptoProviderLimits().concurrent_deals):
            preparing = pool.submit(hand.upload)
            until(lambda: bool(inside.provider.server._admission._under_way))
            time.sleep(0.3)
            assert inside.provider.sessions()[hand.session] == ("RESERVED", True)
        preparing.result(10)
        hand.infer()


def test_models_at_the_crypto_provider(tight: Deployment) -> None:
    with Peer(
        Role.CRYPTO_PROVIDER, tight.provider.address, tight.identity(Role.MODEL_OWNER)
    ) as peer:
        compiled = tight.compiled["lungs-1.10"]
        request = pb.RegisterRequest(
            plan=compiled.plan_bytes,
            plan_digest=compiled.key.id.plan_digest,
            artefact=compiled.key.id.artefact,
            key_b=compiled.key.key_b.reveal(),
        )
        peer.call("Register", request, pb.RegisterReply, Counters(), SECONDS)
        request.artefact = new_id()
        with pytest.raises(ResourceError, match="its limit of 1 models"):
            peer.call("Register", request, pb.RegisterReply, Counters(), SECONDS)


def test_a_model_over_the_memory_of_the_crypto_provider(inside: Inside) -> None:
    """Its clinic is told whose limit it is, and nothing is left."""
    artefacts = inside.dealing._artefacts
    usual, artefacts._model_bytes = artefacts._model_bytes, 1000
    with Client.from_config(inside.clinic()) as client:
        with pytest.raises(PlanError, match="crypto provider, over its limit model_bytes of 1000"):
            client.prepare()
        assert client.stock() == 0
        assert inside.material() == []
        artefacts._model_bytes = usual
        client.prepare()
        client.infer_tensor(lungs().images())


def test_calls_at_once_of_one_caller_and_of_all(tight: Deployment) -> None:
    clinics = [tight.clinic(name).identity() for name in ("caller-a", "caller-b")]
    peers = [Peer(Role.MODEL_OWNER, tight.owner.address, identity) for identity in clinics]
    streams = []
    try:
        streams = [admitted(peers[0]) for _ in range(3)]
        wait_for_calls(peers[0], "3 calls of data-owner 'caller-a' are under way")
        list_models(peers[1])
        streams.append(admitted(peers[1]))
        wait_for_calls(peers[1], "4 calls are under way, the limit here")
    finally:
        for stream in streams:
            stream.close()
        for peer in peers:
            peer.close()
    with Client.from_config(tight.clinic("afterwards").config) as client:
        client.infer_tensor(lungs().images())


def admitted(peer: Peer) -> GrpcChannel:
    """A stream that the server has let in: only then it says which version it is."""
    stream = peer.open("Infer", SECONDS)
    assert stream._call.initial_metadata()
    return stream


def wait_for_calls(peer: Peer, text: str) -> None:
    """Call until the streams that were opened before count, which takes a moment."""

    def turned_away() -> bool:
        with suppress(ResourceError):
            list_models(peer)
            return False
        return True

    until(turned_away)
    with pytest.raises(ResourceError, match=text) as refused:
        list_models(peer)
    assert refused.value.retry_seconds == 1.0


def test_a_deadline_that_is_too_long(tight: Deployment) -> None:
    clinic = tight.clinic("unhurried", deadline_seconds=3600.0)
    with (
        Client.from_config(clinic.config) as client,
        pytest.raises(MessageValueError, match="deadline of at most 60 s; lower deadline_seconds"),
    ):
        client.models()


def test_a_session_that_is_known_is_refused_as_such(tight: Deployment) -> None:
    """Where there is room; limits are looked at first."""
    with Hand(tight, tight.clinic("twice").identity()) as hand:
        hand.prepare()
        with pytest.raises(SessionStateError, match="known to the model owner already"):
            hand.upload()
        hand.infer()
