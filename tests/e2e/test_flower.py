"""Four processes, as a coordinator and three hospitals run them; one hospital is killed."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("opacus")
pytest.importorskip("flwr")

import torch
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP384R1,
    generate_private_key,
)

from tests.unit.training.hospitals import NAMES, Hospitals, build
from training import checkpoint
from training.data import index_folder
from training.errors import SettingsError, SiteLostError
from training.federated import build_network, build_site
from training.flower.members import split_address
from training.flower.settings import agreement, load_run, load_site, settings_of
from training.flower.supernode import SuperNode
from training.intake import read_images
from training.rounds import RoundRunner
from training.site import flatten, shared_names, weights_of

ROUNDS = 9
KILLED = "oak"
# Of a machine that has much else to do; with two cores to itself the test takes under a minute.
PATIENCE = 200.0
COMMAND = (sys.executable, "-c", "from radiopaque.cli.main import main; main()", "federation")


class Process:
    """One command, its lines as they come, in an environment without a home of its own."""

    def __init__(self, home: Path, *words: object) -> None:
        environment = {**os.environ, "HOME": str(home), "PYTHONUNBUFFERED": "1"}
        self.lines: list[str] = []
        self.errors: list[str] = []
        self.process = subprocess.Popen(
            [*COMMAND, *map(str, words)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._readers = [
            threading.Thread(target=self._read, args=pair, daemon=True)
            for pair in ((self.process.stdout, self.lines), (self.process.stderr, self.errors))
        ]
        for reader in self._readers:
            reader.start()

    @staticmethod
    def _read(stream: IO[str], lines: list[str]) -> None:
        for line in stream:
            lines.append(line.rstrip("\n"))

    def wait_for(self, text: str, seconds: float = PATIENCE) -> None:
        deadline = time.monotonic() + seconds
        while not any(text in line for line in list(self.lines)):
            told = (text, self.lines, self.errors)
            assert self.process.poll() is None, told
            assert time.monotonic() < deadline, told
            time.sleep(0.005)

    def finish(self, seconds: float = PATIENCE) -> int:
        code = self.process.wait(timeout=seconds)
        for reader in self._readers:
            reader.join(timeout=10.0)
        return code

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


@pytest.fixture
def hospitals(tmp_path: Path) -> Hospitals:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = listening.getsockname()[1]
    hospitals = build(tmp_path, port)
    hospitals.write_run(rounds=ROUNDS, steps=20, training="batch_size = 8")
    return hospitals


@pytest.fixture
def started(tmp_path: Path) -> Iterator[list[Process]]:
    processes: list[Process] = []
    yield processes
    for process in processes:
        process.stop()


class Absent:
    """A site that is lost in the rounds in which the log does not have it."""

    def __init__(self, site: object, rounds: set[int]) -> None:
        self._site, self._rounds, self._now = site, rounds, 0
        self.name, self.samples = site.name, site.samples  # type: ignore[attr-defined]

    def begin(self, number: int, rounds: int) -> None:
        self._now = number
        self._site.begin(number, rounds)  # type: ignore[attr-defined]

    def step(self, model: object, weights: object) -> object:
        if self._now in self._rounds:
            raise SiteLostError("gone")
        return self._site.step(model, weights)  # type: ignore[attr-defined]


def in_one_process(hospitals: Hospitals, took_part: list[list[str]]) -> np.ndarray:
    """The weights that secure rounds in this process end in, with the same sites in each."""
    torch.set_num_threads(1)
    run = load_run(hospitals.run, hospitals.members)
    model = build_network(run)
    sites = []
    for name in NAMES:
        site = load_site(hospitals.site(name))
        settings = settings_of(site, run)
        cohort, _ = read_images(index_folder(site.data / "train"), settings.data)
        missed = {number for number, names in enumerate(took_part) if name not in names}
        sites.append(Absent(build_site(name, cohort, settings), missed))
    runner = RoundRunner(run.federation_or_default(), NAMES, run.training.rounds)
    weights = weights_of(model)
    for number in range(len(took_part)):
        weights = dict(runner.run(number, sites, model, weights).weights)  # type: ignore[arg-type]
    return flatten(weights, shared_names(model))


def refuse_strangers(hospitals: Hospitals) -> None:
    """Without TLS nothing is said, and without a key of the list nobody gets in."""
    entry = hospitals.members.coordinator
    with socket.create_connection(split_address(entry.address), timeout=30.0) as wire:
        wire.sendall(b"POST /v1/fleet/pull-messages HTTP/1.1\r\ncontent-length: 0\r\n\r\n")
        assert b"HTTP" not in wire.recv(100)
    stranger = generate_private_key(SECP384R1())
    with pytest.raises(SettingsError, match="does not know this site's node key"):
        SuperNode(entry.address, entry.certificate, stranger, 1, lambda line: None).check()


def test_hospitals_train_together_and_one_is_killed_in_mid_round(
    hospitals: Hospitals, started: list[Process], tmp_path: Path
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    sites = {name: Process(home, "join", "--config", hospitals.site(name)) for name in NAMES}
    started += sites.values()
    output = tmp_path / "output"
    words = ("--config", hospitals.run, "--members", hospitals.members_file, "--keys")
    coordinator = Process(
        home, "coordinate", *words, hospitals.coordinator_keys, "--output", output, "--json"
    )
    started.append(coordinator)

    sites[KILLED].wait_for("round 2/9: training")
    os.kill(sites[KILLED].process.pid, signal.SIGKILL)
    refuse_strangers(hospitals)
    restarted = Process(home, "join", "--config", hospitals.site(KILLED))
    started.append(restarted)

    assert coordinator.finish() == 0, coordinator.errors
    assert restarted.finish() == 0, restarted.errors
    assert sites["elm"].finish() == sites["yew"].finish() == 0
    printed = json.loads("\n".join(coordinator.lines))
    assert printed["rounds"] == printed["best_round"] == ROUNDS
    assert "Traceback" not in "\n".join(coordinator.errors + restarted.errors)

    rounds = json.loads((output / "log.json").read_text())["rounds"]
    took_part = [entry["sites"] for entry in rounds]
    assert took_part[0] == list(NAMES)
    assert took_part[1] == ["elm", "yew"]
    assert rounds[1]["lost"] == [KILLED]
    assert took_part[-1] == list(NAMES)

    agreed = f"{_agreed(hospitals)}/no validation"
    saved = checkpoint.load(output, agreed)
    model = build_network(load_run(hospitals.run, hospitals.members))
    found = flatten(saved.weights, shared_names(model))
    expected = in_one_process(hospitals, took_part)
    assert np.abs(found - flatten(weights_of(model), shared_names(model))).max() > 1e-2
    # Rounding to 2^-24 in every round; on one machine the two are equal to the bit.
    assert np.abs(found - expected).max() <= 1e-6

    left = [path for path in home.rglob("*") if path.is_file() and "matplotlib" not in str(path)]
    assert not [path for path in left if "flwr" in str(path) or "flower" in str(path)]


def _agreed(hospitals: Hospitals) -> str:
    run = load_run(hospitals.run, hospitals.members)
    return hashlib.sha256(agreement(hospitals.members, run)).hexdigest()
