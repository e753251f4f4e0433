"""Training itself, on pictures that a tiny network learns in seconds."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch")

from training import __main__ as command  # noqa: E402
from training.augment import Augmentation, augment  # noqa: E402
from training.files import sha256_of  # noqa: E402
from training.train import (  # noqa: E402
    LabelledImages,
    Stage,
    TrainingConfig,
    class_weights,
    learning_rate,
    predict,
    train,
)

REPOSITORY = Path(__file__).resolve().parents[3]
CONFIG = TrainingConfig(
    seed=3, stages=(Stage(32, 6), Stage(48, 2)), batch_size=16, width=4, threads=1
)


def striped(label: int, number: int, size: int = 48) -> np.ndarray:
    """Black, horizontal stripes or vertical stripes, with noise; uint8 [size, size]."""
    noise = np.random.default_rng([label, number]).integers(0, 60, (size, size))
    stripes = (np.arange(size) // 6 % 2) * 180
    pattern = [np.zeros((size, size), int), stripes[:, None], stripes[None, :]][label]
    return (noise + pattern).astype(np.uint8)


def labelled_images(count: int, start: int = 0) -> LabelledImages:
    labels = np.arange(count) % 3
    images = np.stack([striped(label, start + n) for n, label in enumerate(labels)])
    return LabelledImages(images[:, None], labels.astype(np.int64))


def test_a_tiny_network_learns_and_repeats_itself() -> None:
    training, validation = labelled_images(96), labelled_images(30, start=1000)
    lines: list[str] = []
    result = train(training, validation, CONFIG, report=lines.append)
    logits = predict(result.model, validation.images, result.mean, result.std)
    assert (logits.argmax(axis=1) == validation.labels).mean() >= 0.9
    assert len(lines) == 8
    assert "48 px" in lines[-1]
    assert not result.model.training

    again = train(training, validation, CONFIG, report=lambda line: None)
    repeated = predict(again.model, validation.images, again.mean, again.std)
    assert np.array_equal(repeated, logits)


def test_class_weights_balance_the_classes() -> None:
    labels = np.array([0] * 10 + [1] * 30 + [2] * 20)
    weights = class_weights(labels, 3).numpy()
    assert weights * np.bincount(labels) == pytest.approx([20.0, 20.0, 20.0])


def test_the_learning_rate_rises_and_falls_to_zero() -> None:
    config = TrainingConfig(peak_learning_rate=0.1, warm_up=0.2)
    assert learning_rate(0.1, config) == pytest.approx(0.05)
    assert learning_rate(0.2, config) == pytest.approx(0.1)
    assert learning_rate(0.6, config) == pytest.approx(0.05)
    assert learning_rate(1.0, config) == pytest.approx(0.0, abs=1e-9)


def test_augmentation_changes_images_within_bounds() -> None:
    images = torch.rand(6, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    changed = augment(images, Augmentation(), torch.Generator().manual_seed(1))
    again = augment(images, Augmentation(), torch.Generator().manual_seed(1))
    assert changed.shape == images.shape
    assert torch.equal(changed, again)
    assert 0.0 <= float(changed.min()) <= float(changed.max()) <= 1.0
    assert float((changed - images).abs().mean()) > 0.05


def test_augmentation_never_mirrors() -> None:
    image = torch.zeros(1, 1, 40, 40)
    image[:, :, 10:30, 28:32] = 1.0
    generator = torch.Generator().manual_seed(2)
    for _ in range(50):
        changed = augment(image, Augmentation(), generator)[0, 0]
        changed = (changed - changed.median()).clamp(min=0.0)
        centre = (changed.sum(dim=0) * torch.arange(40)).sum() / changed.sum()
        assert float(centre) > 20.0


def test_augmentation_of_no_size_changes_nothing() -> None:
    images = torch.rand(2, 1, 16, 16).clamp(min=1e-3)
    still = Augmentation(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    changed = augment(images, still, torch.Generator())
    assert torch.allclose(changed, images, atol=1e-5)


def test_stages_are_parsed() -> None:
    assert command.parse_stages("112x26,224x5") == (Stage(112, 26), Stage(224, 5))
    for wrong in ("112", "x5", "112x0", "112x5,", "axb"):
        with pytest.raises(argparse.ArgumentTypeError, match="SIZExEPOCHS"):
            command.parse_stages(wrong)


def write_data_set(root: Path) -> None:
    for split, count in (("train", 20), ("val", 2), ("test", 6)):
        for number in range(count):
            for label, name in (
                (0, f"NORMAL/IM-{number:04d}-0001.jpeg"),
                (1, f"PNEUMONIA/person{number}_bacteria_1.jpeg"),
                (2, f"PNEUMONIA/person{number + 50}_virus_1.jpeg"),
            ):
                path = root / split / name
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(striped(label, number, 224)).save(path)


def test_the_command_writes_model_manifest_and_card(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_data_set(tmp_path / "data")
    output = tmp_path / "model"
    arguments = ["--data", str(tmp_path / "data"), "--output", str(output)]
    options = ["--width", "2", "--stages", "32x1", "--threads", "1"]
    monkeypatch.setattr(sys, "argv", ["training", *arguments, *options])
    command.main()
    assert sorted(entry.name for entry in output.iterdir()) == [
        "card.md",
        "manifest.json",
        "model.onnx",
    ]
    manifest = json.loads((output / "manifest.json").read_text())
    assert manifest["sha256"] == sha256_of(output / "model.onnx")
    assert manifest["metrics"]["images"] == 18
    assert manifest["training_data"]["images"]["normal"] == 18
    card = (output / "card.md").read_text()
    assert card.startswith("---\nlicense: apache-2.0\n")
    assert f"| accuracy | {manifest['metrics']['accuracy']:.3f} |" in card
    assert "own validation folder (6 images" in card
    assert "test: 18 images" in capsys.readouterr().out


def test_a_missing_folder_is_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--data", str(tmp_path / "nowhere"), "--output", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["training", *arguments])
    with pytest.raises(SystemExit) as stopped:
        command.main()
    assert stopped.value.code == 2
    assert "nowhere" in capsys.readouterr().err


def test_labels_split_and_metrics_need_no_torch_and_no_other_part() -> None:
    script = (
        "import sys; import training.data, training.metrics, training.evaluate, training.manifest,"
        "training.card, training.__main__; "
        "banned = ('torch', 'onnx', 'onnxruntime', 'radiopaque', 'data_owner', 'model_owner',"
        " 'crypto_provider'); print([name for name in banned if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_training_never_loads_the_product() -> None:
    script = (
        "import sys; import training.train, training.export, training.make_samples; "
        "banned = ('radiopaque', 'data_owner', 'model_owner', 'crypto_provider');"
        "print([name for name in banned if name in sys.modules], 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[] True"
