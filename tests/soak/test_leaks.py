"""Session after session, every fifth broken off: nothing stays behind at any party."""

from __future__ import annotations

import os
from collections.abc import Iterable
from itertools import cycle
from pathlib import Path

import numpy as np
import pytest

from radiopaque.errors import ConnectionLostError
from radiopaque.wire.frames import Frame, Kind
from tests.e2e.networks import lungs
from tests.e2e.parties import Deployment, Serving, until
from tests.faults.hand import Hand, Tampered
from tests.soak.usage import MIB, Usage

WARM_UP = 20
FEW, MANY = 60, 1000
BREAK_OFF_EVERY = 5
KINDS = (Kind.IMAGE, Kind.SELECTION, Kind.RERANDOMISED)
MORE_THREADS = 4
"""The servers' pools grow with the calls at once, of which there are two here at most."""


def more_memory(sessions: int) -> int:
    """Bytes that a party may have grown by, most of it rows in its ledger's cache and the heap."""
    return 2 * MIB + 4096 * sessions


def session(hand: Hand, cancelled: Kind | None) -> None:
    """One session, prepared and used, or broken off when it comes to such a message."""
    hand.renew()
    hand.prepare()
    channel = hand.start()

    def cancel(frame: Frame) -> Iterable[Frame]:
        if frame.kind is cancelled:
            channel.close(ConnectionLostError("broken off"))
        return [frame]

    images = hand.network.images()
    if cancelled is None:
        value, bound = hand.network.plaintext(images)
        assert (np.abs(hand.run(channel, images) - value) <= bound).all()
    else:
        with pytest.raises(ConnectionLostError, match="broken off"):
            hand.run(Tampered(channel, cancel), images)


def files_of(deployment: Deployment) -> list[str]:
    """All files in the servers' stores, without what SQLite makes beside its own for a moment."""
    found = (path for party in parties(deployment) for path in party.store.rglob("*"))
    return sorted(str(path) for path in found if "sqlite-" not in path.name)


def parties(deployment: Deployment) -> tuple[Serving, Serving]:
    return deployment.owner, deployment.provider


def run(folder: Path, sessions: int) -> None:
    deployment = Deployment(folder, {"lungs-1.10": lungs(seed=10)})
    kinds = cycle(KINDS)
    with deployment, Hand(deployment, deployment.clinic("busy")) as hand:

        def go(count: int) -> None:
            for number in range(count):
                session(hand, next(kinds) if number % BREAK_OFF_EVERY == 0 else None)
            until(lambda: not deployment.material())

        processes: tuple[int | Serving, ...] = (*parties(deployment), os.getpid())
        go(WARM_UP)
        files = files_of(deployment)
        before = [Usage.of(process) for process in processes]
        go(sessions)
        for process, old in zip(processes, before, strict=True):
            name = getattr(process, "role", "data-owner")
            until(lambda process=process, old=old: _settled(Usage.of(process), old))
            new = Usage.of(process)
            print(f"{sessions} sessions, {name}: {old}; then {new}")
            assert new.resident_bytes - old.resident_bytes <= more_memory(sessions), name
        assert files_of(deployment) == files
        for party in parties(deployment):
            until(lambda party=party: set(party.sessions().values()) == {("BURNT", False)})


def _settled(new: Usage, old: Usage) -> bool:
    return new.threads <= old.threads + MORE_THREADS and new.files <= old.files


def test_a_few_sessions_leave_nothing(tmp_path: Path) -> None:
    run(tmp_path / "few", FEW)


@pytest.mark.soak
def test_a_thousand_sessions_leave_nothing(tmp_path: Path) -> None:
    run(tmp_path / "many", MANY)
