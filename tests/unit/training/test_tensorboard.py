"""The event file is what TensorBoard itself reads, and goes on where an interrupted run stopped."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("opacus")
pytest.importorskip("tensorboardX")
reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")

import torch  # noqa: E402

from tests.unit.training.pictures import private_settings, read, settings_of  # noqa: E402
from training import command, federated  # noqa: E402
from training.errors import SettingsError  # noqa: E402
from training.tensorboard import FOLDER  # noqa: E402

torch.set_num_threads(1)


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    found = reader.EventAccumulator(str(folder / FOLDER))
    found.Reload()
    return {
        tag: [(event.step, event.value) for event in found.Scalars(tag)]
        for tag in found.Tags()["scalars"]
    }


def test_figures_of_every_round_and_site(folder: Path, tmp_path: Path) -> None:
    settings = settings_of(output={"tensorboard": True})
    outcome = federated.run(settings, read(folder, settings), tmp_path, report=lambda line: None)
    records = outcome.progress.records
    found = scalars(tmp_path)
    assert set(found) == {
        "loss/training",
        "loss/validation",
        "auc/validation",
        "seconds/round",
        *(f"{name}/site-{n}" for name in ("loss", "learning_rate") for n in (1, 2, 3)),
    }
    assert [step for step, _ in found["loss/training"]] == [1, 2, 3]
    areas = [value for _, value in found["auc/validation"]]
    assert areas == pytest.approx([record.validation_auc for record in records])
    losses = [value for _, value in found["loss/site-2"]]
    assert losses == pytest.approx([record.metrics["site-2"]["loss"] for record in records])
    rates = [value for _, value in found["learning_rate/site-1"]]
    # Half a cosine after the warm-up, as it stands at the last of the three steps of each round.
    assert rates == pytest.approx([0.04776, 0.02452, 0.001857], rel=1e-3)


def test_private_sites_write_their_epsilon(folder: Path, tmp_path: Path) -> None:
    settings = private_settings(tmp_path / "budgets", output={"tensorboard": True})
    outcome = federated.run(settings, read(folder, settings), tmp_path, report=lambda line: None)
    found = scalars(tmp_path)
    spent = [value for _, value in found["epsilon_rdp/site-3"]]
    records = outcome.progress.records
    assert spent == pytest.approx([r.metrics["site-3"]["epsilon_rdp"] for r in records])
    assert spent[0] < spent[1]
    assert "loss/site-3" not in found


def test_a_resumed_run_goes_on_in_the_same_curves(folder: Path, tmp_path: Path) -> None:
    settings = settings_of(output={"tensorboard": True})
    intake = read(folder, settings)

    def stop(line: str) -> None:
        if line.startswith("round 2/"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        federated.run(settings, intake, tmp_path, report=stop)
    federated.run(settings, intake, tmp_path, resume=True, report=lambda line: None)
    assert [step for step, _ in scalars(tmp_path)["auc/validation"]] == [1, 2, 3]


def test_without_the_package_nothing_is_read_and_nothing_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "config.toml"
    config.write_text("[output]\ntensorboard = true\n")
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "tensorboardX" else find(name)
    )
    with pytest.raises(SettingsError, match=r"radiopaque\[tensorboard\]"):
        command.train(command.Request(config, tmp_path / "nowhere", tmp_path / "run"))
    assert not (tmp_path / "run").exists()
