"""Models by name, what they compute, and that they are made once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from benchmarks import models
from benchmarks.errors import BenchmarkError
from benchmarks.models import MADE, Choice, choose, obtain, sample_images, shipped, usual
from benchmarks.networks import CLASSES, NETWORKS, build
from tests.unit.test_imports import trespasses

# Parameters as published for colour images and 1000 classes (torchvision's tables; for
# EfficientNet-Lite0 TensorFlow's), the channels of the first layer and the features of the last.
PUBLISHED = {
    "resnet18": (11_689_512, 64 * 49, 512),
    "resnet18-average": (11_689_512, 64 * 49, 512),
    "resnet50": (25_557_032, 64 * 49, 2048),
    "vgg16": (138_357_544, 64 * 9, 4096),
    "densenet121": (7_978_856, 64 * 49, 1024),
    "mobilenet-v2": (3_504_872, 32 * 9, 1280),
    "efficientnet-lite0": (4_652_008, 32 * 9, 1280),
}


def test_names_and_sizes() -> None:
    assert choose("resnet50") == Choice("resnet50", 224, made=True)
    assert choose("lenet") == Choice("lenet", 32, made=True)
    assert str(choose("vgg16@96")) == "vgg16@96"
    assert choose(usual()) == Choice("pneumonia-resnet18", 224, made=False)
    assert choose(f"{usual()}@224") == choose(usual())
    assert set(NETWORKS) == set(MADE)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("resnet19", r"no model 'resnet19'; choose one of pneumonia.*lenet"),
        ("", "no model ''"),
        ("lenet@40", "multiple of 32 from 32 to 1024"),
        ("lenet@0", "multiple of 32"),
        ("lenet@2048", "multiple of 32"),
        ("lenet@-32", "multiple of 32"),
        ("lenet@big", "multiple of 32"),
        ("pneumonia-resnet18@32", "224 x 224, not 32"),
    ],
)
def test_models_that_do_not_exist(text: str, message: str) -> None:
    with pytest.raises(BenchmarkError, match=message):
        choose(text)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_network_has_as_many_parameters_as_published(name: str) -> None:
    published, stem, features = PUBLISHED[name]
    with torch.device("meta"):
        network = NETWORKS[name](224)
    found = sum(parameter.numel() for parameter in network.parameters())
    assert found == published - 2 * stem - (1000 - CLASSES) * (features + 1)


def test_shipped_models_are_found() -> None:
    assert "pneumonia-resnet18" in shipped()
    source = obtain(choose("pneumonia-resnet18"))
    assert source.manifest is not None
    assert source.manifest.ranges


def test_a_model_is_made_once(
    model_cache: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    told: list[str] = []
    first = obtain(choose("lenet"), told.append)
    assert len(told) == 1
    content = first.onnx.read_bytes()
    monkeypatch.setattr(models, "_make", lambda *_: pytest.fail("made again"))
    again = obtain(choose("lenet"), told.append)
    assert (again.onnx, len(told)) == (first.onnx, 1)
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "elsewhere"))
    assert obtain(choose("lenet")).onnx.read_bytes() == content
    # nothing half made is left behind
    assert [path.name for path in first.onnx.parent.parent.iterdir()] == [first.onnx.parent.name]


def test_a_model_that_fails_to_be_made_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def fail(choice: Choice, folder: Path) -> None:
        (folder / "model.onnx").write_text("half")
        raise OSError("disk full")

    monkeypatch.setattr(models, "_make", fail)
    with pytest.raises(OSError, match="disk full"):
        obtain(choose("lenet"))
    assert list(models.cache_folder().iterdir()) == []


def test_without_torch_shipped_models_remain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert obtain(choose("pneumonia-resnet18")).manifest is not None
    with pytest.raises(BenchmarkError, match=r"radiopaque\[bench\]"):
        obtain(choose("lenet"))


def test_activations_are_realistic(model_cache: None) -> None:
    """Neither vanishing nor exploding on the samples, and ranges for every tensor in between."""
    source = obtain(choose("resnet18@32"))
    assert source.manifest is not None
    ranges = source.manifest.ranges
    model = onnx.load(str(source.onnx))
    produced = {name for node in model.graph.node for name in node.output}
    assert produced - set(ranges) == set()
    largest = [max(abs(low), abs(high)) for low, high in ranges.values()]
    assert min(largest) > 0.1
    assert max(largest) < 1000
    weights = [numpy_helper.to_array(tensor) for tensor in model.graph.initializer]
    assert all(np.isfinite(array).all() for array in weights)


def test_images_are_preprocessed_and_repeated() -> None:
    spec = obtain(choose("pneumonia-resnet18")).preprocessing
    images = sample_images(spec, 3)
    assert images.shape == (3, 1, 224, 224)
    assert images.dtype == np.float32
    everything = sample_images(spec)
    many = sample_images(spec, len(everything) + 2)
    assert (many[len(everything) :] == everything[:2]).all()
    assert not np.array_equal(images[0], images[1])


def test_one_seed_is_one_network() -> None:
    images = torch.randn(2, 1, 32, 32, generator=torch.Generator().manual_seed(1))
    outputs = [build("lenet", 32, images, seed)(images).detach().numpy() for seed in (1, 1, 2)]
    assert np.array_equal(outputs[0], outputs[1])
    assert not np.array_equal(outputs[0], outputs[2])


def test_benchmarks_and_training_share_nothing() -> None:
    assert trespasses("benchmarks", ("training",)) == []
    assert trespasses("training", ("benchmarks",)) == []
