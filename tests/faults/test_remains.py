"""What is left behind: no key on a disk or in a log, no file of a used session, no thread."""

from __future__ import annotations

import base64
import logging
import re
import sqlite3
import threading
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from data_owner import Client
from model_owner.admission import Limits
from model_owner.dealer import Dealer
from model_owner.hosting import Hosted
from model_owner.service import ModelOwner
from radiopaque.certificates import Role
from radiopaque.errors import (
    MessageOrderError,
    MessageSizeError,
    PeerUnavailableError,
    SessionStateError,
    StoreError,
    UnknownSessionError,
)
from radiopaque.prg import KEY_BYTES, SecretKey
from radiopaque.transport.grpc_client import Peer
from radiopaque.wire.frames import Kind
from tests.e2e.networks import Network, lungs
from tests.e2e.parties import Clinic, Deployment, Serving, contents, ledger_on_disk, until
from tests.faults.hand import Hand, Tampered
from tests.faults.inside import Inside, Rewritten, rewriting
from tests.faults.test_messages import only, shortened


def assert_right(network: Network, images: np.ndarray, outputs: np.ndarray) -> None:
    value, bound = network.plaintext(images)
    assert (np.abs(outputs - value) <= bound).all()


def kept(store: Path, session: bytes) -> list[bytes]:
    """What a ledger keeps for a session that waits, cut into keys."""
    path = store / "sessions.sqlite"
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        query = "SELECT secret FROM session WHERE id = ?"
        (secret,) = connection.execute(query, (session,)).fetchone()
    whole = len(secret) // KEY_BYTES * KEY_BYTES
    return [secret[start : start + KEY_BYTES] for start in range(0, whole, KEY_BYTES)]


def spellings(key: bytes) -> list[bytes]:
    """A key as it could appear in a log or a file; cut, so that an abbreviation is found too."""
    return [
        key[:8],
        key[:8].hex().encode(),
        base64.b64encode(key)[:10],
        base64.urlsafe_b64encode(key)[:10],
        repr(key[:6])[2:-1].encode(),
        str(list(key[:6]))[1:-1].encode(),
    ]


def found_in(data: bytes, keys: Iterable[bytes]) -> bool:
    return any(spelling in data for key in keys for spelling in spellings(key))


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Every key that is drawn in this process, in the order in which they are."""
    keys: list[bytes] = []
    generate = SecretKey.generate

    def recording() -> SecretKey:
        key = generate()
        keys.append(key.reveal())
        return key

    monkeypatch.setattr(SecretKey, "generate", staticmethod(recording))
    return keys


def test_keys_are_gone_from_every_disk_once_a_session_was_used(
    serving: Deployment, clinic: Clinic, drawn: list[bytes]
) -> None:
    network = serving.networks["lungs-1.10"]
    stores = [clinic.store, serving.owner.store, serving.provider.store]
    with Client.from_config(clinic.config) as client:
        (prepared,) = client.prepare()
        # key_D lies at the clinic, key_O and the key of the files at the vendor
        own = kept(clinic.store, prepared.session)
        waiting = kept(serving.owner.store, prepared.session)
        assert own[:1] == drawn[-1:]
        assert len(waiting) == 2
        keys = [*own, *waiting]
        assert all(any(key in data for _, data in contents(stores)) for key in keys)
        provider = [serving.provider.store]
        assert not any(found_in(data, keys) for _, data in contents(provider))
        answer = client.infer_tensor(network.images())
        assert answer.session == prepared.session
        serving.assert_used_up(prepared.session)
        for path, data in contents(stores):
            assert not any(key in data for key in keys), path
    for path, data in contents(stores):
        assert not any(key in data for key in keys), path


def test_a_session_that_failed_leaves_no_more_than_one_that_worked(
    serving: Deployment, hand: Hand
) -> None:
    hand.prepare()
    waiting = kept(serving.owner.store, hand.session)
    assert len(waiting) == 2
    assert len(serving.material(hand.session)) == 2
    channel = Tampered(hand.start(), only(Kind.SELECTION, lambda frame: [shortened(frame)]))
    with pytest.raises(MessageSizeError):
        hand.run(channel)
    serving.assert_used_up(hand.session)
    keys = [hand.key_d.reveal(), *waiting]
    stores = [serving.owner.store, serving.provider.store]
    assert not any(key in data for _, data in contents(stores) for key in keys)


def test_logs_of_the_servers_hold_no_key(
    serving: Deployment, clinic: Clinic, drawn: list[bytes]
) -> None:
    """Good sessions, and ones that end in an error at each server."""
    keys: list[bytes] = [compiled.key.key_b.reveal() for compiled in serving.compiled.values()]
    with Client.from_config(clinic.config) as client:
        for prepared in client.prepare(2):
            keys += kept(serving.owner.store, prepared.session)
        client.infer_tensor(serving.networks["lungs-1.10"].images())
    with Hand(serving, clinic) as hand:
        with pytest.raises(UnknownSessionError):
            hand.upload()
        with pytest.raises(SessionStateError):
            hand.start()
        hand.renew()
        hand.reserve()
        with pytest.raises(SessionStateError):
            hand.reserve()
        with pytest.raises(MessageOrderError):
            hand.upload(hand.requests(hand.frames[1:]))
    keys += drawn
    assert len(keys) >= 5 + 4 + 3
    for party in (serving.owner, serving.provider):
        log = party.log.read_bytes()
        assert b"session" in log
        assert not found_in(log, keys)


def test_logs_of_all_parties_in_one_process_hold_no_key(
    tmp_path: Path,
    drawn: list[bytes],
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Here key_O and the file key are known as they are drawn, and everything is logged."""
    caplog.set_level(logging.DEBUG)
    network = lungs()
    with Inside(tmp_path, network) as inside:
        with Client.from_config(inside.clinic()) as client:
            client.infer_tensor(network.images())
            seen: list[Rewritten] = []
            inside.lies["Infer"] = rewriting(only(Kind.OPENING, lambda f: [shortened(f)]), seen)
            with pytest.raises(MessageSizeError):
                client.infer_tensor(network.images())
            until(lambda: "inference broken off" in caplog.text)
            representations = repr(vars(client)) + repr(vars(inside.hosting)) + repr(client.model())
        sessions = inside.owner.sessions()
    # of the artefact one key, of each session key_D, key_O and the files' key, and some to warm up
    assert len(drawn) >= 1 + 2 * 3
    assert len(sessions) == 2
    printed = "".join(capfd.readouterr())
    assert "session prepared" in caplog.text
    assert not found_in((caplog.text + printed + representations).encode(), drawn)


