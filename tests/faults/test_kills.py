"""Kill -9 of any party at any step: no mask is used twice, and the service answers."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.kills import Soak

KILLS = 12
SOAK = [*range(100, 120)]


def run(folder: Path, seed: int, kills: int) -> None:
    soak = Soak(folder, seed)
    soak.run(kills)
    served = len(list(soak.answers.glob("*[0-9].npy")))
    each = ", ".join(f"{role} {count}" for role, count in sorted(soak.kills.items()))
    print(f"seed {seed}: {sum(soak.kills.values())} kills ({each}), {served} results of ")
    print(f"{soak.inferences} asked for, {len(soak.sent())} frames")


def test_a_few_kills(tmp_path: Path) -> None:
    run(tmp_path / "soak", 1, 4)


@pytest.mark.soak
@pytest.mark.parametrize("seed", SOAK)
def test_many_kills(tmp_path: Path, seed: int) -> None:
    run(tmp_path / "soak", seed, KILLS)
