"""The parties as processes: servers on free loopback ports, clinics through the command line.

Everything a deployment owns lies in one folder: certificates, compiled models, stores, logs. Ports
stay the same over a restart. Leaving the ``with`` block ends every process.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from radiopaque.certificates import CertificateFiles, Identity, Role, issue, load_identity
from radiopaque.certificates import init_directory as make_certificates
from radiopaque.engine.weights_file import CompiledModel, write_compiled
from tests.e2e.networks import Network

START_SECONDS = 180.0
STOP_SECONDS = 15.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def tls_table(files: CertificateFiles) -> str:
    return f'[tls]\ncertificate = "{files.certificate}"\nkey = "{files.key}"\nca = "{files.ca}"\n'


def radiopaque(*arguments: object, timeout: float = 60.0) -> subprocess.CompletedProcess[str]:
    """Run the command and wait for it."""
    return subprocess.run(
        [sys.executable, "-m", "radiopaque", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


class Serving:
    """One serving party as a process of its own."""

    def __init__(self, role: Role, folder: Path, files: CertificateFiles, more: str) -> None:
        self.role = role
        self.port = free_port()
        self.store = folder / str(role)
        self.config = folder / f"{role}.toml"
        self.log = folder / f"{role}.log"
        self._head = (
            f'listen = "127.0.0.1:{self.port}"\nstore = "{self.store}"\ngrace_seconds = 2.0\n'
        )
        self._tail = tls_table(files) + more
        self.write_config("")
        self.starts = 0
        self._process: subprocess.Popen[str] | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def write_config(self, limits: str) -> None:
        """The configuration file, with ``limits`` as its table of that name."""
        table = f"[limits]\n{limits}\n" if limits else ""
        self.config.write_text(self._head + self._tail + table)

    def start(self) -> None:
        """Start the process; :meth:`wait` returns when it listens."""
        self.starts += 1
        with self.log.open("a") as log:
            self._process = subprocess.Popen(
                [*self._command(), "--json"], stdout=subprocess.PIPE, stderr=log, text=True
            )

    def wait(self) -> None:
        """Return when the server listens; raise where it ends instead."""
        process = self._started()
        assert process.stdout is not None
        deadline = time.monotonic() + START_SECONDS
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            while time.monotonic() < deadline:
                if selector.select(timeout=0.1) and (line := process.stdout.readline()):
                    assert json.loads(line)["address"] == self.address
                    return
                if process.poll() is not None:
                    break
        raise RuntimeError(f"the {self.role} did not start: {self.log.read_text()[-3000:]}")

    def kill(self) -> None:
        """SIGKILL, as by a loss of power of the process."""
        process = self._started()
        process.kill()
        self._reap(process)

    def stop(self) -> int:
        """SIGTERM; returns the exit code."""
        process = self._started()
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        finally:
            process.kill()
            self._reap(process)
        return process.returncode

    def restart(self) -> None:
        """Start again after :meth:`kill` or :meth:`stop`."""
        self.start()
        self.wait()

    def pause(self) -> None:
        """The process gets no more time until :meth:`resume`, or is killed."""
        self._started().send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._started().send_signal(signal.SIGCONT)

    def sessions(self) -> dict[bytes, tuple[str, bool]]:
        """What the ledger on disk says now: state, and whether a secret is there."""
        return ledger_on_disk(self.store)

    def _command(self) -> list[str]:
        return [
            sys.executable,
            "-m",
            "radiopaque",
            str(self.role),
            "serve",
            "--config",
            str(self.config),
        ]

    def _started(self) -> subprocess.Popen[str]:
        if self._process is None:
            raise RuntimeError(f"the {self.role} was not started")
        return self._process

    def _reap(self, process: subprocess.Popen[str]) -> None:
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def ledger_on_disk(store: Path) -> dict[bytes, tuple[str, bool]]:
    """By session: the state, and whether a secret is stored, as another process reads the file."""
    path = store / "sessions.sqlite"
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=10)) as connection:
        rows = connection.execute("SELECT id, state, secret IS NOT NULL FROM session").fetchall()
    return {row[0]: (row[1], bool(row[2])) for row in rows}


@dataclass(frozen=True)
class Clinic:
    """One data owner: its certificate, its folder and a configuration for one model."""

    name: str
    config: Path
    store: Path
    files: CertificateFiles

    def identity(self) -> Identity:
        files = self.files
        return load_identity(files.certificate, files.key, files.ca, Role.DATA_OWNER)

    def command(self, name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
        """``radiopaque data-owner NAME`` with this clinic's configuration, as a process."""
        return radiopaque("data-owner", name, *arguments, "--config", self.config)

    def json(self, name: str, *arguments: object) -> dict[str, Any]:
        """The JSON object that a command prints."""
        done = self.command(name, *arguments, "--json")
        assert done.returncode == 0, done.stderr
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    def sessions(self) -> dict[bytes, tuple[str, bool]]:
        return ledger_on_disk(self.store)


