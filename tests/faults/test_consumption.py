"""Material is consumed durably before the first message leaves, at every party for itself."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_owner import Client
from radiopaque.certificates import PeerIdentity, Role
from radiopaque.errors import ConnectionLostError, SessionStateError, UnknownSessionError
from radiopaque.prg import SecretKey
from radiopaque.transport.channel import Counters
from radiopaque.transport.grpc_client import GrpcChannel, Peer
from radiopaque.transport.grpc_server import Call
from radiopaque.transport.memory import pair
from radiopaque.wire.frames import Frame, Kind
from radiopaque.wire.v1 import services_pb2 as pb
from tests.e2e.networks import lungs
from tests.e2e.parties import Clinic, Deployment, process, until
from tests.faults.hand import SECONDS, Hand
from tests.faults.inside import Inside


def bindings(store: Path) -> dict[bytes, bytes | None]:
    path = store / "sessions.sqlite"
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        return dict(connection.execute("SELECT id, binding FROM session").fetchall())


class Dealing:
    """A model owner that asks the crypto provider by hand."""

    def __init__(self, deployment: Deployment) -> None:
        self.peer = Peer(
            Role.CRYPTO_PROVIDER,
            deployment.provider.address,
            deployment.identity(Role.MODEL_OWNER),
        )

    def __enter__(self) -> Dealing:
        return self

    def __exit__(self, *_: object) -> None:
        self.peer.close()

    def register(self, hand: Hand) -> None:
        request = pb.RegisterRequest(
            plan=hand.compiled.plan_bytes,
            plan_digest=hand.artefact.plan_digest,
            artefact=hand.artefact.artefact,
            key_b=hand.compiled.key.key_b.reveal(),
        )
        self.peer.call("Register", request, pb.RegisterReply, Counters(), SECONDS)

    def deal(self, hand: Hand) -> Iterator[Frame]:
        request = pb.DealRequest(
            session=hand.session,
            artefact=hand.artefact.artefact,
            key_o=SecretKey.generate().reveal(),
        )
        return self.peer.download_frames("Deal", request, Counters(), SECONDS)


@pytest.fixture
def dealing(deployment: Deployment) -> Iterator[Dealing]:
    with Dealing(deployment) as dealing:
        yield dealing


@pytest.fixture
def inside(tmp_path: Path) -> Iterator[Inside]:
    with Inside(tmp_path, lungs()) as inside:
        yield inside


# Durable before the first message leaves.


def test_the_clinic_binds_what_is_ready_and_starts_before_its_image(
    deployment: Deployment, clinic: Clinic, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, dict[bytes, tuple[str, bool]]]] = []
    call, upload, send = Peer.call, Peer.upload, GrpcChannel.send

    def calling(peer: Peer, method: str, *arguments: Any) -> Any:
        if method == "Reserve":
            seen.append(("key", clinic.sessions()))
        return call(peer, method, *arguments)

    def uploading(peer: Peer, method: str, *arguments: Any) -> Any:
        seen.append(("offline", clinic.sessions()))
        return upload(peer, method, *arguments)

    def sending(channel: GrpcChannel, frame: Frame) -> None:
        seen.append((frame.kind.name, clinic.sessions()))
        send(channel, frame)

    monkeypatch.setattr(Peer, "call", calling)
    monkeypatch.setattr(Peer, "upload", uploading)
    monkeypatch.setattr(GrpcChannel, "send", sending)
    with Client.from_config(clinic.config) as client:
        answer = client.infer_tensor(deployment.networks["lungs-1.10"].images())
        session, model = answer.session, client.model()
    states = [(what, ledger[session]) for what, ledger in seen]
    assert states[:4] == [
        ("key", ("FRESH", True)),
        ("offline", ("FRESH", True)),
        ("START", ("BOUND", True)),
        ("IMAGE", ("STARTED", False)),
    ]
    assert {state for _, state in states[4:]} == {("STARTED", False)}
    assert bindings(clinic.store)[session] == model.binding
    assert clinic.sessions()[session] == ("BURNT", False)


def test_the_model_owner_starts_before_its_first_message(
    deployment: Deployment, hand: Hand
) -> None:
    assert deployment.owner.sessions().get(hand.session) is None
    hand.prepare()
    assert deployment.owner.sessions()[hand.session] == ("READY", True)
    channel = hand.start()
    assert deployment.owner.sessions()[hand.session] == ("STARTED", False)
    hand.run(channel)
    deployment.assert_used_up(hand.session)


def test_the_model_owner_starts_before_its_first_message_in_one_process(inside: Inside) -> None:
    """The same at the very moment at which READY is handed to the channel."""
    states: list[tuple[str, bool]] = []
    call = Call(PeerIdentity(Role.DATA_OWNER, "data-owner"), SECONDS)
    with Hand(inside, inside.identity(Role.DATA_OWNER), "it") as hand:
        hand.prepare()
        opening, serving = pair(SECONDS)
        handed_over = serving.send

        def send(frame: Frame) -> None:
            states.append(inside.owner.sessions()[hand.session])
            handed_over(frame)

        serving.send = send  # type: ignore[method-assign]
        thread = threading.Thread(target=inside.hosting.infer, args=(serving, call))
        thread.start()
        opening.send(Frame(hand.session, 0, Kind.START, 0, hand.mark.encode()))
        assert opening.receive().kind is Kind.READY
        hand.run(opening)
        thread.join()
    assert set(states) == {("STARTED", False)}


def test_the_crypto_provider_consumes_before_its_first_correction(inside: Inside) -> None:
    owner = Call(PeerIdentity(Role.MODEL_OWNER, "model-owner"), SECONDS)
    with Hand(inside, inside.identity(Role.DATA_OWNER), "it") as hand:
        key = hand.compiled.key
        inside.dealing.register(
            pb.RegisterRequest(
                plan=hand.compiled.plan_bytes,
                plan_digest=key.id.plan_digest,
                artefact=key.id.artefact,
                key_b=key.key_b.reveal(),
            ),
            owner,
        )
        hand.reserve()
        assert inside.provider.sessions()[hand.session] == ("RESERVED", True)
        request = pb.DealRequest(
            session=hand.session, artefact=key.id.artefact, key_o=SecretKey.generate().reveal()
        )
        corrections = inside.dealing.deal(request, owner)
        assert inside.provider.sessions()[hand.session] == ("RESERVED", True)
        next(corrections)
        assert inside.provider.sessions()[hand.session] == ("DEALT", False)
        with pytest.raises(SessionStateError, match="is DEALT at the crypto provider"):
            next(inside.dealing.deal(request, owner))
        assert len(list(corrections)) > 1
        assert inside.provider.sessions()[hand.session] == ("BURNT", False)


# A second use is refused by each party for itself.


def test_the_crypto_provider_deals_a_session_once(
    serving: Deployment, hand: Hand, dealing: Dealing
) -> None:
    dealing.register(hand)
    with pytest.raises(UnknownSessionError):
        next(dealing.deal(hand))
    hand.reserve()
    with pytest.raises(SessionStateError, match="known to the crypto provider already"):
        hand.reserve()
    with pytest.raises(SessionStateError, match="known to the crypto provider already"):
        hand.reserve(key_d=SecretKey.generate().reveal())
    assert len(list(dealing.deal(hand))) > 1
    until(lambda: serving.provider.sessions()[hand.session] == ("BURNT", False))
    with pytest.raises(SessionStateError, match=r"is BURNT at the crypto provider, not RESERVED"):
        next(dealing.deal(hand))
    with pytest.raises(SessionStateError, match="known to the crypto provider already"):
        hand.reserve()
    # the model owner, who has not heard of it, gets nothing for it either
    with pytest.raises(SessionStateError, match="is BURNT at the crypto provider"):
        hand.upload()


def test_two_calls_for_one_reservation_get_one_set_of_corrections(
    serving: Deployment, identity: Any, dealing: Dealing
) -> None:
    """Whoever comes second is refused, also while the first is still being served."""
    with Hand(serving, identity, "wide") as hand:
        dealing.register(hand)
        hand.reserve()
        first = dealing.deal(hand)
        next(first)
        assert serving.provider.sessions()[hand.session][0] == "DEALT"
        with pytest.raises(SessionStateError, match="is DEALT at the crypto provider"):
            next(dealing.deal(hand))
        assert sum(len(frame.payload) for frame in first) > 10_000_000


def test_the_model_owner_serves_a_session_once(serving: Deployment, hand: Hand) -> None:
    hand.prepare()
    with pytest.raises(SessionStateError, match="known to the model owner already"):
        hand.upload()
    channel = hand.start()
    with pytest.raises(SessionStateError, match="is STARTED at the model owner, not READY"):
        hand.start()
    with pytest.raises(SessionStateError, match="known to the model owner already"):
        hand.upload()
    # the first stream is none the worse for it
    images = hand.network.images()
    value, bound = hand.network.plaintext(images)
    assert (np.abs(hand.run(channel, images) - value) <= bound).all()
    serving.assert_used_up(hand.session)
    with pytest.raises(SessionStateError, match="is BURNT at the model owner, not READY"):
        hand.start()
    with pytest.raises(SessionStateError, match="known to the model owner already"):
        hand.upload()


def test_one_of_many_starts_at_once_is_served(serving: Deployment, hand: Hand) -> None:
    hand.prepare()
    together = threading.Barrier(4)
    served: list[GrpcChannel] = []
    refused: list[Exception] = []

    def start() -> None:
        together.wait(SECONDS)
        try:
            served.append(hand.start())
        except SessionStateError as error:
            refused.append(error)

    threads = [threading.Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(served), len(refused)) == (1, 3)
    hand.run(served[0])


# The same across a loss of the process.


def test_crypto_provider_killed_before_and_while_dealing(
    serving: Deployment, identity: Any, dealing: Dealing
) -> None:
    with Hand(serving, identity, "wide") as hand, Hand(serving, identity) as waiting:
        dealing.register(hand)
        hand.reserve()
        waiting.reserve()
        corrections = dealing.deal(hand)
        next(corrections)
        # the connection holds less than the corrections, so the party is in the middle of it
        assert serving.provider.sessions()[hand.session] == ("DEALT", False)
        serving.provider.kill()
        with pytest.raises(ConnectionLostError):
            list(corrections)
        serving.provider.restart()
        assert serving.provider.sessions()[hand.session] == ("BURNT", False)
        with pytest.raises(SessionStateError, match="is BURNT at the crypto provider"):
            next(dealing.deal(hand))
        with pytest.raises(SessionStateError, match="known to the crypto provider already"):
            hand.reserve()
        # what was only reserved might come from a copy of the ledger: it is not dealt either
        assert serving.provider.sessions()[waiting.session] == ("BURNT", False)
        with pytest.raises(SessionStateError, match="is BURNT at the crypto provider"):
            waiting.upload()


def test_model_owner_killed_while_preparing_when_ready_and_when_started(
    serving: Deployment, identity: Any
) -> None:
    preparing, ready, started = (Hand(serving, identity) for _ in range(3))
    ready.prepare()
    started.prepare()
    started.start()
    preparing.reserve()
    go_on = threading.Event()
    outcome: list[BaseException] = []

    def half_a_message() -> Iterator[pb.PrepareRequest]:
        first, *rest = preparing.requests()
        yield first
        go_on.wait(SECONDS)
        yield from rest

    def upload() -> None:
        try:
            preparing.upload(half_a_message())
        except ConnectionLostError as error:
            outcome.append(error)

    thread = threading.Thread(target=upload)
    thread.start()
    until(lambda: serving.owner.sessions().get(preparing.session) == ("PREPARING", True))
    assert serving.owner.sessions()[started.session] == ("STARTED", False)
    serving.owner.kill()
    go_on.set()
    thread.join()
    assert len(outcome) == 1
    serving.owner.restart()
    sessions = serving.owner.sessions()
    assert sessions[preparing.session] == sessions[started.session] == ("BURNT", False)
    assert sessions[ready.session] == ("READY", True)
    found = serving.material(*(hand.session for hand in (preparing, ready, started)))
    assert {path.stem for path in found} == {ready.session.hex()}
    for lost in (preparing, started):
        with pytest.raises(SessionStateError, match="is BURNT at the model owner"):
            lost.start()
        with pytest.raises(SessionStateError, match="known to the model owner already"):
            lost.upload()
    ready.infer()
    for hand in (preparing, ready, started):
        hand.__exit__()


DYING_CLINIC = """
import os, signal, sys
import numpy as np
from data_owner import Client
from radiopaque.transport.grpc_client import GrpcChannel, Peer
from radiopaque.wire.frames import Kind

