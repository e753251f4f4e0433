"""Two replicas of a model owner that share a ledger in PostgreSQL and the folder of material."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from radiopaque.certificates import Role
from radiopaque.errors import ResourceError, SessionStateError
from radiopaque.transport.grpc_client import Peer
from tests.e2e.networks import lungs
from tests.e2e.parties import Clinic, Deployment, Serving
from tests.faults.hand import Hand
from tests.unit.ledger.test_postgresql import Server, server

__all__ = ["server"]
NETWORK = "lungs-1.10"
QUOTA = 3


@pytest.fixture
def replicas(server: Server, tmp_path: Path) -> Iterator[tuple[Deployment, Serving]]:
    """A deployment and the second replica of its model owner."""
    deployment = Deployment(tmp_path / "deployment", {NETWORK: lungs(seed=10)})
    owner, conninfo = deployment.owner, server.database()
    text = owner.config.read_text()
    kept = f'[ledger]\npostgresql = "{conninfo}"\nreplica = "%s"\n[policy]\nimages = {QUOTA}\n'
    owner.config.write_text(text + kept % "first")
    (tmp_path / "second").mkdir()
    second = Serving(
        Role.MODEL_OWNER,
        tmp_path / "second",
        deployment.certificates[Role.MODEL_OWNER],
        "",
    )
    second.config.write_text(
        text.replace(str(owner.store), str(second.store)).replace(
            f"127.0.0.1:{owner.port}", f"127.0.0.1:{second.port}", 1
        )
        + kept % "second"
    )
    with deployment:
        # the folder that they share
        second.store.mkdir(mode=0o700)
        (second.store / "material").symlink_to(owner.store / "material")
        second.start()
        second.wait()
        yield deployment, second
        second.kill()


def test_two_replicas_grant_one_quota(replicas: tuple[Deployment, Serving]) -> None:
    deployment, second = replicas
    clinic: Clinic = deployment.clinic("counted")
    hands = [Hand(deployment, clinic, NETWORK) for _ in range(QUOTA + 1)]
    for number, hand in enumerate(hands):
        hand.prepare()
        if number % 2:
            hand.owner.close()
            hand.owner = Peer(Role.MODEL_OWNER, second.address, hand.identity)
    *granted, beyond = hands
    for hand in granted:
        hand.infer()
    for replica in (deployment.owner, second):
        beyond.owner.close()
        beyond.owner = Peer(Role.MODEL_OWNER, replica.address, beyond.identity)
        with pytest.raises(ResourceError, match=f"{QUOTA} images in 24 hours, is used up"):
            beyond.start()
    # also when a replica begins anew
    second.kill()
    second.restart()
    with pytest.raises(ResourceError, match="is used up"):
        beyond.start()


def test_a_session_is_served_by_one_of_two_replicas(
    replicas: tuple[Deployment, Serving],
) -> None:
    deployment, second = replicas
    clinic: Clinic = deployment.clinic("clinic")
    hands = [Hand(deployment, clinic, NETWORK) for _ in range(3)]
    for hand in hands:
        hand.prepare()
    elsewhere, taken, left = hands
    for hand in (elsewhere, taken):
        hand.owner.close()
        hand.owner = Peer(Role.MODEL_OWNER, second.address, hand.identity)
    # prepared by one, served by the other
    images = elsewhere.network.images(3)
    value, bound = elsewhere.network.plaintext(images)
    assert (np.abs(elsewhere.infer(images) - value) <= bound).all()
    channel = taken.start()
    with Hand(deployment, clinic, NETWORK, taken.session) as again:
        with pytest.raises(SessionStateError, match="is STARTED at the model owner, not READY"):
            again.start()
        # a replica that starts again leaves the other's sessions alone
        deployment.owner.kill()
        deployment.owner.restart()
        again.owner.close()
        again.owner = Peer(Role.MODEL_OWNER, second.address, again.identity)
        with pytest.raises(SessionStateError, match="is STARTED at the model owner, not READY"):
            again.start()
        taken.run(channel)
        with pytest.raises(SessionStateError, match="is BURNT at the model owner, not READY"):
            again.start()
    left.infer()