class Deployment:
    """A crypto provider and a model owner as processes, and any number of clinics."""

    def __init__(
        self, folder: Path, networks: Mapping[str, Network], compiled: Sequence[Path] = ()
    ) -> None:
        """``networks``: what is hosted, by the name of its compiled folder.

        ``compiled``: folders that are hosted besides, of either engine.
        """
        self.folder = folder
        self.networks = dict(networks)
        self.certificates = make_certificates(folder / "certificates")
        self.compiled: dict[str, CompiledModel] = {
            name: write_compiled(folder / "compiled" / name, network.plan, network.weights)
            for name, network in networks.items()
        }
        self.provider = Serving(
            Role.CRYPTO_PROVIDER, folder, self.certificates[Role.CRYPTO_PROVIDER], ""
        )
        self._peer = f'[crypto_provider]\naddress = "{self.provider.address}"\n'
        hosted = [*(folder / "compiled" / name for name in networks), *compiled]
        models = "".join(f'[[models]]\npath = "{path}"\n' for path in hosted)
        self.owner = Serving(
            Role.MODEL_OWNER, folder, self.certificates[Role.MODEL_OWNER], self._peer + models
        )
        self.settled: list[int] = []
        """How often the servers had been started when they were last seen to work together."""
        (folder / "clinics").mkdir()

    def __enter__(self) -> Deployment:
        self.ensure_running()
        return self

    def __exit__(self, *_: object) -> None:
        for party in (self.owner, self.provider):
            if party.running:
                party.kill()

    def ensure_running(self) -> None:
        """Start what is not running, both at the same time."""
        down = [party for party in (self.provider, self.owner) if not party.running]
        for party in down:
            party.start()
        for party in down:
            party.wait()

    def identity(self, role: Role) -> Identity:
        files = self.certificates[role]
        return load_identity(files.certificate, files.key, files.ca, role)

    def clinic(
        self,
        name: str,
        model: str = "lungs",
        version: str | None = None,
        deadline_seconds: float = 30.0,
    ) -> Clinic:
        """A clinic of this name, with a certificate of its own and an empty store."""
        files = issue(
            self.folder / "certificates", Role.DATA_OWNER, name, output=self.folder / "clinics"
        )
        store = self.folder / "clinics" / f"{name}-store"
        config = self.folder / "clinics" / f"{name}.toml"
        config.write_text(self.clinic_config(store, files, model, version, deadline_seconds))
        return Clinic(name, config, store, files)

    def clinic_config(
        self,
        store: Path,
        files: CertificateFiles,
        model: str = "lungs",
        version: str | None = None,
        deadline_seconds: float = 30.0,
    ) -> str:
        chosen = f'version = "{version}"\n' if version else ""
        return (
            f'store = "{store}"\nmodel = "{model}"\n{chosen}'
            f"deadline_seconds = {deadline_seconds:.6f}\n"
            + tls_table(files)
            + f'[model_owner]\naddress = "{self.owner.address}"\n'
            + self._peer
        )

    def material(self, *sessions: bytes | str) -> list[Path]:
        """The model owner's files of these sessions, or of all."""
        names = {one if isinstance(one, str) else one.hex() for one in sessions}
        found = sorted((self.owner.store / "material").iterdir())
        return [path for path in found if not names or path.stem in names]

    def assert_used_up(self, *sessions: bytes | str) -> None:
        """Sessions are burnt at both servers, without a secret, and their files are gone."""
        for party in (self.owner, self.provider):
            self.assert_burnt(party, *sessions)

    def assert_burnt(self, party: Any, *sessions: bytes | str) -> None:
        """Sessions are burnt at one server, without a secret; no file of them is left."""
        ids = [bytes.fromhex(one) if isinstance(one, str) else one for one in sessions]
        until(lambda: all(party.sessions()[one][0] == "BURNT" for one in ids))
        assert not any(party.sessions()[one][1] for one in ids)
        until(lambda: not self.material(*ids))

    def logs(self) -> str:
        return self.provider.log.read_text() + self.owner.log.read_text()


@contextmanager
def process(code: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """A Python process that runs ``code``; ended with the block."""
    running = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    try:
        yield running
    finally:
        running.kill()
        running.communicate()


def contents(folders: Sequence[Path]) -> Iterator[tuple[Path, bytes]]:
    """Every file below the folders with its bytes."""
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                yield path, path.read_bytes()


def until(condition: Any, seconds: float = 30.0) -> None:
    """Wait for a condition that another process brings about."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds:g} s")
        time.sleep(0.01)
