"""A party does not start where other users can read what it keeps."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from crypto_provider.service import CryptoProvider
from data_owner import Client
from model_owner.hosting import Hosted
from model_owner.service import ModelOwner
from radiopaque.certificates import Role, init_directory, load_identity
from radiopaque.config import MODEL_BYTES
from radiopaque.errors import ConfigError, StoreError
from tests.e2e.networks import lungs
from tests.e2e.parties import Deployment
from tests.faults.inside import Inside

ASKED = """
import resource, sys
from radiopaque.cli.main import main
asked = []
resource.setrlimit = lambda kind, limits: asked.append((kind, limits))
try:
    main(sys.argv[1:])
except SystemExit:
    print((resource.RLIMIT_CORE, (0, 0)) in asked)
"""
"""Whether a command asks for no core files. The limit itself may be so already: it is inherited."""


def test_every_file_of_every_store_is_looked_at(tmp_path: Path) -> None:
    """Ledgers, keys, prepared material, masked weights, audit logs: with a session prepared."""
    with Inside(tmp_path, lungs()) as inside:
        config = inside.clinic()
        with Client.from_config(config) as client:
            client.prepare()
        party = inside.hosting
        starts: dict[str, Callable[[], object]] = {
            "crypto-provider": lambda: CryptoProvider(
                tmp_path / "crypto-provider",
                most_models=1,
                model_bytes=MODEL_BYTES,
                most_reserved=1,
                most_reserved_per_clinic=1,
                reservation_seconds=1.0,
                concurrent_deals=1,
            ),
            "model-owner": lambda: ModelOwner(
                tmp_path / "model-owner", party._hosted, party._dealer, party._admission.limits
            ),
            "clinic": lambda: Client.from_config(config),
        }
        looked_at = set()
        for store, start in starts.items():
            paths = sorted((tmp_path / store).rglob("*"))
            for path in paths:
                private = path.stat().st_mode & 0o777
                assert private & 0o077 == 0, path
                path.chmod(private | 0o040)
                with pytest.raises(StoreError, match=rf"run: chmod [67]00 {path}$"):
                    start()
                path.chmod(private)
                looked_at.add(path.suffix or path.name)
    assert {".sqlite", ".artefact", ".correction", ".offline", ".masked", "head"} <= looked_at


def test_weights_that_others_may_read_are_not_hosted(tmp_path: Path) -> None:
    with Inside(tmp_path, lungs()):
        path = tmp_path / "it" / "weights.bin"
        assert path.stat().st_mode & 0o777 == 0o600
        path.chmod(0o644)
        with pytest.raises(StoreError, match=f"run: chmod 600 {path}"):
            Hosted.load([(tmp_path / "it", None, None)])


def test_a_private_key_of_another_user_stops_the_party(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = init_directory(tmp_path)[Role.DATA_OWNER]
    load_identity(files.certificate, files.key, files.ca, Role.DATA_OWNER)
    owner = files.key.stat().st_uid
    if owner == 0:
        os.chown(files.key, 4321, -1)
        owner = 4321
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    with pytest.raises(ConfigError, match=f"belongs to the user {owner}.*chown {owner + 1}"):
        load_identity(files.certificate, files.key, files.ca, Role.DATA_OWNER)


def test_parties_leave_no_core_file(deployment: Deployment) -> None:
    for party in (deployment.owner, deployment.provider):
        process = party._started()
        assert resource.prlimit(process.pid, resource.RLIMIT_CORE) == (0, 0)


@pytest.mark.parametrize("command", [*map(str, Role), "compile", "calibrate", "certs"])
def test_a_command_leaves_no_core_file(command: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ASKED, command, "--help"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout.endswith("True\n"), done.stderr
