"""Many clinics at once against one model owner: all are answered or refused, memory is bounded.

Each clinic has a certificate, a store and connections of its own; all are threads of the test's
process. The servers are processes with their default limits.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from data_owner import Client
from radiopaque.errors import ResourceError
from tests.e2e.networks import Network, lungs
from tests.e2e.parties import Clinic, Deployment, Serving, until
from tests.soak.usage import MIB, Usage

CEILING = 96 * MIB
"""What a server may take more than after the first clinic's session, with this small network."""
SECONDS = 240.0
"""A clinic that was not answered by then was forgotten."""
IMAGES = 3


class Visit:
    """One clinic that wants its images classified, however often it is refused."""

    def __init__(self, clinic: Clinic, network: Network, begin: threading.Barrier) -> None:
        self.outcomes: Counter[str] = Counter()
        self.slowest = 0.0
        self._clinic = clinic
        self._network = network
        self._begin = begin

    def run(self) -> None:
        with Client.from_config(self._clinic.config) as client:
            self._begin.wait(SECONDS)
            until = time.monotonic() + SECONDS
            for number in range(IMAGES):
                self._insist(client, number, until)

    def _insist(self, client: Client, number: int, until: float) -> None:
        images = self._network.images(number)
        began = time.monotonic()
        while time.monotonic() < until:
            try:
                outputs = client.infer_tensor(images).outputs
            except ResourceError as error:
                self.outcomes["refused"] += 1
                asked = error.retry_seconds or 0.0
                time.sleep(asked + secrets.SystemRandom().uniform(0.1, 0.5))
                continue
            value, bound = self._network.plaintext(images)
            assert (np.abs(outputs - value) <= bound).all()
            self.outcomes["answered"] += 1
            self.slowest = max(self.slowest, time.monotonic() - began)
            return
        self.outcomes["forgotten"] += 1


def run(folder: Path, clinics: int, limits: str = "") -> Counter[str]:
    network = lungs(seed=10)
    deployment = Deployment(folder, {"lungs-1.10": network})
    deployment.owner.write_config(limits)
    with deployment:
        with Client.from_config(deployment.clinic("first").config) as client:
            client.infer_tensor(network.images())
        idle = {party: Usage.of(party) for party in (deployment.owner, deployment.provider)}
        begin = threading.Barrier(clinics)
        visits = [
            Visit(deployment.clinic(f"clinic-{number}"), network, begin)
            for number in range(clinics)
        ]
        began = time.monotonic()
        with ThreadPoolExecutor(clinics) as pool:
            for done in [pool.submit(visit.run) for visit in visits]:
                done.result()
        seconds = time.monotonic() - began
        outcomes = sum((visit.outcomes for visit in visits), Counter[str]())
        slowest = max(visit.slowest for visit in visits)
        print(f"{clinics} clinics, {dict(outcomes)}, {seconds:.1f} s, slowest {slowest:.1f} s")
        for party, before in idle.items():
            check_memory(party, before)
        until(lambda: not deployment.material())
        assert outcomes["answered"] == clinics * IMAGES
        assert outcomes["forgotten"] == 0
    return outcomes


def check_memory(party: Serving, before: Usage, ceiling: int = CEILING) -> None:
    """Nobody has crashed, and what was taken at most is under the ceiling."""
    assert party.running
    until(lambda: Usage.of(party).files <= before.files)
    after = Usage.of(party)
    print(f"{party.role}: {before}; then {after}")
    assert after.peak_bytes - before.resident_bytes <= ceiling, party.role


def test_more_clinics_than_places(tmp_path: Path) -> None:
    run(tmp_path / "load", 8, "concurrent_calls = 3\nconcurrent_inferences = 1")


@pytest.mark.soak
def test_a_hundred_clinics(tmp_path: Path) -> None:
    outcomes = run(tmp_path / "load", 100)
    assert outcomes["refused"] > 0
