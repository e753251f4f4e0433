"""A budget stops a site, survives the process, and cannot be talked into more."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("opacus")

from training.accounting import Steps, prv_epsilon, rdp_epsilon
from training.budget import Allowance, Budget
from training.errors import BudgetSpentError, SettingsError

# Renyi accounting, because it is instant; what is tested here does not depend on the accountant.
ALLOWANCE = Allowance(2.0, 1e-5, "rdp")
STEP = Steps(2.0, 0.1, 1)
REPOSITORY = Path(__file__).parents[3]


def spend_all(budget: Budget) -> int:
    """Charge single steps until the budget refuses; return how many it took."""
    for taken in range(10_000):
        try:
            budget.charge(STEP)
        except BudgetSpentError:
            return taken
    raise AssertionError("the budget never ends")


def test_a_budget_takes_steps_until_the_next_would_exceed_it(tmp_path: Path) -> None:
    budget = Budget("a", ALLOWANCE, tmp_path / "a.json")
    promised = budget.remaining(2.0, 0.1, 10_000)
    taken = spend_all(budget)
    assert taken == promised > 10
    assert rdp_epsilon((Steps(2.0, 0.1, taken),), 1e-5) <= 2.0
    assert rdp_epsilon((Steps(2.0, 0.1, taken + 1),), 1e-5) > 2.0
    assert budget.history == (Steps(2.0, 0.1, taken),)
    assert budget.remaining(2.0, 0.1, 10_000) == 0


def test_a_spent_budget_is_spent_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.json"
    before = Budget("a", ALLOWANCE, path)
    taken = spend_all(before)
    after = Budget("a", ALLOWANCE, path)
    assert after.spent() == before.spent()
    assert after.spent().steps == taken
    with pytest.raises(BudgetSpentError, match=r"site 'a' has spent epsilon 1\.9.* of 2"):
        after.charge(STEP)
    assert after.spent().steps == taken


def test_a_killed_process_has_entered_the_step_it_was_in(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    script = (
        "import os, sys; from pathlib import Path\n"
        "from training.accounting import Steps; from training.budget import Allowance, Budget\n"
        "budget = Budget('a', Allowance(2.0, 1e-5, 'rdp'), Path(sys.argv[1]))\n"
        "budget.charge(Steps(2.0, 0.1, 7)); os.kill(os.getpid(), 9)\n"
    )
    ended = subprocess.run([sys.executable, "-c", script, str(path)], cwd=REPOSITORY, check=False)
    assert ended.returncode == -9
    assert Budget("a", ALLOWANCE, path).history == (Steps(2.0, 0.1, 7),)


def test_two_processes_share_one_budget(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    first, second = Budget("a", ALLOWANCE, path), Budget("a", ALLOWANCE, path)
    first.charge(Steps(2.0, 0.1, 3))
    second.charge(Steps(4.0, 0.2, 2))
    second.charge(Steps(2.0, 0.1, 1))
    expected = (Steps(2.0, 0.1, 4), Steps(4.0, 0.2, 2))
    assert Budget("a", ALLOWANCE, path).history == expected


def test_both_accountants_are_reported_and_the_chosen_one_decides(tmp_path: Path) -> None:
    by_rdp, by_prv = (Budget("a", Allowance(2.0, 1e-5, name), None) for name in ("rdp", "prv"))
    spent = by_rdp.charge(Steps(2.0, 0.1, 20))
    assert spent.epsilon_rdp == rdp_epsilon((Steps(2.0, 0.1, 20),), 1e-5)
    assert spent.epsilon_prv == prv_epsilon((Steps(2.0, 0.1, 20),), 1e-5)
    # Tight accounting finds room where the other one finds none.
    steps = Steps(2.0, 0.1, by_rdp.remaining(2.0, 0.1, 500) + 21)
    assert not Budget("a", Allowance(2.0, 1e-5, "rdp"), None).affords(steps)
    assert by_prv.affords(steps)


def test_the_file_is_private_and_a_step_that_is_refused_leaves_it_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    budget = Budget("a", ALLOWANCE, path)
    budget.charge(STEP)
    assert path.stat().st_mode & 0o777 == 0o600
    content = path.read_bytes()
    with pytest.raises(BudgetSpentError):
        budget.charge(Steps(0.5, 0.5, 100))
    assert path.read_bytes() == content
    assert sorted(item.name for item in tmp_path.iterdir()) == ["a.json", "a.json.lock"]


def test_no_noise_is_never_affordable() -> None:
    with pytest.raises(BudgetSpentError):
        Budget("a", Allowance(1e9, 1e-5, "rdp"), None).charge(Steps(0.0, 0.1, 1))


@pytest.mark.parametrize(
    ("site", "allowance"),
    [
        ("b", ALLOWANCE),
        ("a", Allowance(8.0, 1e-5, "rdp")),
        ("a", Allowance(2.0, 1e-4, "rdp")),
        ("a", Allowance(2.0, 1e-5, "prv")),
    ],
)
def test_another_site_or_allowance_is_refused(
    tmp_path: Path, site: str, allowance: Allowance
) -> None:
    path = tmp_path / "a.json"
    Budget("a", ALLOWANCE, path).charge(STEP)
    with pytest.raises(SettingsError, match=r"a\.json"):
        Budget(site, allowance, path)


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: "",
        lambda content: "[]",
        lambda content: json.dumps({**content, "steps": [{"count": 1}]}),
        lambda content: json.dumps({**content, "steps": [{**content["steps"][0], "count": -5}]}),
        lambda content: json.dumps({key: content[key] for key in ("version", "site")}),
    ],
)
def test_a_damaged_file_is_not_taken_for_an_empty_budget(tmp_path: Path, damage: object) -> None:
    path = tmp_path / "a.json"
    Budget("a", ALLOWANCE, path).charge(STEP)
    assert callable(damage)
    path.write_text(damage(json.loads(path.read_text())))
    with pytest.raises(SettingsError):
        Budget("a", ALLOWANCE, path)


def test_a_budget_that_cannot_be_written_stops_training(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    budget = Budget("a", ALLOWANCE, tmp_path / "file" / "a.json")
    with pytest.raises(SettingsError, match="not private"):
        budget.charge(STEP)
    assert budget.history == ()


@pytest.mark.parametrize(("epsilon", "delta"), [(0.0, 1e-5), (float("nan"), 1e-5), (1.0, 1.0)])
def test_meaningless_allowances_are_refused(epsilon: float, delta: float) -> None:
    with pytest.raises(SettingsError):
        Allowance(epsilon, delta)
