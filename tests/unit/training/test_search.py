"""Searching for settings: resumable, charged to the budgets, and its best can be trained."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("opacus")
pytest.importorskip("optuna")
tomli_w = pytest.importorskip("tomli_w")

import torch  # noqa: E402

from tests.unit.training.pictures import SIZE, private_settings, settings_of  # noqa: E402
from training import checkpoint, command, federated  # noqa: E402
from training.config import TrainingSettings, load_settings  # noqa: E402
from training.errors import (  # noqa: E402
    BudgetSpentError,
    CheckpointError,
    DivergedError,
    SettingsError,
)
from training.search import BEST_FILE, TRIALS_FOLDER, plan, search  # noqa: E402

torch.set_num_threads(1)
RATES = {"training.learning_rate": {"low": 1e-3, "high": 1.0, "log": True}}


def written(path: Path, settings: TrainingSettings, space: dict[str, Any]) -> Path:
    values = settings.model_dump(mode="json", exclude_none=True, exclude_unset=True)
    path.write_text(tomli_w.dumps({**values, "search": space}))
    return path


def local(path: Path, space: dict[str, Any], **changes: Any) -> Path:
    settings = settings_of(
        mode="local", federation=None, training={"rounds": 2, "local_steps": 2}, **changes
    )
    return written(path, settings, space)


def silent(line: str) -> None:
    pass


def rounds_of(folder: Path) -> int:
    return len(json.loads((folder / federated.LOG_FILE).read_text())["rounds"])


def test_the_best_of_all_trials_can_be_trained(folder: Path, tmp_path: Path) -> None:
    space = {**RATES, "model.options.pool": {"choices": ["max", "average"]}}
    config = local(tmp_path / "config.toml", space)
    output = tmp_path / "search"
    lines: list[str] = []
    result = search(config, folder, output, 4, report=lines.append)
    assert result["trials"] == 4
    folders = sorted((output / TRIALS_FOLDER).iterdir())
    assert len(folders) == 4
    areas = {
        path: json.loads((path / federated.LOG_FILE).read_text())["best_validation_auc"]
        for path in folders
    }
    assert result["best_validation_auc"] == max(areas.values())
    best = Path(result["best_trial"])
    assert areas[best] == max(areas.values())
    assert [path for path in folders if (path / checkpoint.FILE).exists()] == [best]
    settings = load_settings(output / BEST_FILE)
    assert not settings.search
    assert settings.digest().startswith(best.name)
    assert settings.data.image_size == SIZE
    assert sum(line.startswith("trial ") for line in lines) == 4

    with pytest.raises(SettingsError, match="--resume"):
        search(config, folder, output, 5, report=silent)
    assert search(config, folder, output, 5, resume=True, report=silent)["trials"] == 5
    assert len(list((output / TRIALS_FOLDER).iterdir())) == 5
    other = local(tmp_path / "other.toml", {"training.momentum": {"low": 0.0, "high": 0.5}})
    with pytest.raises(CheckpointError, match="another configuration"):
        search(other, folder, output, 6, resume=True, report=silent)
    with pytest.raises(CheckpointError, match="no search"):
        search(config, folder, tmp_path / "none", 6, resume=True, report=silent)


def test_the_network_of_the_best_trial_is_taken_over(folder: Path, tmp_path: Path) -> None:
    config = local(tmp_path / "config.toml", RATES)
    result = search(config, folder, tmp_path / "search", 1, report=silent)
    before = (Path(result["best_trial"]) / checkpoint.FILE).read_bytes()
    lines: list[str] = []
    request = command.Request(
        Path(result["best_config"]), folder, Path(result["best_trial"]), resume=True
    )
    taken = command.train(request, lines.append)
    assert "resumed after round 2" in lines
    assert taken["best_validation_auc"] == result["best_validation_auc"]
    assert (Path(result["best_trial"]) / checkpoint.FILE).read_bytes() == before
    assert (Path(result["best_trial"]) / "model.onnx").exists()


def test_an_interrupted_trial_goes_on(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = local(tmp_path / "config.toml", RATES)
    save = checkpoint.save
    saved: list[Path] = []

    def interrupted(where: Path, *rest: Any) -> None:
        save(where, *rest)
        saved.append(where)
        if len(saved) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "save", interrupted)
    lines: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        search(config, folder, tmp_path / "search", 2, report=lines.append)
    assert "--resume" in lines[-1]
    monkeypatch.undo()
    result = search(config, folder, tmp_path / "search", 2, resume=True, report=silent)
    assert result["trials"] == 2
    assert {path.name for path in (tmp_path / "search" / TRIALS_FOLDER).iterdir()} == {
        path.name for path in saved
    }
    assert all(rounds_of(path) == 2 for path in saved)


def test_a_diverged_trial_is_told_and_left_behind(folder: Path, tmp_path: Path) -> None:
    space = {"training.learning_rate": {"choices": [0.05, 1e30]}}
    config = local(tmp_path / "config.toml", space)
    lines: list[str] = []
    result = search(config, folder, tmp_path / "search", 6, report=lines.append)
    assert result["trials"] == 6
    assert sum("1e+30: the" in line for line in lines) == 1
    assert load_settings(Path(result["best_config"])).training.learning_rate == 0.05
    hopeless = local(tmp_path / "hopeless.toml", {"training.learning_rate": {"choices": [1e30]}})
    with pytest.raises(DivergedError, match="all 2 trials diverged"):
        search(hopeless, folder, tmp_path / "none", 2, report=silent)


def test_every_private_trial_is_charged_and_none_is_begun_that_does_not_fit(
    folder: Path, tmp_path: Path
) -> None:
    settings = private_settings(
        tmp_path / "budgets", training={"rounds": 2}, privacy={"noise_multiplier": 2.0}
    )
    # Four steps a trial: two fit into 10 steps, a third does not.
    allowed = settings.privacy.model_copy(update={"epsilon": epsilon_of_steps(10)})  # type: ignore[union-attr]
    settings = settings.model_copy(update={"privacy": allowed})
    config = written(tmp_path / "config.toml", settings, RATES)
    lines: list[str] = []
    result = search(config, folder, tmp_path / "search", 5, report=lines.append)
    assert result["trials"] == 2
    assert any("charged to the privacy budgets" in line for line in lines)
    assert any("allows 2 of the 4 steps of a trial" in line for line in lines)
    for name in ("site-1", "site-2", "site-3"):
        kept = json.loads((tmp_path / "budgets" / f"{name}.json").read_text())
        assert [steps["count"] for steps in kept["steps"]] == [8]
    with pytest.raises(BudgetSpentError, match="allows 2 of the 4"):
        search(config, folder, tmp_path / "again", 5, report=silent)


def epsilon_of_steps(count: int) -> float:
    from training.accounting import Steps, rdp_epsilon

    return rdp_epsilon((Steps(2.0, 0.2, count),), 1e-5) * (1 + 1e-9)


def test_settings_that_were_tried_are_neither_trained_nor_charged_again(
    folder: Path, tmp_path: Path
) -> None:
    settings = private_settings(tmp_path / "budgets", training={"rounds": 1})
    space = {"privacy.clip_norm": {"choices": [0.5, 1.0]}}
    config = written(tmp_path / "config.toml", settings, space)
    lines: list[str] = []
    search(config, folder, tmp_path / "search", 8, report=lines.append)
    trained = list((tmp_path / "search" / TRIALS_FOLDER).iterdir())
    assert 1 <= len(trained) <= 2
    kept = json.loads((tmp_path / "budgets" / "site-1.json").read_text())
    assert kept["steps"][0]["count"] == 2 * len(trained)
    assert sum("as before" in line for line in lines) == 8 - len(trained)


@pytest.mark.parametrize(
    ("space", "reason"),
    [
        ({}, r"no section \[search\]"),
        ({"training.learnin_rate": {"low": 0.1, "high": 1.0}}, "learnin_rate"),
        ({"training.learning_rate": {"low": -0.1, "high": 1.0}}, "greater than 0"),
        ({"training.learning_rate": {"low": 1.0, "high": 0.1}}, "not less than high"),
        ({"training.learning_rate": {"low": 0.0, "high": 1.0, "log": True}}, "no logarithm"),
        ({"training.learning_rate": {"low": 0.1}}, "low and high"),
        ({"training.rounds": {"low": 1, "choices": [1, 2]}}, "either choices"),
        ({"data.image_size": {"choices": [32, 64]}}, "cannot be searched for"),
        ({"privacy.noise_multiplier": {"low": 1.0, "high": 2.0}}, "cannot be searched for"),
        ({"seed": {"choices": [1, 2]}}, "cannot be searched for"),
        ({"model.name": {"choices": ["resnet18", "resnet19"]}}, "no network 'resnet19'"),
    ],
)
def test_what_cannot_be_searched_for_is_explained(
    space: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    with pytest.raises(SettingsError, match=reason):
        plan(local(tmp_path / "config.toml", space), 3)


def test_missing_packages_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "optuna" else find(name)
    )
    with pytest.raises(SettingsError, match=r"needs optuna.*radiopaque\[search\]"):
        plan(local(tmp_path / "config.toml", RATES), 3)


def test_the_estimate_counts_the_trials_that_are_left(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = local(tmp_path / "config.toml", RATES)
    monkeypatch.setattr("training.estimate._seconds_of_step", lambda *arguments: 10.0)
    monkeypatch.setattr("training.estimate._seconds_of_image", lambda *arguments: 0.0)
    found = search(config, folder, tmp_path / "search", 3, only_estimate=True, report=silent)
    # Three trials of two rounds of two steps.
    assert found["estimate_seconds"] == 120.0
    search(config, folder, tmp_path / "search", 1, report=silent)
    found = search(
        config, folder, tmp_path / "search", 3, resume=True, only_estimate=True, report=silent
    )
    assert found["estimate_seconds"] == 80.0


def test_a_search_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="0 trials"):
        plan(local(tmp_path / "config.toml", RATES), 0)


def test_the_command_searches_if_asked_to(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = str(local(tmp_path / "config.toml", RATES))
    words = ["--config", config, "--data", str(folder), "--output", str(tmp_path / "search")]
    assert command.main(words) == 2
    assert "no effect without --search" in capsys.readouterr().err
    assert command.main([*words, "--search", "2", "--estimate", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["estimate_seconds"] > 0
    assert not (tmp_path / "search").exists()
    assert command.main([*words, "--search", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["trials"] == 2


def test_a_damaged_search_is_refused(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "search"
    output.mkdir()
    (output / "search.journal").write_text("{\n")
    with pytest.raises(CheckpointError, match=r"search\.journal cannot be read"):
        search(local(tmp_path / "config.toml", RATES), folder, output, 2, resume=True)


def test_a_folder_that_cannot_be_made_is_refused_before_images_are_read(
    folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    lines: list[str] = []
    with pytest.raises(SettingsError, match="nothing can be written"):
        search(
            local(tmp_path / "config.toml", RATES),
            folder,
            tmp_path / "file" / "search",
            2,
            report=lines.append,
        )
    assert lines == []


def test_calibration_of_a_search_is_refused(folder: Path, tmp_path: Path) -> None:
    words = ["--config", str(local(tmp_path / "config.toml", RATES)), "--data", str(folder)]
    words += ["--output", str(tmp_path / "search"), "--search", "2", "--calibrate", str(tmp_path)]
    assert command.main(words) == 2
