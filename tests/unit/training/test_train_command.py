"""`radiopaque train` as a user has it."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

pytest.importorskip("torch")
pytest.importorskip("opacus")

import torch

from training import command
from training.errors import (
    BudgetSpentError,
    CheckpointError,
    DivergedError,
    SettingsError,
)
from training.rounds import RoundRunner

torch.set_num_threads(1)


CONFIG = """
mode = "federated"
threads = 1
[data]
image_size = 32
[model]
options = { width = 2 }
[training]
rounds = 2
local_steps = 2
[federation]
sites = 3
"""


def test_the_command_trains_resumes_and_exports(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "config.toml"
    config.write_text(CONFIG)
    output = tmp_path / "run"
    lines: list[str] = []
    estimated = command.train(
        command.Request(config, folder, output, only_estimate=True), lines.append
    )
    assert not output.exists()
    assert float(estimated["estimate_seconds"]) > 0  # type: ignore[arg-type]

    train_round: Callable[..., Any] = RoundRunner.run

    def interrupted(self: Any, number: int, *rest: Any) -> Any:
        if number == 1:
            raise KeyboardInterrupt
        return train_round(self, number, *rest)

    monkeypatch.setattr(RoundRunner, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        command.train(command.Request(config, folder, output), lines.append)
    assert "--resume" in lines[-1]
    monkeypatch.undo()
    result = command.train(command.Request(config, folder, output, resume=True), lines.append)
    assert result["rounds"] == 2
    assert sorted(path.name for path in output.iterdir()) == [
        "calibration.png",
        "card.md",
        "checkpoint.pt",
        "confusion.png",
        "curves.png",
        "evaluation.json",
        "log.json",
        "manifest.json",
        "model.onnx",
        "roc.png",
    ]
    with Image.open(output / "curves.png") as curves:
        assert curves.size[0] > 500
    assert any(line.startswith("about ") for line in lines)
    assert any(line.startswith("site-3: ") for line in lines)
    assert math.isfinite(float(result["best_validation_auc"]))  # type: ignore[arg-type]


def radiopaque(*words: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "radiopaque.cli.main", "train", *words]
    script = f"from radiopaque.cli.main import main; main({line[3:]!r})"
    return subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )


def test_the_command_line_explains_what_is_wrong(folder: Path, tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text(CONFIG)
    done = radiopaque("--config", str(config), "--data", str(tmp_path / "none"), "--json")
    assert done.returncode == 2
    assert json.loads(done.stdout)["error"] == "SettingsError"
    assert "holds train/NORMAL" in done.stderr
    assert "Traceback" not in done.stderr
    assert "--resume" in radiopaque("--help").stdout


def on_a_terminal(*words: str) -> tuple[str, str]:
    """Run `radiopaque train` with stderr a terminal; return stdout and what the terminal got."""
    mine, theirs = os.openpty()
    script = f"from training.command import main; main({list(words)!r})"
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=theirs, text=True
    ) as process:
        os.close(theirs)
        shown = b""
        while True:
            try:
                part = os.read(mine, 65536)
            except OSError:  # how Linux says that nobody has the other end open any more
                break
            if not part:
                break
            shown += part
        assert process.stdout is not None
        printed = process.stdout.read()
    os.close(mine)
    return printed, shown.decode()


def test_a_bar_is_drawn_on_a_terminal_only(folder: Path, tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text(CONFIG)
    words = ("--config", str(config), "--data", str(folder), "--output")
    printed, shown = on_a_terminal(*words, str(tmp_path / "a"))
    for what in ("reading images", "round 1/2, site-1", "round 2/2, site-3", "validation"):
        assert what in shown
    assert [line[:9] for line in printed.splitlines() if line.startswith("round")] == [
        "round 1/2",
        "round 2/2",
    ]
    assert "\x1b" not in printed
    printed, shown = on_a_terminal(*words, str(tmp_path / "b"), "--json")
    assert "reading images" not in shown
    assert "\x1b" not in shown
    assert json.loads(printed)["rounds"] == 2


@pytest.mark.parametrize("inside", ["", "train", "train/NORMAL"])
def test_private_images_are_not_calibrated_on(inside: str, folder: Path, tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text(
        CONFIG.replace(
            'mode = "federated"',
            'mode = "federated"\nprivacy = { noise_multiplier = 1.0,'
            f' sample_rate = 0.1, epsilon = 8.0, budget_folder = "{tmp_path}" }}',
        )
    )
    request = command.Request(config, folder, tmp_path / "run", calibrate=folder / inside)
    with pytest.raises(SettingsError, match="images of private sites"):
        command.train(request)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("error", "code"),
    [(BudgetSpentError("b"), 7), (DivergedError("d"), 1), (CheckpointError("c"), 2)],
)
def test_exit_codes(
    error: Exception,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*rest: Any) -> None:
        raise error

    monkeypatch.setattr(command, "train", fail)
    assert command.main(["--config", "a", "--data", "b"]) == code
    assert capsys.readouterr().err == f"{type(error).__name__}: {error}\n"


@pytest.mark.parametrize("name", ["manifest.json", "model.onnx"])
def test_a_model_is_not_written_over(name: str, folder: Path, tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text('mode = "local"\n')
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / name).write_bytes(b"precious")
    request = command.Request(config, folder, tmp_path / "model")
    with pytest.raises(SettingsError, match="which training would write over"):
        command.train(request, report=lambda line: None)
    assert (tmp_path / "model" / name).read_bytes() == b"precious"


def test_test_images_are_not_calibrated_on(folder: Path, tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text('mode = "local"\n')
    (folder / "test").mkdir(exist_ok=True)
    request = command.Request(config, folder, tmp_path / "run", calibrate=folder / "test")
    with pytest.raises(SettingsError, match="test images, which must choose nothing"):
        command.train(request, report=lambda line: None)
    (folder / "test").rmdir()