config, moment = sys.argv[1:]
upload, send = Peer.upload, GrpcChannel.send

def die(*arguments):
    os.kill(os.getpid(), signal.SIGKILL)

def sending(channel, frame):
    if frame.kind is Kind[moment]:
        die()
    send(channel, frame)

if moment == "offline":
    Peer.upload = die
else:
    GrpcChannel.send = sending
with Client.from_config(config) as client:
    client.infer_tensor(np.zeros((1, 1, 16, 16)))
"""


@pytest.mark.parametrize("moment", ["offline", "START", "IMAGE", "RERANDOMISED"])
def test_a_clinic_killed_as_a_message_leaves(
    serving: Deployment, clinic: Clinic, moment: str
) -> None:
    with process(DYING_CLINIC, clinic.config, moment) as dying:
        assert dying.wait(60) == -9, dying.stderr and dying.stderr.read()
    ((session, state),) = clinic.sessions().items()
    network = serving.networks["lungs-1.10"]
    images = network.images(7)
    if moment == "offline":
        assert state == ("FRESH", True)
    elif moment == "START":
        # nothing that depends on an image has left: the session may be tried
        assert state == ("BOUND", True)
    else:
        assert state == ("STARTED", False)
        until(lambda: serving.owner.sessions()[session] == ("BURNT", False))
    with Client.from_config(clinic.config) as client:
        assert client.stock() == (1 if moment == "START" else 0)
        if moment == "offline":
            assert clinic.sessions()[session] == ("BURNT", False)
        answer = client.infer_tensor(images)
    assert (answer.session == session) == (moment == "START")
    value, bound = network.plaintext(images)
    assert (np.abs(answer.outputs - value) <= bound).all()
    assert clinic.sessions()[session] == ("BURNT", False)


def test_the_offline_message_is_accepted_once(
    serving: Deployment, hand: Hand, clinic: Clinic
) -> None:
    """A second one of the same session, the same bytes or others, is refused by both servers."""
    hand.prepare()
    with pytest.raises(SessionStateError, match="known to the model owner already"):
        hand.upload()
    with Hand(serving, clinic, session=hand.session) as other:
        with pytest.raises(SessionStateError, match="known to the crypto provider already"):
            other.reserve()
        with pytest.raises(SessionStateError, match="known to the model owner already"):
            other.upload()
    hand.infer()
