"""A dealer audit broken off, and ledgers put back: no session is both opened and used."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from data_owner import Client
from radiopaque.errors import RestoredLedgerError
from radiopaque.transport.grpc_client import GrpcChannel
from radiopaque.wire.frames import Frame, Kind
from tests.e2e.parties import Clinic, Deployment, until
from tests.faults.hand import Hand
from tests.faults.inside import Inside, Rewritten, rewriting
from tests.faults.test_dealer_audit import BURNT, inside, opening, states
from tests.faults.test_restored import Copies

__all__ = ["inside"]

DIES_BEFORE_THE_KEY = """
import os, signal, sys
from data_owner import Client
from radiopaque.transport.grpc_client import GrpcChannel
from radiopaque.wire.frames import Kind

send = GrpcChannel.send

def dying(channel, frame):
    if frame.kind is Kind.KEY:
        os.kill(os.getpid(), signal.SIGKILL)
        signal.pause()
    send(channel, frame)

GrpcChannel.send = dying
with Client.from_config(sys.argv[1]) as client:
    client.prepare(2)
    client.audit(0.5)
"""


def test_a_clinic_that_dies_between_marking_and_sending(inside: Inside) -> None:
    seen: list[Rewritten] = []
    inside.lies["Audit"] = rewriting(lambda frame: [frame], seen)
    config = inside.clinic()
    died = subprocess.run(
        [sys.executable, "-c", DIES_BEFORE_THE_KEY, str(config)], timeout=60, check=False
    )
    assert died.returncode == -signal.SIGKILL
    found = states(inside)
    assert sorted(found.values()) == [("BOUND", True), ("OPENED", False)]
    (opened,) = [one for one, state in found.items() if state[0] == "OPENED"]
    until(lambda: inside.owner.sessions()[opened] == BURNT)
    assert [frame.kind for frame in seen[0].received] == [Kind.START]
    with Client.from_config(config) as client:
        assert states(inside)[opened] == BURNT
        assert client.stock() == 1
        assert client.infer_tensor(inside.networks["it"].images()).session != opened


DIES_BEFORE_IT_IS_STOCK = """
import os, signal, sys
from data_owner import Client, sessions
from radiopaque.transport.grpc_client import GrpcChannel

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)
    signal.pause()

if sys.argv[2] == "draw":
    sessions.drawn = die
else:
    GrpcChannel.send = die
with Client.from_config(sys.argv[1]) as client:
    client.prepare()
"""


@pytest.mark.parametrize("moment", ["draw", "audit"])
def test_a_clinic_that_dies_at_the_draw(inside: Inside, moment: str) -> None:
    """It leaves no session that was not drawn for, nor one that was drawn and not opened."""
    config = inside.clinic()
    config.write_text(f"audit_share = 1.0\n{config.read_text()}")
    words = [sys.executable, "-c", DIES_BEFORE_IT_IS_STOCK, str(config), moment]
    died = subprocess.run(words, timeout=60, check=False)
    assert died.returncode == -signal.SIGKILL
    assert list(states(inside).values()) == [("FRESH", True)]
    assert list(inside.owner.sessions().values()) == [("READY", True)]
    with Client.from_config(config) as client:
        assert client.stock() == 0
        assert list(states(inside).values()) == [BURNT]


def test_a_model_owner_that_dies_before_the_key_comes(serving: Deployment, hand: Hand) -> None:
    channel = opening(hand.prepare())
    serving.owner.kill()
    channel.close()
    assert serving.owner.sessions()[hand.session] == ("OPENED", False)
    serving.owner.restart()
    serving.assert_used_up(hand.session)


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Kind, bytes]]:
    """(kind, session) of all frames that this process sends."""
    sent: list[tuple[Kind, bytes]] = []
    send = GrpcChannel.send

    def keeping(channel: GrpcChannel, frame: Frame) -> None:
        sent.append((frame.kind, frame.session))
        send(channel, frame)

    monkeypatch.setattr(GrpcChannel, "send", keeping)
    return sent


def test_a_copy_from_before_an_image_opens_nothing(
    serving: Deployment, clinic: Clinic, tmp_path: Path, kept: list[tuple[Kind, bytes]]
) -> None:
    """Otherwise the vendor would have x - A and, with the key, A."""
    copies = Copies(tmp_path)
    images = serving.networks["lungs-1.10"].images()
    with Client.from_config(clinic.config) as client:
        client.prepare(2)
    copy = copies.take(clinic.store)
    with Client.from_config(clinic.config) as client:
        used = client.infer_tensor(images).session
    until(lambda: serving.owner.sessions()[used] == BURNT)
    copies.put_back(copy, clinic.store)
    assert clinic.sessions()[used] == ("BOUND", True)
    with Client.from_config(clinic.config) as client, pytest.raises(RestoredLedgerError):
        client.audit(1)
    assert [kind for kind, _ in kept if kind is Kind.KEY] == []
    assert set(clinic.sessions().values()) == {BURNT}


def test_a_copy_from_before_an_audit_sends_no_image(
    serving: Deployment, clinic: Clinic, tmp_path: Path, kept: list[tuple[Kind, bytes]]
) -> None:
    copies = Copies(tmp_path)
    with Client.from_config(clinic.config) as client:
        client.prepare(2)
    copy = copies.take(clinic.store)
    with Client.from_config(clinic.config) as client:
        client.audit(0.5)
    ((_, opened),) = [one for one in kept if one[0] is Kind.KEY]
    copies.put_back(copy, clinic.store)
    assert clinic.sessions()[opened] == ("BOUND", True)
    images = serving.networks["lungs-1.10"].images()
    with Client.from_config(clinic.config) as client, pytest.raises(RestoredLedgerError):
        client.infer_tensor(images)
    assert [one for one in kept if one[0] is Kind.IMAGE] == []
    assert set(clinic.sessions().values()) == {BURNT}
