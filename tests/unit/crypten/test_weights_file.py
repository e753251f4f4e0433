"""The model owner's private file: whole and belonging to its plan, or not at all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from radiopaque.engine.crypten.weights_file import StoredCrypten, read_compiled, write_compiled
from radiopaque.errors import PlanDigestError, PlanError, WeightsFileError
from tests.unit.crypten.test_plan import OPERATIONS, PLAN, changed

CONSTANTS = {1: np.arange(18, dtype=np.float32).reshape(OPERATIONS[1].shape)}


@pytest.fixture
def stored(tmp_path: Path) -> StoredCrypten:
    return write_compiled(tmp_path, PLAN, CONSTANTS)


def test_what_is_read_is_what_was_written(stored: StoredCrypten, tmp_path: Path) -> None:
    again = read_compiled(tmp_path)
    assert (again.plan, again.id, again.plan_bytes) == (stored.plan, stored.id, stored.plan_bytes)
    assert len(again.constants) == 1
    assert (again.constants[0] == CONSTANTS[1]).all()
    assert again.key.key_b.reveal() == bytes(32)
    assert (tmp_path / "weights.bin").stat().st_mode & 0o777 == 0o600


def test_every_compilation_is_another_artefact(stored: StoredCrypten, tmp_path: Path) -> None:
    assert write_compiled(tmp_path, PLAN, CONSTANTS).id != stored.id


def test_what_a_killed_compilation_left_is_removed(tmp_path: Path) -> None:
    left = tmp_path / f".weights.bin.{bytes(8).hex()}"
    left.write_bytes(b"weights")
    write_compiled(tmp_path, PLAN, CONSTANTS)
    assert not left.exists()


@pytest.mark.parametrize("at", [0, 20, 45, 60, -1])
def test_damage_is_found(stored: StoredCrypten, tmp_path: Path, at: int) -> None:
    path = tmp_path / "weights.bin"
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
    with pytest.raises(WeightsFileError):
        read_compiled(tmp_path)


@pytest.mark.parametrize("size", [0, 8, 100])
def test_a_cut_file_is_refused(stored: StoredCrypten, tmp_path: Path, size: int) -> None:
    path = tmp_path / "weights.bin"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(WeightsFileError):
        read_compiled(tmp_path)


def test_weights_of_another_plan_are_refused(stored: StoredCrypten, tmp_path: Path) -> None:
    other = write_compiled(tmp_path / "other", changed(3, reals=(0.0, 1.0)), CONSTANTS)
    (tmp_path / "plan.pb").write_bytes(other.plan_bytes)
    with pytest.raises(PlanDigestError):
        read_compiled(tmp_path)
    (tmp_path / "plan.pb").write_bytes(b"\x08\x04")
    with pytest.raises(PlanError):
        read_compiled(tmp_path)
