"""What can go wrong with `radiopaque train`, as its user sees it: it is said, nothing is lost."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("opacus")

import torch

from tests.unit.training.pictures import SIZE, write_folder
from training import checkpoint, command
from training.errors import DivergedError
from training.local import LocalSite

torch.set_num_threads(1)
CONFIG = f"""
mode = "federated"
threads = 1
[data]
image_size = {SIZE}
[model]
options = {{ width = 2 }}
[training]
rounds = 3
local_steps = 2
"""
PRIVATE = """
[privacy]
noise_multiplier = 1.0
sample_rate = 0.2
epsilon = 4.5
accountant = "rdp"
"""

Train = Callable[..., tuple[int, str, str]]


@pytest.fixture
def train(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Train:
    """Run the command with a configuration; return exit code, stdout, stderr."""

    def run(text: str, *words: str, data: Path = folder) -> tuple[int, str, str]:
        config = tmp_path / "config.toml"
        config.write_text(text)
        output = () if "--output" in words else ("--output", str(tmp_path / "run"))
        code = command.main(["--config", str(config), "--data", str(data), *output, *words])
        return code, *capsys.readouterr()

    return run


def test_a_missing_folder(train: Train, tmp_path: Path) -> None:
    code, _, said = train(CONFIG, data=tmp_path / "nowhere")
    assert code == 2
    assert said.startswith(f"SettingsError: there is no folder {tmp_path / 'nowhere' / 'train'}")


def test_an_empty_class(train: Train, tmp_path: Path) -> None:
    data = write_folder(tmp_path / "data")
    for path in data.rglob("*virus*"):
        path.unlink()
    code, _, said = train(CONFIG, data=data)
    assert code == 2
    assert f"no image of class viral pneumonia to train on in {data / 'train'}" in said


def test_sites_without_images(train: Train) -> None:
    code, _, said = train(f'{CONFIG}[federation]\nsites = 40\nsplit = "class"\nskew = 1.0\n')
    assert code == 2
    assert "no images for site-4, site-5, site-6, site-7, site-8 and others: " in said
    assert "take fewer sites or less skew" in said


def test_unreadable_images_are_counted_or_refused(train: Train, tmp_path: Path) -> None:
    data = write_folder(tmp_path / "data")
    (data / "train" / "NORMAL" / "IM-0003-0001.png").write_bytes(b"not an image")
    code, printed, _ = train(CONFIG, "--estimate", data=data)
    assert code == 0
    assert "IM-0003-0001.png cannot be read" in printed
    assert "1 unreadable images skipped" in printed
    refusing = CONFIG.replace("[model]", 'unreadable = "refuse"\n[model]')
    code, _, said = train(refusing, "--estimate", data=data)
    assert code == 2
    assert "IM-0003-0001.png cannot be read" in said


def test_a_spent_budget(train: Train, tmp_path: Path) -> None:
    text = CONFIG.replace("width = 2", 'width = 2, normalisation = "standardised"')
    text += PRIVATE + f'budget_folder = "{tmp_path / "budgets"}"\n'
    code, printed, _ = train(text)
    assert code == 0
    assert "the privacy budget of site-1, site-2, site-3 is spent" in printed
    spent = (tmp_path / "budgets" / "site-1.json").read_bytes()
    code, _, said = train(text, "--output", str(tmp_path / "again"))
    assert code == 7
    assert "does not allow one more round" in said
    assert (tmp_path / "budgets" / "site-1.json").read_bytes() == spent
    # What the spent budget has paid for can still be exported.
    (tmp_path / "run" / "model.onnx").unlink()
    assert train(text, "--resume")[0] == 0
    assert (tmp_path / "run" / "model.onnx").exists()


def test_a_loss_that_is_not_a_number(train: Train, tmp_path: Path) -> None:
    text = CONFIG.replace("rounds = 3", "rounds = 3\nlearning_rate = 1e20\nwarm_up = 0.0")
    code, _, said = train(text)
    assert code == 1
    assert "the loss of site 'site-1' is nan in round 1" in said
    assert "train anew in another folder" in said


def test_what_was_best_before_training_diverged_is_exported(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = LocalSite.step

    def diverging(site: Any, *rest: Any) -> Any:
        if site._number == 2:
            raise DivergedError("the loss of site 'site-1' is nan")
        return step(site, *rest)

    monkeypatch.setattr(LocalSite, "step", diverging)
    code, printed, said = train(CONFIG)
    assert code == 1
    assert "the loss of site 'site-1' is nan" in said
    assert "training diverged after round 2" in printed
    assert "wrote the network of round" in printed
    assert (tmp_path / "run" / "model.onnx").exists()


def test_a_folder_that_cannot_be_used_is_refused_before_anything_is_read(
    train: Train, tmp_path: Path
) -> None:
    taken = tmp_path / "taken"
    taken.write_text("a file")
    code, printed, said = train(CONFIG, "--output", str(taken))
    assert (code, printed) == (2, "")
    assert f"nothing can be written to the folder {taken}" in said
    code, printed, said = train(CONFIG, "--resume")
    assert (code, printed) == (2, "")
    assert "start without --resume" in said
    assert train(CONFIG)[0] == 0
    code, printed, said = train(CONFIG)
    assert (code, printed) == (2, "")
    assert "add --resume" in said


def test_a_finished_run_is_estimated_at_nothing(train: Train, tmp_path: Path) -> None:
    assert train(CONFIG)[0] == 0
    before = (tmp_path / "run" / checkpoint.FILE).read_bytes()
    code, printed, _ = train(CONFIG, "--resume", "--estimate")
    assert code == 0
    assert "for 0 rounds" in printed
    code, printed, _ = train(CONFIG, "--resume", "--json")
    assert json.loads(printed)["rounds"] == 3
    assert (tmp_path / "run" / checkpoint.FILE).read_bytes() == before
