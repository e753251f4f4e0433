"""Serving parties as processes on free loopback ports: what the demo and the benchmarks start.

Everything of a party lies in one folder: its configuration, store and log.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from radiopaque.certificates import CertificateFiles, Role
from radiopaque.errors import PeerUnavailableError

_START_SECONDS = 180.0
_STOP_SECONDS = 10.0
COMMAND = (sys.executable, "-P", "-m", "radiopaque")
"""Without the current folder on the path: what lies there is not to be imported."""


class Parties:
    """Processes that end with the block, however it ends.

    ``command`` takes the words of ``radiopaque``; a profiler puts a command of its own there.
    """

    def __init__(
        self,
        folder: Path,
        certificates: Mapping[Role, CertificateFiles],
        command: Sequence[str] = COMMAND,
    ) -> None:
        self.processes: dict[Role, subprocess.Popen[str]] = {}
        self._folder = folder
        self._certificates = certificates
        self._command = command

    def __enter__(self) -> Parties:
        return self

    def __exit__(self, *_: object) -> None:
        """End every process, politely at first."""
        for process in self.processes.values():
            with suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
        for process in self.processes.values():
            try:
                process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            if process.stdout is not None:
                process.stdout.close()

    def serve(self, role: Role, tables: str = "", keys: str = "") -> str:
        """Start a serving party, with more tables and keys in its configuration.

        Returns its address.

        Raises PeerUnavailableError with the end of its log.
        """
        config = self.configure(role, f'listen = "127.0.0.1:0"\n{keys}', tables)
        path = self._folder / f"{role}.log"
        with path.open("w") as log:
            process = subprocess.Popen(
                [*self._command, str(role), "serve", "--config", str(config), "--json"],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
            )
        self.processes[role] = process
        return _address(process, role, path)

    def configure(self, role: Role, keys: str, tables: str) -> Path:
        """Write a party's configuration: ``keys`` of no table, and tables besides [tls]."""
        files = self._certificates[role]
        path = self._folder / f"{role}.toml"
        path.write_text(
            f'store = "{self._folder / str(role)}"\n{keys}'
            f'[tls]\ncertificate = "{files.certificate}"\nkey = "{files.key}"\nca = "{files.ca}"\n'
            f"{tables}"
        )
        return path


def peer_table(role: Role, address: str) -> str:
    """The table that names a peer in a configuration."""
    return f'[{str(role).replace("-", "_")}]\naddress = "{address}"\n'


def _address(process: subprocess.Popen[str], role: Role, log: Path) -> str:
    if process.stdout is None:
        raise ValueError("the process was started without a pipe")
    deadline = time.monotonic() + _START_SECONDS
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while time.monotonic() < deadline and process.poll() is None:
            if selector.select(timeout=0.2):
                line = process.stdout.readline()
                if line:
                    return str(json.loads(line)["address"])
    raise PeerUnavailableError(f"the {role} did not start: {log.read_text()[-2000:]}")
