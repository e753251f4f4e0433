"""Runs of sites with privacy budgets."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("opacus")

import torch

from tests.unit.training.pictures import private_settings, read, settings_of
from training import federated
from training.accounting import Steps, rdp_epsilon
from training.errors import (
    BudgetSpentError,
    SettingsError,
)

torch.set_num_threads(1)


def test_private_sites_report_and_keep_their_budgets(folder: Path, tmp_path: Path) -> None:
    settings = private_settings(
        tmp_path / "budgets",
        privacy={"sites": {"site-2": {"noise_multiplier": 4.0, "delta": 1e-6}}},
    )
    lines: list[str] = []
    outcome = federated.run(settings, read(folder, settings), tmp_path / "run", report=lines.append)
    metrics = outcome.progress.records[-1].metrics
    assert set(metrics) == {"site-1", "site-2", "site-3"}
    assert metrics["site-2"]["epsilon_rdp"] < metrics["site-1"]["epsilon_rdp"]
    assert "epsilon site-1 " in lines[-1]
    kept = json.loads((tmp_path / "budgets" / "site-1.json").read_text())
    assert kept["steps"][0]["count"] == 6


def test_a_budget_survives_a_restart_and_stops(folder: Path, tmp_path: Path) -> None:
    # Two rounds are four steps; the third would make it six.
    epsilon = rdp_epsilon((Steps(1.0, 0.2, 5),), 1e-5)
    settings = private_settings(tmp_path / "budgets", privacy={"epsilon": epsilon})
    intake = read(folder, settings)
    outcome = federated.run(settings, intake, tmp_path / "run", report=lambda line: None)
    assert outcome.stopped.startswith("the privacy budget of site-1")
    assert len(outcome.progress.records) == 2
    for name in ("run", "other"):
        with pytest.raises(BudgetSpentError, match=r"site-1.*does not allow one more round"):
            federated.run(
                settings, intake, tmp_path / name, resume=name == "run", report=lambda line: None
            )


def test_a_norm_with_statistics_is_not_trained_privately(folder: Path, tmp_path: Path) -> None:
    settings = private_settings(tmp_path).model_copy(update={"model": settings_of().model})
    with pytest.raises(SettingsError, match="batch norm"):
        federated.build_network(settings)
