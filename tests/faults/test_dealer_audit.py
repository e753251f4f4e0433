"""The dealer audit between real parties: who deals wrongly is caught, and nothing else is revealed.

What an audit may never do is reveal the key of a session that meets an image. So: both ledgers have
a session as used, durably, before its key leaves; repeated and foreign messages change nothing of
that. Crashes and copies of ledgers: test_dealer_audit_crashes.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_owner import Client
from radiopaque.errors import (
    ConfigError,
    DealerError,
    MessageOrderError,
    MessageSizeError,
    MessageValueError,
    RadiopaqueError,
    SessionStateError,
    UnknownSessionError,
)
from radiopaque.ledger import MARK_BYTES, Mark, State
from radiopaque.prg import SecretKey, new_id
from radiopaque.transport.grpc_client import GrpcChannel
from radiopaque.transport.grpc_server import Call
from radiopaque.wire import frames
from radiopaque.wire.frames import Frame, Kind
from radiopaque.wire.v1 import services_pb2 as pb
from tests.e2e.networks import lungs
from tests.e2e.parties import Clinic, Deployment, ledger_on_disk, radiopaque, until
from tests.faults.hand import Hand
from tests.faults.inside import Inside, Original, Rewritten, redealing, rewriting
from tests.faults.test_audit_lines import KEYS, of

BURNT = ("BURNT", False)


@pytest.fixture
def inside(tmp_path: Path) -> Iterator[Inside]:
    with Inside(tmp_path, lungs()) as inside:
        yield inside


def states(inside: Inside) -> dict[bytes, tuple[str, bool]]:
    return ledger_on_disk(inside.folder / "clinic")


def wrongly(sessions: set[int]) -> Any:
    """A crypto provider that changes one bit in the sessions that it deals as these."""
    number = iter(range(10_000))

    def change(dealt: list[Frame]) -> list[Frame]:
        if next(number) in sessions:
            one = dealt[-1]
            data = bytearray(one.payload)
            data[-1] ^= 4
            dealt[-1] = Frame(one.session, one.gate, one.kind, one.block, bytes(data))
        return dealt

    return redealing(change)


def opening(hand: Hand) -> GrpcChannel:
    """START of an audit; returns when READY is in."""
    return hand.start(method="Audit")


def key_frame(hand: Hand) -> Frame:
    return Frame(hand.session, 0, Kind.KEY, 0, hand.key_d.reveal())


# A dealer that follows the protocol, and one that does not.


def test_right_sessions_are_destroyed_and_the_others_serve(inside: Inside) -> None:
    with Client.from_config(inside.clinic()) as client:
        prepared = [item.session for item in client.prepare(4)]
        audited = client.audit(0.5)
        assert (audited.stock, audited.opened, audited.refused) == (4, 2, 0)
        assert client.stock() == 2
        for ledger, waiting in ((states(inside), "BOUND"), (inside.owner.sessions(), "READY")):
            found = Counter(ledger[one] for one in prepared)
            assert found == {BURNT: 2, (waiting, True): 2}
        left = {one for one in prepared if states(inside)[one] != BURNT}
        assert {path.stem for path in inside.material()} == {one.hex() for one in left}
        network = inside.networks["it"]
        images = network.images()
        answer = client.infer_tensor(images)
        value, bound = network.plaintext(images)
        assert (np.abs(answer.outputs - value) <= bound).all()
        assert answer.session in left


def test_one_wrong_session_is_found_and_the_stock_is_gone(inside: Inside) -> None:
    inside.lies["Deal"] = wrongly({2})
    config = inside.clinic()
    with Client.from_config(config) as client:
        client.prepare(4)
    done = radiopaque("data-owner", "audit", "--share", "1", "--config", config)
    assert done.returncode == DealerError.exit_code
    assert done.stderr.startswith("DealerError: 1 of 4 opened sessions are wrong")
    assert "the crypto provider dealt wrong corrections" in done.stderr
    assert set(states(inside).values()) == set(inside.owner.sessions().values()) == {BURNT}
    assert inside.material() == []


def test_wrong_sessions_that_are_not_opened_are_burnt_with_the_stock(inside: Inside) -> None:
    inside.lies["Deal"] = wrongly({0, 1, 2, 3})
    with Client.from_config(inside.clinic()) as client:
        client.prepare(4)
        with pytest.raises(DealerError, match="1 of 1 opened sessions are wrong, and the 3 left"):
            client.audit(0.25)
        assert client.stock() == 0
        # the next stock is another one
        inside.lies.clear()
        client.prepare(2)
        assert client.audit(1).opened == 2


def test_bad_requests(inside: Inside) -> None:
    with Client.from_config(inside.clinic()) as client:
        with pytest.raises(SessionStateError, match="no prepared session"):
            client.audit(0.5)
        client.prepare(1)
        with pytest.raises(ConfigError):
            client.audit(0.0)
        assert client.stock() == 1


# What is sent, and when.


def test_the_wire_carries_marks_the_key_and_an_empty_verdict(inside: Inside) -> None:
    sent: list[Frame] = []
    seen: list[Rewritten] = []

    def keep(frame: Frame) -> list[Frame]:
        sent.append(frame)
        return [frame]

    inside.lies["Audit"] = rewriting(keep, seen)
    keys: list[bytes] = []

    def noted(honest: Original, request: pb.ReserveRequest, call: Call) -> Any:
        keys.append(request.key_d)
        return honest(request, call)

    inside.lies["Reserve"] = noted
    with Client.from_config(inside.clinic()) as client:
        (prepared,) = client.prepare()
        client.audit(1)
    (channel,) = seen
    start, key = channel.received
    ready, verdict = sent
    assert {frame.session for frame in (start, key, ready, verdict)} == {prepared.session}
    assert {(frame.gate, frame.block) for frame in (start, key, ready, verdict)} == {(0, 0)}
    assert [frame.kind for frame in (start, ready, key, verdict)] == [
        Kind.START,
        Kind.READY,
        Kind.KEY,
        Kind.VERDICT,
    ]
    assert len(start.payload) == len(ready.payload) == MARK_BYTES
    assert [bytes(key.payload)] == keys
    assert bytes(verdict.payload) == b""
    # nothing else: the bytes that were counted are those of these frames
    assert channel.counters.received_bytes == sum(map(frames.encoded_size, (start, key)))
    assert channel.counters.sent_bytes == sum(map(frames.encoded_size, (ready, verdict)))


def test_a_session_is_marked_at_both_before_its_key_leaves(
    inside: Inside, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And it is in nobody else's hands from the choice on."""
    found: dict[str, Any] = {}
    send = GrpcChannel.send

    def sending(channel: GrpcChannel, frame: Frame) -> None:
        found[frame.kind.name] = (
            states(inside)[frame.session],
            inside.owner.sessions()[frame.session],
            client.stock(),
        )
        send(channel, frame)

    def answering(frame: Frame) -> list[Frame]:
        found[frame.kind.name] = inside.owner.sessions()[frame.session]
        return [frame]

    inside.lies["Audit"] = rewriting(answering, [])
    monkeypatch.setattr(GrpcChannel, "send", sending)
    with Client.from_config(inside.clinic()) as client:
        client.prepare(3)
        client.audit(0.3)
        assert client.stock() == 2
    assert found == {
        "START": (("BOUND", True), ("READY", True), 0),
        "READY": ("OPENED", False),
        "KEY": (("OPENED", False), ("OPENED", False), 0),
        "VERDICT": BURNT,
    }


