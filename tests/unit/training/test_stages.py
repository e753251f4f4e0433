"""Progressive image sizes, bfloat16 and the other settings of the plain site step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("opacus")

import torch

from tests.unit.training.pictures import SIZE, read, settings_of
from training import federated
from training.config import TrainingSettings
from training.estimate import estimate_seconds
from training.local import class_weights, scaled
from training.site import weights_of
from training.validator import Validator

torch.set_num_threads(1)
STAGES = [{"size": 16, "rounds": 2}, {"size": 24, "rounds": 1}, {"size": SIZE, "rounds": 2}]
LARGE_STAGES = [{"size": 48, "rounds": 2}, {"size": SIZE, "rounds": 3}]


def staged(**training: Any) -> TrainingSettings:
    values = {"rounds": 5, "stages": STAGES, "local_steps": 8, **training}
    return settings_of(mode="local", federation=None, training=values)


def test_rounds_see_the_sizes_of_their_stages(folder: Path, tmp_path: Path) -> None:
    settings = staged()
    assert [settings.size_in(number) for number in range(5)] == [16, 16, 24, SIZE, SIZE]
    sizes: list[int] = []
    lines: list[str] = []
    sites = federated.build_sites(settings, read(folder, settings).training)
    batch = sites[0]._batch  # type: ignore[attr-defined]

    def watched(*arguments: Any) -> Any:
        images, targets = batch(*arguments)
        sizes.append(images.shape[-1])
        return images, targets

    sites[0]._batch = watched  # type: ignore[attr-defined]
    federated.run(settings, read(folder, settings), tmp_path, sites=sites, report=lines.append)
    assert sizes == [16] * 16 + [24] * 8 + [SIZE] * 16
    assert [line.split("  ")[1] for line in lines] == ["16 px"] * 2 + ["24 px"] + ["32 px"] * 2


def test_only_the_last_stage_has_the_best_round_and_patience(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    areas = iter([0.9, 0.8, 0.7, 0.6, 0.5, 0.4])

    def score(self: Any, model: Any, size: int) -> tuple[float, float]:
        sizes.append(size)
        return 1.0, next(areas)

    monkeypatch.setattr(Validator, "score", score)
    stages = [{"size": 16, "rounds": 3}, {"size": SIZE, "rounds": 7}]
    settings = staged(stages=stages, rounds=10, patience=1, local_steps=1)
    outcome = federated.run(settings, read(folder, settings), tmp_path, report=lambda line: None)
    assert sizes == [16, 16, 16, SIZE, SIZE]
    assert outcome.progress.best_round == 4
    assert outcome.progress.best_auc == 0.6
    assert outcome.stopped == "no better validation AUC for 1 rounds"


def test_an_interruption_between_stages_changes_nothing(folder: Path, tmp_path: Path) -> None:
    settings = staged(precision="bfloat16", max_gradient_norm=0.5, stages=LARGE_STAGES)
    intake = read(folder, settings)
    whole = federated.run(settings, intake, tmp_path / "whole", report=lambda line: None)

    def stop(line: str) -> None:
        if line.startswith("round 2/"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        federated.run(settings, intake, tmp_path / "broken", report=stop)
    resumed = federated.run(
        settings, intake, tmp_path / "broken", resume=True, report=lambda line: None
    )
    for name, tensor in whole.progress.weights.items():
        assert torch.equal(resumed.progress.weights[name], tensor)


def test_bfloat16_learns_as_float32_does(folder: Path, tmp_path: Path) -> None:
    finals = {}
    for precision in ("float32", "bfloat16"):
        settings = staged(precision=precision, local_steps=20, stages=LARGE_STAGES)
        outcome = federated.run(
            settings, read(folder, settings), tmp_path / precision, report=lambda line: None
        )
        assert outcome.progress.best_auc >= 0.95
        assert all(tensor.dtype == torch.float32 for tensor in outcome.progress.weights.values())
        finals[precision] = outcome.progress.weights["head.weight"]
    assert not torch.equal(finals["float32"], finals["bfloat16"])


def test_long_gradients_are_cut(folder: Path) -> None:
    lengths = []
    for limit in (0.0, 1e-3):
        settings = staged(
            max_gradient_norm=limit, local_steps=1, momentum=0.0, weight_decay=0.0, warm_up=0.0
        )
        model = federated.build_network(settings)
        site = federated.build_sites(settings, read(folder, settings).training)[0]
        site.begin(0, 5)
        delta = site.step(model, weights_of(model)).delta
        trained = sum(p.numel() for p in model.parameters())
        lengths.append(float(np.linalg.norm(delta[:trained])) / settings.training.learning_rate)
    assert lengths[0] > 0.1
    assert lengths[1] == pytest.approx(1e-3, rel=1e-2)


def test_scaling_averages_and_leaves_the_right_size_alone() -> None:
    images = torch.zeros(5, 1, 8, 8, dtype=torch.uint8)
    images[:, :, ::2] = 200
    assert scaled(images, 8) is images
    small = scaled(images, 2, batch=2)
    assert small.shape == (5, 1, 2, 2)
    assert small.dtype == torch.uint8
    # Every other row is bright: skipping pixels instead of averaging them would give 0 or 200.
    assert int((small.int() - 100).abs().max()) <= 15


def test_class_weights_balance_the_classes() -> None:
    labels = np.array([0] * 10 + [1] * 30 + [2] * 20)
    weights = class_weights(labels, 3).numpy()
    assert weights * np.bincount(labels) == pytest.approx([20.0, 20.0, 20.0])


def test_an_estimate_counts_every_stage(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = staged(local_steps=4)
    seen: list[int] = []

    def step(self: Any, cohort: Any, number: int) -> float:
        seen.append(number)
        return 10.0 ** len(seen)

    monkeypatch.setattr("training.estimate._seconds_of_step", step)
    monkeypatch.setattr("training.estimate._seconds_of_image", lambda *arguments: 0.0)
    assert estimate_seconds(settings, read(folder, settings)) == 4 * (2 * 10 + 100 + 2 * 1000)
    assert seen == [0, 2, 3]
    seen.clear()
    # Of five rounds one of the second and two of the third stage are left.
    assert estimate_seconds(settings, read(folder, settings), done=2) == 4 * (10 + 2 * 100)
    assert seen == [2, 3]


@pytest.mark.parametrize(
    ("training", "reason"),
    [
        ({"rounds": 4}, "5 rounds in all; set rounds = 5"),
        ({"rounds": 3, "stages": STAGES[:2]}, "ends with 24 pixels, data.image_size is 32"),
        ({"momentum": 0.0, "nesterov": True}, "no effect without momentum"),
        ({"precision": "float16"}, "precision"),
        ({"precision": "bfloat16"}, "16 pixels cannot be trained"),
    ],
)
def test_contradictions_are_refused(training: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        staged(**training)
