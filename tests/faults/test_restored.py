"""Ledgers that are put back from a copy: no mask of theirs serves a second time."""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from crypto_provider.service import CryptoProvider
from data_owner import Client
from radiopaque.certificates import Role
from radiopaque.config import MODEL_BYTES
from radiopaque.errors import RestoredLedgerError, SessionStateError
from radiopaque.transport.channel import Counters
from radiopaque.transport.grpc_client import GrpcChannel, Peer
from radiopaque.wire.frames import Frame, Kind
from radiopaque.wire.v1 import services_pb2 as pb
from tests.e2e.parties import Clinic, Deployment, until
from tests.faults.hand import Hand

NETWORK = "lungs-1.10"
OLDER = "ledger is older than what its peer has seen of it"


class Copies:
    """Copies of a party's folder; putting one back, with every file as it was."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def take(self, store: Path) -> Path:
        copy = self._folder / f"{store.name}-{len(list(self._folder.iterdir()))}"
        shutil.copytree(store, copy)
        return copy

    def put_back(self, copy: Path, store: Path) -> None:
        shutil.rmtree(store)
        shutil.copytree(copy, store)


@pytest.fixture
def copies(tmp_path: Path) -> Copies:
    folder = tmp_path / "copies"
    folder.mkdir()
    return Copies(folder)


@pytest.fixture
def images_sent(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[bytes]]:
    """By session, how many masked images have left. Never more than one."""
    sent: Counter[bytes] = Counter()
    send = GrpcChannel.send

    def counting(channel: GrpcChannel, frame: Frame) -> None:
        if frame.kind is Kind.IMAGE:
            sent[frame.session] += 1
        send(channel, frame)

    monkeypatch.setattr(GrpcChannel, "send", counting)
    yield sent
    assert not sent or max(sent.values()) == 1


def infer(deployment: Deployment, clinic: Clinic, seed: int = 0) -> bytes:
    """One inference with a right result, by a client of its own. Returns the session."""
    network = deployment.networks[NETWORK]
    images = network.images(seed)
    with Client.from_config(clinic.config) as client:
        answer = client.infer_tensor(images)
    value, bound = network.plaintext(images)
    assert (np.abs(answer.outputs - value) <= bound).all()
    until(lambda: deployment.owner.sessions()[answer.session][0] == "BURNT")
    return answer.session


def prepare(clinic: Clinic, count: int) -> list[bytes]:
    with Client.from_config(clinic.config) as client:
        return [item.session for item in client.prepare(count)]


def states(sessions: dict[bytes, tuple[str, bool]], *which: bytes) -> list[tuple[str, bool]]:
    return [sessions[one] for one in which]


BURNT = ("BURNT", False)


def test_a_clinics_ledger_put_back(
    serving: Deployment, clinic: Clinic, copies: Copies, images_sent: Counter[bytes]
) -> None:
    first, second = prepare(clinic, 2)
    copy = copies.take(clinic.store)
    assert infer(serving, clinic) == first
    copies.put_back(copy, clinic.store)
    assert states(clinic.sessions(), first, second) == [("BOUND", True)] * 2
    with pytest.raises(RestoredLedgerError, match=f"data owner's {OLDER}"):
        infer(serving, clinic, 1)
    assert states(clinic.sessions(), first, second) == [BURNT] * 2
    assert images_sent == {first: 1}
    # fresh material serves
    assert infer(serving, clinic, 2) not in (first, second)


def test_a_model_owners_ledger_put_back(
    serving: Deployment, clinic: Clinic, copies: Copies, images_sent: Counter[bytes]
) -> None:
    first, second = prepare(clinic, 2)
    serving.owner.stop()
    copy = copies.take(serving.owner.store)
    serving.owner.restart()
    assert infer(serving, clinic) == first
    serving.owner.kill()
    copies.put_back(copy, serving.owner.store)
    serving.owner.restart()
    assert states(serving.owner.sessions(), first, second) == [("READY", True)] * 2
    with pytest.raises(SessionStateError, match="refused every prepared session"):
        infer(serving, clinic, 1)
    assert states(serving.owner.sessions(), first, second) == [BURNT] * 2
    assert "the ledger is a copy that was put back" in serving.owner.log.read_text()
    assert images_sent == {first: 1}
    assert infer(serving, clinic, 2) not in (first, second)


def test_both_put_back_to_different_moments(
    serving: Deployment, clinic: Clinic, copies: Copies, images_sent: Counter[bytes]
) -> None:
    """Each ledger for itself would let the second session serve again."""
    first, second = prepare(clinic, 2)
    earlier = copies.take(clinic.store)
    assert infer(serving, clinic) == first
    serving.owner.stop()
    later = copies.take(serving.owner.store)
    serving.owner.restart()
    assert infer(serving, clinic, 1) == second
    serving.owner.kill()
    copies.put_back(earlier, clinic.store)
    copies.put_back(later, serving.owner.store)
    serving.owner.restart()
    assert clinic.sessions()[second] == ("BOUND", True)
    assert serving.owner.sessions()[second] == ("READY", True)
    with pytest.raises(RestoredLedgerError, match=f"data owner's {OLDER}"):
        infer(serving, clinic, 2)
    assert images_sent == {first: 1, second: 1}
    assert infer(serving, clinic, 3) not in (first, second)


def test_the_crypto_provider_remembers_what_a_clinic_has_forgotten(
    serving: Deployment, clinic: Clinic, copies: Copies
) -> None:
    """Clinic and vendor of the same moment agree with each other; the third party does not."""
    (first,) = prepare(clinic, 1)
    copy = copies.take(clinic.store)
    prepare(clinic, 1)
    copies.put_back(copy, clinic.store)
    with pytest.raises(RestoredLedgerError, match=f"data owner's {OLDER}"):
        prepare(clinic, 1)
    assert clinic.sessions()[first] == BURNT
    assert infer(serving, clinic) != first


def test_a_crypto_providers_ledger_put_back(
    serving: Deployment, hand: Hand, copies: Copies
) -> None:
    """It would deal the same key_D to two keys of a model owner."""
    hand.reserve()
    copy = copies.take(serving.provider.store)
    hand.upload()
    serving.provider.kill()
    copies.put_back(copy, serving.provider.store)
    serving.provider.restart()
    identity = serving.identity(Role.MODEL_OWNER)
    request = pb.DealRequest(
        session=hand.session, artefact=hand.artefact.artefact, key_o=bytes(range(32))
    )
    with (
        Peer(Role.CRYPTO_PROVIDER, serving.provider.address, identity) as peer,
        pytest.raises(SessionStateError, match="is BURNT at the crypto provider, not RESERVED"),
    ):
        next(peer.download_frames("Deal", request, Counters(), 20.0))
    # what was dealt before serves once, as it would have
    hand.infer()


def test_a_reservation_that_is_too_old_is_not_dealt(
    serving: Deployment, identity: object, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Also where nobody reserves in between, and the ledger was not opened in between."""
    from radiopaque.certificates import PeerIdentity
    from radiopaque.transport.grpc_server import Call

    party = CryptoProvider(
        tmp_path / "provider",
        most_models=1,
        model_bytes=MODEL_BYTES,
        most_reserved=10,
        most_reserved_per_clinic=10,
        reservation_seconds=60.0,
        concurrent_deals=1,
    )
    compiled = serving.compiled[NETWORK]
    key = compiled.key
    owner = Call(PeerIdentity(Role.MODEL_OWNER, "model-owner"), 20.0)
    party.register(
        pb.RegisterRequest(
            plan=compiled.plan_bytes,
            plan_digest=key.id.plan_digest,
            artefact=key.id.artefact,
            key_b=key.key_b.reveal(),
        ),
        owner,
    )
    party.reserve(
        pb.ReserveRequest(
            session=bytes(16),
            plan_digest=key.id.plan_digest,
            artefact=key.id.artefact,
            key_d=bytes(32),
            epoch=bytes(16),
        ),
        Call(PeerIdentity(Role.DATA_OWNER, "clinic"), 20.0),
    )
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 61)
    request = pb.DealRequest(session=bytes(16), artefact=key.id.artefact, key_o=bytes(32))
    with pytest.raises(SessionStateError, match="is BURNT at the crypto provider"):
        next(party.deal(request, owner))
    party.close()


def test_another_ledger_of_the_same_clinic_is_no_copy(
    serving: Deployment, clinic: Clinic, images_sent: Counter[bytes], tmp_path: Path
) -> None:
    """Two stores with one certificate, and a store that was thrown away."""
    beside = tmp_path / "beside.toml"
    text = clinic.config.read_text()
    beside.write_text(text.replace(str(clinic.store), str(tmp_path / "beside")))
    other = Clinic(clinic.name, beside, tmp_path / "beside", clinic.files)
    logged = len(serving.owner.log.read_text())
    served = [infer(serving, one, seed) for seed, one in enumerate((clinic, other, clinic, other))]
    shutil.rmtree(clinic.store)
    served.append(infer(serving, clinic, 4))
    # the same of a vendor: what the clinic has seen was in a ledger that is no more
    serving.owner.kill()
    shutil.rmtree(serving.owner.store)
    serving.owner.restart()
    served.append(infer(serving, clinic, 5))
    assert len(set(served)) == len(images_sent) == 6
    assert "the ledger is a copy" not in serving.owner.log.read_text()[logged:]
