"""A hundred clinics, each a process, against one model owner that hosts a shipped network.

Each has a certificate, a store and connections of its own and runs `radiopaque data-owner submit`,
which tries again what was refused. As many run side by side as the machine has memory for; another
begins when one is done. The servers have their default limits.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from radiopaque.cli.fidelity import Logits, plaintext_session
from radiopaque.cli.models import find_model, tensors
from radiopaque.engine.weights_file import write_compiled
from radiopaque.graph.compile import compile_model
from tests.e2e.parties import Clinic, Deployment, Serving, until
from tests.soak.test_load import check_memory
from tests.soak.usage import MIB, Usage

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "models" / "pneumonia-resnet18-112"
IMAGES = sorted((ROOT / "samples" / "labelled").rglob("*.jpeg"))
CLINICS = 100
CLINIC_BYTES = 300 * MIB
"""What one takes at most."""
CEILING = 256 * MIB
"""What a server may take more than after the first clinic's session."""
SECONDS = 1200.0
"""A clinic that was not answered by then was forgotten."""
LOGIT_ERROR = 0.05
RETRY = "[retry]\nattempts = 100\nlongest_seconds = 4.0\n"


@dataclass
class Visit:
    """One clinic's process: what it is to submit, what is right, and what came of it."""

    clinic: Clinic
    images: Sequence[Path]
    logits: Sequence[Logits]
    peak_bytes: int = 0

    def run(self) -> str:
        """``answered``, ``wrong``, ``forgotten``, or how the process failed."""
        command = [sys.executable, "-m", "radiopaque", "data-owner", "submit", "--json"]
        command += ["--config", str(self.clinic.config), *map(str, self.images)]
        pipe = subprocess.PIPE
        until = time.monotonic() + SECONDS
        with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) as process:
            while time.monotonic() < until:
                try:
                    said, complained = process.communicate(timeout=0.5)
                except subprocess.TimeoutExpired:
                    with suppress(KeyError):  # it has ended meanwhile
                        self.peak_bytes = max(self.peak_bytes, Usage.of(process.pid).peak_bytes)
                    continue
                if process.returncode:
                    return f"exit {process.returncode}: {complained[-300:]}"
                return "answered" if self._right(json.loads(said)) else "wrong"
            process.kill()
        return "forgotten"

    def _right(self, answer: dict[str, Any]) -> bool:
        found = np.array([result["logits"] for result in answer["results"]])
        return bool(np.abs(found - np.array(self.logits)).max() <= LOGIT_ERROR)


def side_by_side() -> int:
    """How many fit into two thirds of the memory that is free."""
    found = re.search(r"^MemAvailable:\s+(\d+)", Path("/proc/meminfo").read_text(), re.MULTILINE)
    assert found is not None
    return max(2, min(CLINICS, (int(found[1]) << 10) * 2 // 3 // CLINIC_BYTES))


def refusals(party: Serving) -> int:
    lines = map(json.loads, party.log.read_text().splitlines())
    return sum(
        line["event"] == "call refused" and line["error"].startswith("ResourceError")
        for line in lines
    )


@pytest.mark.soak
@pytest.mark.timeout(2 * SECONDS)
def test_a_hundred_clinics_as_processes(tmp_path: Path) -> None:
    source = find_model(MODEL)
    compiled = compile_model(source.onnx, manifest=source.manifest)
    write_compiled(tmp_path / "compiled", compiled.plan, compiled.weights)
    plaintext = plaintext_session(source.onnx)
    logits = [plaintext(one).reshape(-1) for one in tensors(IMAGES, source.preprocessing)]
    deployment = Deployment(tmp_path / "load", {}, [tmp_path / "compiled"])

    def visit(name: str, *chosen: int) -> Visit:
        clinic = deployment.clinic(name, compiled.plan.name, deadline_seconds=120.0)
        clinic.config.write_text(clinic.config.read_text() + RETRY)
        return Visit(clinic, [IMAGES[one] for one in chosen], [logits[one] for one in chosen])

    try:
        with deployment:
            assert visit("first", 0).run() == "answered"
            idle = {party: Usage.of(party) for party in (deployment.owner, deployment.provider)}
            visits = [
                visit(f"clinic-{number}", number % len(IMAGES), (number + 1) % len(IMAGES))
                for number in range(CLINICS)
            ]
            workers = side_by_side()
            began = time.monotonic()
            with ThreadPoolExecutor(workers) as pool:
                outcomes = Counter(pool.map(Visit.run, visits))
            seconds = time.monotonic() - began
            refused = {party.role.text: refusals(party) for party in idle}
            largest = max(visit.peak_bytes for visit in visits) / MIB
            print(f"{CLINICS} clinics, {workers} side by side, each {largest:.0f} MiB at most")
            print(f"{dict(outcomes)}, two images each, refused {refused}, {seconds:.0f} s")
            for party, before in idle.items():
                check_memory(party, before, CEILING)
            until(lambda: not deployment.material())
    finally:
        shutil.rmtree(tmp_path / "load" / "clinics", ignore_errors=True)
    assert outcomes == {"answered": CLINICS}
    assert sum(refused.values()) > 0
