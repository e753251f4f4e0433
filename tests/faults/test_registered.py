"""What vendors register with a crypto provider, up to its limits."""

from __future__ import annotations

import multiprocessing
import os
import signal
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from crypto_provider.artefacts import Artefacts
from radiopaque.config import MODEL_BYTES
from radiopaque.engine.artefact import ArtefactId, ArtefactKey
from radiopaque.errors import PlanError, ResourceError
from radiopaque.graph.plan import plan_digest
from radiopaque.prg import SecretKey
from radiopaque.wire.plans import encode_plan
from tests.e2e.networks import lungs
from tests.plans import product_plan

PLAN = encode_plan(lungs().plan)
KEY_B = bytes(range(32))


def artefact_key(artefact: bytes = bytes(16)) -> ArtefactKey:
    return ArtefactKey(ArtefactId(plan_digest(PLAN), artefact), SecretKey(KEY_B))


def killed(folder: Path) -> None:
    """A process of the crypto provider that is killed while it writes an artefact."""

    def fsync(fd: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    os.fsync = fsync
    Artefacts(folder, most=1, model_bytes=MODEL_BYTES).register("vendor", PLAN, artefact_key())


def test_what_a_killed_process_had_begun_to_write_is_no_model(tmp_path: Path) -> None:
    folder = tmp_path / "artefacts"
    artefacts = Artefacts(folder, most=1, model_bytes=MODEL_BYTES)
    process = multiprocessing.get_context("spawn").Process(target=killed, args=(folder,))
    process.start()
    process.join(20)
    assert process.exitcode == -signal.SIGKILL
    (left,) = folder.iterdir()
    assert KEY_B in left.read_bytes()
    # neither while another process goes on, nor after a new start, when it is gone
    artefacts.register("vendor", PLAN, artefact_key())
    Artefacts(folder, most=1, model_bytes=MODEL_BYTES)
    assert [path.name for path in folder.iterdir()] == [f"{bytes(16).hex()}.artefact"]
    with pytest.raises(ResourceError, match="its limit of 1 models"):
        artefacts.register("vendor", PLAN, artefact_key(bytes(range(16))))


def test_memory_is_not_taken_for_what_a_plan_asks_for(tmp_path: Path) -> None:
    plan = encode_plan(product_plan(1 << 14, 1 << 14))
    assert len(plan) < 100
    artefacts = Artefacts(tmp_path / "artefacts", most=1, model_bytes=MODEL_BYTES)
    tracemalloc.start()
    try:
        with pytest.raises(PlanError, match="the crypto provider, over its limit model_bytes of 3"):
            artefacts.register("vendor", plan, ArtefactKey.generate(plan_digest(plan)))
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()
    assert list((tmp_path / "artefacts").iterdir()) == []


def test_an_artefact_of_before_is_held_to_the_limit(tmp_path: Path) -> None:
    plan = encode_plan(product_plan(1 << 10, 1 << 10))
    key = ArtefactKey.generate(plan_digest(plan))
    before = Artefacts(tmp_path / "artefacts", most=1, model_bytes=MODEL_BYTES)
    before.register("vendor", plan, key)
    artefacts = Artefacts(tmp_path / "artefacts", most=1, model_bytes=16 << 20)
    with pytest.raises(PlanError, match="over its limit model_bytes of 16777215"):
        Artefacts(tmp_path / "artefacts", most=1, model_bytes=(16 << 20) - 1).maps(key.id.artefact)
    assert set(artefacts.maps(key.id.artefact)) == {1}


def test_masks_of_weights_are_kept_up_to_the_limit(tmp_path: Path) -> None:
    """8 MiB each, and as much again while they are loaded."""
    plan = encode_plan(product_plan(1 << 10, 1 << 10))
    artefacts = Artefacts(tmp_path / "artefacts", most=3, model_bytes=16 << 20)
    keys = [ArtefactKey.generate(plan_digest(plan)) for _ in range(3)]
    for key in keys:
        artefacts.register("vendor", plan, key)
    first, second, third = (key.id.artefact for key in keys)
    kept = [artefacts.maps(artefact) for artefact in (first, second)]
    assert artefacts.maps(first) is kept[0]
    artefacts.maps(third)
    assert artefacts.maps(first) is kept[0]
    assert artefacts.maps(second) is not kept[1]
