"""The three parties as processes with mutual TLS, a relay in front of each link where asked for."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.case import Case
from benchmarks.errors import BenchmarkError
from benchmarks.record import Record
from benchmarks.relay import relayed
from radiopaque.certificates import Role, init_directory
from radiopaque.cli.parties import Parties, peer_table
from radiopaque.gates import GateCost

_LIMITS = "[limits]\nlongest_call_seconds = 3600.0\nconcurrent_calls = 128\ncalls_per_peer = 128\n"
_DISK_BYTES = 100_000_000_000
_MEMORY = "model_bytes = 1_000_000_000_000\n"
"""Whether a model fits the machine is for whoever measures it to know."""
_STOP_SECONDS = 10.0


class ClinicProcess:
    """The data owner (:mod:`benchmarks.clinic`), spoken to line by line."""

    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        self.pid = process.pid
        self._process = process
        self._log = log

    def ask(self, **command: Any) -> dict[str, Any]:
        """One command, its answer. Raises BenchmarkError with the end of the log."""
        stdin, stdout = self._process.stdin, self._process.stdout
        if stdin is None or stdout is None:
            raise ValueError("the process was started without pipes")
        try:
            stdin.write(json.dumps(command) + "\n")
            stdin.flush()
            line = stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise BenchmarkError(f"the data owner failed: {self._log.read_text()[-2000:]}")
        answer: dict[str, Any] = json.loads(line)
        return answer


@dataclass(frozen=True)
class Deployment:
    """Three running parties."""

    folder: Path
    clinic: ClinicProcess
    processes: dict[Role, int]
    """Process numbers."""
    start_seconds: float
    """From nothing to two listening servers, their kernels loaded."""

    def material_bytes(self) -> int:
        """Disk space of all prepared sessions at the model owner."""
        store = self.folder / str(Role.MODEL_OWNER) / "material"
        return sum(path.stat().st_size for path in store.iterdir())


@dataclass(frozen=True)
class Hosted:
    """A compiled model as the model owner hosts it, and what is known of it before it runs.

    ``gates`` are the names of what messages are numbered by; ``timed`` where the parties record how
    long each takes.
    """

    name: str
    folder: Path
    engine: str
    predicted: GateCost
    gates: Sequence[str] = field(repr=False)
    timed: bool
    known: Record


@contextmanager
def deployed(folder: Path, hosted: Hosted, case: Case) -> Iterator[Deployment]:
    """Start everything in ``folder``; spans of all parties lie there when the block is over.

    Preprocessed tensors are read from images.npy there.
    """
    certificates = init_directory(folder / "certificates")
    workers = case.concurrency
    # what computes in torch or numpy's own loops takes its number of threads from here
    threads = f"OMP_NUM_THREADS={case.threads}"
    command = ("env", threads, sys.executable, "-m", "benchmarks.party", str(folder))
    with ExitStack() as stack:
        # relays end after the parties that talk through them
        links = stack.enter_context(ExitStack())
        parties = stack.enter_context(Parties(folder, certificates, command))

        def link(role: Role, address: str) -> str:
            return peer_table(role, links.enter_context(relayed(address, case.network)))

        began = time.perf_counter()
        means = f'device = "{case.device}"\nthreads = {case.threads}\n'
        # one place is kept for callers that there are not
        deals = f"concurrent_deals = {max(2, workers) + 1}\n{_MEMORY}"
        provider = parties.serve(Role.CRYPTO_PROVIDER, _LIMITS + deals, means)
        more = f"concurrent_inferences = {max(4, workers) + 1}\nmaterial_bytes = {_DISK_BYTES}\n"
        models = f'[[models]]\npath = "{hosted.folder}"\n'
        owner = parties.serve(
            Role.MODEL_OWNER,
            link(Role.CRYPTO_PROVIDER, provider) + _LIMITS + more + models,
            means,
        )
        seconds = time.perf_counter() - began
        config = parties.configure(
            Role.DATA_OWNER,
            f'model = "{hosted.name}"\nengine = "{hosted.engine}"\n'
            f"deadline_seconds = 3600.0\n{_MEMORY}{means}",
            link(Role.MODEL_OWNER, owner) + link(Role.CRYPTO_PROVIDER, provider),
        )
        processes = {role: process.pid for role, process in parties.processes.items()}
        clinic = stack.enter_context(_clinic(folder, config, threads, processes))
        processes[Role.DATA_OWNER] = clinic.pid
        yield Deployment(folder, clinic, processes, seconds)
        clinic.ask(do="leave")


@contextmanager
def _clinic(
    folder: Path, config: Path, threads: str, processes: dict[Role, int]
) -> Iterator[ClinicProcess]:
    log = folder / f"{Role.DATA_OWNER}.log"
    command = ["env", threads, sys.executable, "-m", "benchmarks.clinic", "--config", str(config)]
    command += ["--folder", str(folder)]
    command += ["--processes", json.dumps(processes)]
    with (
        log.open("w") as errors,
        subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            start_new_session=True,
        ) as process,
    ):
        try:
            yield ClinicProcess(process, log)
        finally:
            # the process ends when its input does, unless it is in the middle of something
            if process.stdin is not None:
                with suppress(BrokenPipeError):
                    process.stdin.close()
            try:
                process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