# What an audit is not for.


def test_a_started_session_is_not_opened_and_an_opened_one_not_started(hand: Hand) -> None:
    hand.prepare()
    started = hand.start()
    with pytest.raises(SessionStateError, match="is STARTED at the model owner, not READY"):
        opening(hand)
    started.close()
    hand.renew()
    hand.prepare()
    opened = opening(hand)
    for again in (hand.start, lambda: opening(hand)):
        with pytest.raises(SessionStateError, match="is OPENED at the model owner, not READY"):
            again()
    opened.send(key_frame(hand))
    verdict = opened.receive()
    assert (verdict.kind, bytes(verdict.payload)) == (Kind.VERDICT, b"")
    for again in (hand.start, lambda: opening(hand)):
        with pytest.raises(SessionStateError, match="is BURNT at the model owner, not READY"):
            again()


def test_a_clinic_opens_no_session_that_has_met_an_image(inside: Inside) -> None:
    """Its own ledger refuses, whatever the vendor is willing to do."""
    received: list[Frame] = []

    def always_ready(honest: object, channel: Any, call: object) -> None:
        received.append(channel.receive())
        channel.send(Frame(received[0].session, 0, Kind.READY, 0, Mark(bytes(16)).encode()))
        received.append(channel.receive())

    with Client.from_config(inside.clinic()) as client:
        used = client.infer_tensor(inside.networks["it"].images()).session
        inside.lies["Audit"] = always_ready
        with pytest.raises(SessionStateError, match="is BURNT at the data owner, not BOUND"):
            client._sessions._open(client.model(), used, State.BOUND)
    assert [frame.kind for frame in received] == [Kind.START]


def test_sessions_of_others_and_unprepared_ones(serving: Deployment, hand: Hand) -> None:
    hand.reserve()
    with pytest.raises(UnknownSessionError):
        opening(hand)
    hand.upload()
    other = serving.clinic(f"other-{new_id().hex()[:8]}").identity()
    with (
        Hand(serving, other, session=hand.session) as stranger,
        pytest.raises(UnknownSessionError, match="of this clinic is not known here"),
    ):
        opening(stranger)
    assert serving.owner.sessions()[hand.session] == ("READY", True)
    opening(hand).close()


