"""What vendors register with a crypto provider, up to its limits."""

from __future__ import annotations

import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from crypto_provider.artefacts import Artefacts
from radiopaque.engine.artefact import ArtefactId, ArtefactKey
from radiopaque.errors import ResourceError
from radiopaque.graph.plan import plan_digest
from radiopaque.prg import SecretKey
from radiopaque.wire.plans import encode_plan
from tests.e2e.networks import lungs

PLAN = encode_plan(lungs().plan)
KEY_B = bytes(range(32))


def artefact_key(artefact: bytes = bytes(16)) -> ArtefactKey:
    return ArtefactKey(ArtefactId(plan_digest(PLAN), artefact), SecretKey(KEY_B))


def killed(folder: Path) -> None:
    """A process of the crypto provider that is killed while it writes an artefact."""

    def fsync(fd: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    os.fsync = fsync
    Artefacts(folder, most=1).register("vendor", PLAN, artefact_key())


def test_what_a_killed_process_had_begun_to_write_is_no_model(tmp_path: Path) -> None:
    folder = tmp_path / "artefacts"
    artefacts = Artefacts(folder, most=1)
    process = multiprocessing.get_context("spawn").Process(target=killed, args=(folder,))
    process.start()
    process.join(20)
    assert process.exitcode == -signal.SIGKILL
    (left,) = folder.iterdir()
    assert KEY_B in left.read_bytes()
    # neither while another process goes on, nor after a new start, when it is gone
    artefacts.register("vendor", PLAN, artefact_key())
    Artefacts(folder, most=1)
    assert [path.name for path in folder.iterdir()] == [f"{bytes(16).hex()}.artefact"]
    with pytest.raises(ResourceError, match="its limit of 1 models"):
        artefacts.register("vendor", PLAN, artefact_key(bytes(range(16))))
