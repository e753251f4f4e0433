"""Between the parties: nothing that somebody on the way changed is accepted."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from data_owner import Client
from radiopaque.certificates import Role
from radiopaque.errors import RadiopaqueError
from tests.e2e.networks import lungs
from tests.e2e.parties import until
from tests.faults.mutations import outcome
from tests.faults.records import CHANGES, LOSSES, Change, Relayed

LEGS = [
    (role, to_server)
    for role in (Role.MODEL_OWNER, Role.CRYPTO_PROVIDER)
    for to_server in (True, False)
]


@pytest.fixture(scope="module")
def relayed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Relayed]:
    with Relayed(tmp_path_factory.mktemp("relayed"), lungs()) as relayed:
        config = relayed.clinic()
        config.write_text(config.read_text().replace("= 20.0", "= 5.0", 1))
        yield relayed


def one_session(relayed: Relayed) -> RadiopaqueError | None:
    """Prepare and infer once, over new connections: a right result, or how it ended."""
    network = relayed.networks["it"]
    images = network.images(5)
    value, bound = network.plaintext(images)
    config = relayed.folder / "clinic.toml"
    with Client.from_config(config) as client:

        def session() -> None:
            client.model()
            client.prepare()
            assert (np.abs(client.infer_tensor(images).outputs - value) <= bound).all()

        return outcome(session)


@contextmanager
def counted(relayed: Relayed, role: Role, to_server: bool) -> Iterator[int]:
    """How many records one session takes in a direction."""
    relay = relayed.relays[role]
    relay.arm(to_server, -1, CHANGES["first bit"])
    until(lambda: one_session(relayed) is None, 20.0)
    relay.arm(to_server, -1, CHANGES["first bit"])
    assert one_session(relayed) is None
    yield relay.counts[to_server]
    relay.arm(to_server, -1, CHANGES["first bit"])
    until(lambda: one_session(relayed) is None, 20.0)


def change_one(relayed: Relayed, role: Role, to_server: bool, number: int, change: Change) -> bool:
    """Whether the change was made and noticed."""
    relay = relayed.relays[role]
    relay.arm(to_server, number, change)
    error = one_session(relayed)
    return relay.applied and error is not None


@pytest.mark.parametrize(("role", "to_server"), LEGS)
def test_a_record_changed_in_transit(relayed: Relayed, role: Role, to_server: bool) -> None:
    """Random records, until three changes were noticed: no result but the right one, typed errors.

    One behind a session's last message ends a connection that nobody needs any more.
    """
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    noticed = 0
    with counted(relayed, role, to_server) as count:
        for _ in range(20):
            change = CHANGES[rng.choice(sorted(CHANGES))]
            noticed += change_one(relayed, role, to_server, rng.randrange(count), change)
            if noticed == 3:
                break
    assert noticed == 3


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("role", "to_server"), LEGS)
def test_every_record_changed_in_transit(relayed: Relayed, role: Role, to_server: bool) -> None:
    with counted(relayed, role, to_server) as count:
        found = {
            (name, number): change_one(relayed, role, to_server, number, change)
            for number in range(count)
            for name, change in (CHANGES | LOSSES).items()
        }
    print(f"{role}, to server {to_server}: {sum(found.values())} of {len(found)} ended a session")
    assert sum(found.values()) > len(found) / 2