FAULTS: dict[str, tuple[Callable[[Hand], Frame], type[RadiopaqueError]]] = {
    "another key": (
        lambda hand: Frame(hand.session, 0, Kind.KEY, 0, SecretKey.generate().reveal()),
        MessageValueError,
    ),
    "key too short": (
        lambda hand: Frame(hand.session, 0, Kind.KEY, 0, hand.key_d.reveal()[1:]),
        MessageSizeError,
    ),
    "key too long": (
        lambda hand: Frame(hand.session, 0, Kind.KEY, 0, hand.key_d.reveal() + b"\0"),
        MessageSizeError,
    ),
    "another gate": (
        lambda hand: Frame(hand.session, 1, Kind.KEY, 0, hand.key_d.reveal()),
        MessageOrderError,
    ),
    "another block": (
        lambda hand: Frame(hand.session, 0, Kind.KEY, 1, hand.key_d.reveal()),
        MessageOrderError,
    ),
    "another session": (
        lambda hand: Frame(new_id(), 0, Kind.KEY, 0, hand.key_d.reveal()),
        MessageOrderError,
    ),
    "an image": (lambda hand: Frame(hand.session, 0, Kind.IMAGE, 0, bytes(32)), MessageOrderError),
    "START again": (
        lambda hand: Frame(hand.session, 0, Kind.START, 0, hand.mark.encode()),
        MessageOrderError,
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_model_owner_refuses_what_is_not_the_key(
    serving: Deployment, hand: Hand, fault: str
) -> None:
    """And the crypto provider is not accused."""
    make, expected = FAULTS[fault]
    channel = opening(hand.prepare())
    channel.send(make(hand))
    with pytest.raises(RadiopaqueError) as caught:
        channel.receive()
    channel.close()
    assert type(caught.value) is expected, caught.value
    until(lambda: serving.owner.sessions()[hand.session] == BURNT)
    assert serving.material(hand.session) == []


def test_a_key_is_no_message_of_an_inference(serving: Deployment, hand: Hand) -> None:
    channel = hand.prepare().start()
    channel.send(key_frame(hand))
    with pytest.raises(MessageOrderError, match="got KEY of gate 0"):
        channel.receive()
    channel.close()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda f: Frame(f.session, 0, Kind.VERDICT, 0, b"\1"), MessageSizeError),
        (lambda f: Frame(f.session, 1, Kind.VERDICT), MessageOrderError),
        (lambda f: Frame(f.session, 0, Kind.DONE), MessageOrderError),
        (lambda f: Frame(new_id(), 0, Kind.VERDICT), MessageOrderError),
    ],
)
def test_a_clinic_takes_nothing_else_for_a_verdict(
    inside: Inside, change: Callable[[Frame], Frame], expected: type[RadiopaqueError]
) -> None:
    inside.lies["Audit"] = rewriting(
        lambda frame: [change(frame) if frame.kind is Kind.VERDICT else frame], []
    )
    with Client.from_config(inside.clinic()) as client:
        (prepared,) = client.prepare()
        with pytest.raises(RadiopaqueError) as caught:
            client.audit(1)
    assert type(caught.value) is expected
    assert states(inside)[prepared.session] == BURNT


# What is written down.


def test_the_command_and_the_lines_of_both_audit_logs(serving: Deployment, clinic: Clinic) -> None:
    clinic.json("prepare", "--count", "4")
    answer = clinic.json("audit", "--share", "0.5")
    assert answer == {
        "stock_before": 4,
        "opened": 2,
        "refused": 0,
        "stock": 2,
        "detection": {"1": 0.5, "2": 1 - 1 / 6},
    }
    said = clinic.command("audit", "--share", "1").stdout
    assert "2 of 2 session(s) opened and right; 0 in stock" in said
    assert "had 1 of them been wrong, this would have shown with 100.0%" in said
    who = f"data-owner '{clinic.name}'"
    own = of(clinic.store, event="Audit ended")
    until(lambda: len(of(serving.owner.store, event="Audit ended", peer=who)) == 4)
    theirs = of(serving.owner.store, event="Audit ended", peer=who)
    assert len(own) == 4
    assert {entry["session"] for entry in own} == {entry["session"] for entry in theirs}
    for entry in (*own, *theirs):
        assert entry["outcome"] == "ok"
        assert (entry["model"], entry["version"]) == ("lungs", "1.10")
        assert set(entry) <= KEYS
    assert {entry["party"] for entry in own} == {who}


def test_a_wrong_session_is_in_the_clinics_audit_log(inside: Inside) -> None:
    inside.lies["Deal"] = wrongly({0})
    with Client.from_config(inside.clinic()) as client:
        client.prepare(2)
        with pytest.raises(DealerError):
            client.audit(1)
    ended = of(inside.folder / "clinic", event="Audit ended")
    assert sorted(entry["outcome"] for entry in ended) == ["DealerError", "ok"]
