"""Servers that must serve a good session after whatever a test did to them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from itertools import count

import numpy as np
import pytest

from radiopaque.certificates import Identity
from radiopaque.errors import PeerUnavailableError
from tests.e2e.parties import Clinic, Deployment, until
from tests.faults.hand import Hand

_NUMBERS = count()


@pytest.fixture(scope="session")
def identity(processes: Deployment) -> Identity:
    """One clinic for all sessions that are driven by hand."""
    return processes.clinic("by-hand").identity()


@pytest.fixture
def serving(deployment: Deployment, identity: Identity) -> Iterator[Deployment]:
    """The servers; afterwards a good session is prepared and its result compared."""
    yield deployment
    if not (deployment.provider.running and deployment.owner.running):
        deployment.ensure_running()
    settle(deployment, identity)
    with Hand(deployment, identity) as good:
        images = good.network.images(next(_NUMBERS))
        outputs = good.prepare().infer(images)
        value, bound = good.network.plaintext(images)
        assert (np.abs(outputs - value) <= bound).all()
        deployment.assert_used_up(good.session)


def settle(deployment: Deployment, identity: Identity) -> None:
    """Wait until the model owner has found a crypto provider that was started again."""
    known = [deployment.owner.starts, deployment.provider.starts]
    if deployment.settled != known:

        def prepared() -> bool:
            with Hand(deployment, identity) as attempt, suppress(PeerUnavailableError):
                attempt.prepare().start().close()
                return True
            return False

        until(prepared)
        deployment.settled = known


@pytest.fixture
def hand(serving: Deployment, identity: Identity) -> Iterator[Hand]:
    """A session of the clinic, nothing done yet."""
    with Hand(serving, identity) as hand:
        yield hand


@pytest.fixture
def clinic(deployment: Deployment) -> Clinic:
    """A clinic with a certificate and a store of its own."""
    return deployment.clinic(f"clinic-{next(_NUMBERS)}")
