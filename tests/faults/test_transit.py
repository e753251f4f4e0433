"""Between the parties: nothing that somebody on the way changed is accepted."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from data_owner import Client
from radiopaque.certificates import Role
from radiopaque.errors import ConnectionLostError, RadiopaqueError
from radiopaque.transport.status import from_rpc_error
from radiopaque.transport.tls import grpc
from tests.e2e.networks import lungs
from tests.e2e.parties import until
from tests.faults.mutations import outcome
from tests.faults.records import CHANGES, LOSSES, Change, Relayed
from tests.unit.transport.calls import FakeRpcError

LEGS = [
    (role, to_server)
    for role in (Role.MODEL_OWNER, Role.CRYPTO_PROVIDER)
    for to_server in (True, False)
]


@contextmanager
def deployed(folder: Path) -> Iterator[Relayed]:
    folder.mkdir()
    with Relayed(folder, lungs()) as relayed:
        config = relayed.clinic()
        config.write_text(config.read_text().replace("= 20.0", "= 5.0", 1))
        yield relayed


@pytest.fixture(scope="module")
def relayed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Relayed]:
    with deployed(tmp_path_factory.mktemp("relayed") / "parties") as relayed:
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


def settle(relayed: Relayed, role: Role, to_server: bool) -> None:
    """From now on nothing is changed, and connections that broke are there again."""
    relayed.relays[role].arm(to_server, -1, CHANGES["first bit"])
    until(lambda: one_session(relayed) is None, 20.0)


@contextmanager
def counted(relayed: Relayed, role: Role, to_server: bool) -> Iterator[int]:
    """How many records one session takes in a direction."""
    relay = relayed.relays[role]
    settle(relayed, role, to_server)
    relay.arm(to_server, -1, CHANGES["first bit"])
    assert one_session(relayed) is None
    yield relay.counts[to_server]
    settle(relayed, role, to_server)


def change_one(
    relayed: Relayed, role: Role, to_server: bool, number: int, change: Change
) -> tuple[bool, bool]:
    """Whether the change was made, and whether it was noticed."""
    relay = relayed.relays[role]
    relay.arm(to_server, number, change)
    error = one_session(relayed)
    return relay.applied, relay.applied and error is not None


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
            noticed += change_one(relayed, role, to_server, rng.randrange(count), change)[1]
            if noticed == 3:
                break
    assert noticed == 3


def test_what_is_said_of_a_broken_record() -> None:
    """gRPC gives it a status of no meaning; what the client may do is try again."""
    said = "Stream removed (Unwrap failed (TSI_DATA_CORRUPTED))"
    error = FakeRpcError(grpc.StatusCode.UNKNOWN, said, None)
    assert type(from_rpc_error(error, "model owner", "host:1")) is ConnectionLostError


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("role", "to_server"), LEGS)
def test_every_record_changed_in_transit(
    relayed: Relayed, tmp_path: Path, role: Role, to_server: bool
) -> None:
    """Each of a session's records in each way, over connections that are there again before.

    Parties of their own for each record, since sessions that were broken off count against limits.
    """
    made, noticed = Counter[str](), Counter[str]()
    with counted(relayed, role, to_server) as count:
        pass
    for number in range(count):
        with deployed(tmp_path / str(number)) as fresh:
            for name, change in (CHANGES | LOSSES).items():
                settle(fresh, role, to_server)
                applied, ended = change_one(fresh, role, to_server, number, change)
                made[name] += applied
                noticed[name] += ended
    ways = ", ".join(f"{name} {noticed[name]} of {made[name]}" for name in CHANGES | LOSSES)
    print(f"{role}, to server {to_server}, {count} records, changes that ended a session: {ways}")
    assert all(2 * noticed[name] > made[name] > count / 2 for name in CHANGES)