def test_damaged_material_is_told_to_the_operator_and_the_next_session_serves(
    serving: Deployment, clinic: Clinic
) -> None:
    network = serving.networks["lungs-1.10"]
    images = network.images(1)
    with Client.from_config(clinic.config) as client:
        first, second = client.prepare(2)
        damaged = serving.material(first.session)[0]
        data = bytearray(damaged.read_bytes())
        data[len(data) // 2] ^= 1
        damaged.write_bytes(data)
        answer = client.infer_tensor(images)
        assert answer.session == second.session
        assert_right(network, images, answer.outputs)
    assert (
        f"prepared material {damaged.name} is missing or damaged" in serving.owner.log.read_text()
    )
    serving.assert_used_up(first.session, second.session)


def test_damaged_artefact_at_the_crypto_provider(serving: Deployment, hand: Hand) -> None:
    """It is not used, the operator is told which file to delete, and then it registers again."""
    hand.prepare().infer()
    path = serving.provider.store / "artefacts" / f"{hand.artefact.artefact.hex()}.artefact"
    serving.provider.stop()
    data = bytearray(path.read_bytes())
    data[20] ^= 1
    path.write_bytes(data)
    serving.provider.restart()
    try:
        with Hand(serving, hand.identity) as attempt:
            until(lambda: reaches_the_provider(attempt))
            attempt.renew()
            attempt.reserve()
            with pytest.raises(StoreError, match="the model owner failed inside") as caught:
                attempt.upload()
        # the clinic's reference leads to the vendor's log, and that to the crypto provider's
        entry = entry_of(serving.owner, str(caught.value).split()[-1])
        assert "a call failed inside" in entry
        reference = re.findall("its log under ([0-9a-f]{8})", entry)[-1]
        assert f"{path} is damaged; delete it" in entry_of(serving.provider, reference)
    finally:
        path.unlink()


def reaches_the_provider(attempt: Hand) -> bool:
    """Whether the model owner has found the crypto provider again."""
    attempt.renew()
    attempt.reserve()
    try:
        attempt.upload()
    except PeerUnavailableError:
        return False
    except StoreError:
        return True
    raise AssertionError("a damaged artefact was dealt with")


def entry_of(party: Serving, reference: str) -> str:
    """The line of a server's log that has this reference."""
    (line,) = [
        line for line in party.log.read_text().splitlines() if f'"reference": "{reference}"' in line
    ]
    return line


@pytest.mark.parametrize("reason", ["too old", "not hosted any more"])
def test_sessions_that_nobody_can_use_are_deleted_when_a_vendor_starts(
    tmp_path: Path, reason: str
) -> None:
    network = lungs()
    with Inside(tmp_path, network) as inside, Client.from_config(inside.clinic()) as client:
        (prepared,) = client.prepare()
        assert len(inside.material()) == 2
        owner = inside.owner.store
    hosted = [] if reason == "not hosted any more" else [(tmp_path / "it", None, None)]
    limits = Limits(50, 4, 1 << 30, 0.0 if reason == "too old" else 1e6, 1 << 30, 50)
    identity = inside.identity(Role.MODEL_OWNER)
    with Peer(Role.CRYPTO_PROVIDER, inside.provider.address, identity) as peer:
        ModelOwner(owner, Hosted.load(hosted), Dealer(peer), limits).close()
    assert ledger_on_disk(owner)[prepared.session] == ("BURNT", False)
    assert list((owner / "material").iterdir()) == []


def test_threads_end_with_the_client(serving: Deployment, clinic: Clinic) -> None:
    network = serving.networks["lungs-1.10"]
    before = set(threading.enumerate())
    with Client.from_config(clinic.config) as client:
        client.prepare(2)
        for _ in range(3):
            client.infer_tensor(network.images())
    until(lambda: set(threading.enumerate()) <= before)


def test_threads_end_with_the_servers(tmp_path: Path) -> None:
    network = lungs()
    before = set(threading.enumerate())
    with Inside(tmp_path, network) as inside, Client.from_config(inside.clinic()) as client:
        client.infer_tensor(network.images())
        assert set(threading.enumerate()) > before
    until(lambda: set(threading.enumerate()) <= before)


def test_threads_and_slots_come_free_after_failures(serving: Deployment, clinic: Clinic) -> None:
    """More failing inferences than a server has slots, one after the other."""
    before = set(threading.enumerate())
    with Hand(serving, clinic) as hand:
        for _ in range(40):
            with pytest.raises(UnknownSessionError):
                hand.start()
    until(lambda: set(threading.enumerate()) <= before)
