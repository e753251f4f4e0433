"""Compiled models on disk; what is wrong with their bytes is in ``tests/fuzz``."""

from __future__ import annotations

from pathlib import Path

from radiopaque.engine.weights_file import PLAN_FILE, WEIGHTS_FILE, write_compiled
from tests.e2e.networks import lungs


def test_what_a_killed_compilation_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / f".{WEIGHTS_FILE}.{bytes(8).hex()}").write_bytes(b"weights and key_B")
    network = lungs()
    write_compiled(tmp_path, network.plan, network.weights)
    assert {path.name for path in tmp_path.iterdir()} == {WEIGHTS_FILE, PLAN_FILE}
