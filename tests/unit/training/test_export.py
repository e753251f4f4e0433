"""The network and its ONNX form: shapes, float16 storage, agreement with torch."""

from __future__ import annotations

import warnings

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto

pytest.importorskip("torch")

import torch

from training.export import (
    EXPORT_TOLERANCE,
    STORAGE_LIMIT,
    ExportError,
    export,
    run,
    store_half,
    to_onnx,
)
from training.networks import build, export_ready
from training.resnet import ResNet18

SIZE = 64
torch.set_num_threads(1)


@pytest.fixture(scope="module")
def network() -> ResNet18:
    """A narrow network whose batch norms have statistics other than the initial ones."""
    torch.manual_seed(1)
    model = ResNet18(width=4)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.uniform_(module.bias, -0.5, 0.5)
    model.train()
    with torch.no_grad():
        for _ in range(3):
            model(torch.randn(8, 1, SIZE, SIZE))
    model.eval()
    return model


@pytest.fixture(scope="module")
def images() -> NDArray[np.float32]:
    return np.random.default_rng(2).normal(size=(5, 1, SIZE, SIZE)).astype(np.float32)


def test_resnet18_has_the_published_size_and_shapes() -> None:
    model = ResNet18().eval()
    # 11,689,512 in the paper's network; 2 input channels and 997 classes fewer here.
    expected = 11_689_512 - 2 * 64 * 49 - 997 * 513
    assert sum(parameter.numel() for parameter in model.parameters()) == expected
    with torch.inference_mode():
        image = torch.zeros(2, 1, 64, 64)
        features = model.pool(model.stem(image))
        assert features.shape == (2, 64, 16, 16)
        assert model.stages(features).shape == (2, 512, 2, 2)
        assert model(image).shape == (2, 3)


def test_onnxruntime_computes_what_torch_computes(
    network: ResNet18, images: NDArray[np.float32]
) -> None:
    with torch.inference_mode():
        expected = network(torch.from_numpy(images)).numpy()
    assert np.ptp(expected, axis=0).min() > 0.01
    assert np.abs(run(to_onnx(network, SIZE), images) - expected).max() < EXPORT_TOLERANCE / 10


def test_the_file_has_opset_17_and_a_free_batch_dimension(network: ResNet18) -> None:
    model = to_onnx(network, SIZE)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 17)]
    assert [
        dim.dim_param or dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim
    ] == ["n", 1, SIZE, SIZE]
    assert {node.op_type for node in model.graph.node} == {
        "Conv",
        "Relu",
        "MaxPool",
        "Add",
        "GlobalAveragePool",
        "Flatten",
        "Gemm",
    }


def test_weights_are_stored_as_float16_and_widened(
    network: ResNet18, images: NDArray[np.float32]
) -> None:
    exact = to_onnx(network, SIZE)
    stored = store_half(exact)
    types = {len(entry.dims) >= 2: entry.data_type for entry in stored.graph.initializer}
    assert types == {True: TensorProto.FLOAT16, False: TensorProto.FLOAT}
    assert stored.ByteSize() < 0.7 * exact.ByteSize()
    rounded = run(stored, images)
    assert 0.0 < np.abs(rounded - run(exact, images)).max() < 0.02


def test_a_weight_beyond_float16_is_refused(network: ResNet18) -> None:
    model = to_onnx(network, SIZE)
    entry = next(entry for entry in model.graph.initializer if len(entry.dims) == 4)
    values = onnx.numpy_helper.to_array(entry).copy()
    values.flat[0] = 1e5
    entry.CopyFrom(onnx.numpy_helper.from_array(values, entry.name))
    with pytest.raises(ExportError, match="65504"):
        store_half(model)


def test_float16_is_kept_where_it_moves_no_logit(
    network: ResNet18, images: NDArray[np.float32]
) -> None:
    exported = export(network, images)
    assert exported.storage == "float16"
    assert "no logit of 5 images" in exported.reason
    with torch.inference_mode():
        expected = network(torch.from_numpy(images)).numpy()
    moved = np.abs(run(exported.model, images) - expected).max()
    assert 0.0 < moved < STORAGE_LIMIT
    assert f"by more than {moved:.2g} " in exported.reason


class Sharp(torch.nn.Module):
    """Large logits, as those of a head that was trained with noise: float16 moves them visibly."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.head = torch.nn.Linear(SIZE * SIZE, 3)
        torch.nn.init.normal_(self.head.weight, std=factor)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(pixels.flatten(1))
        return logits


def test_float32_is_kept_where_float16_would_move_a_logit(images: NDArray[np.float32]) -> None:
    torch.manual_seed(0)
    model = Sharp(10.0).eval()
    with torch.inference_mode():
        expected = model(torch.from_numpy(images)).numpy()
    moved = np.abs(run(store_half(to_onnx(model, SIZE)), images) - expected).max()
    assert moved > STORAGE_LIMIT  # the network is one that the rule is for
    exported = export(model, images)
    assert exported.storage == "float32"
    assert f"{moved:.2g}" in exported.reason
    assert np.abs(run(exported.model, images) - expected).max() <= EXPORT_TOLERANCE


def test_float32_is_kept_where_a_weight_is_beyond_float16(images: NDArray[np.float32]) -> None:
    torch.manual_seed(0)
    model = Sharp(0.01).eval()
    with torch.no_grad():
        model.head.weight[0, 0] = 1e5
    # A pixel that is black everywhere, so that the large weight changes no logit.
    without = images.copy()
    without[:, :, 0, 0] = 0.0
    exported = export(model, without)
    assert (exported.storage, "65504" in exported.reason) == ("float32", True)


def test_float32_can_be_asked_for(network: ResNet18, images: NDArray[np.float32]) -> None:
    exported = export(network, images, "float32")
    assert exported.storage == "float32"
    kinds = {entry.data_type for entry in exported.model.graph.initializer}
    assert kinds == {TensorProto.FLOAT}


def test_without_images_the_graph_is_checked_and_weights_stay_float32(
    network: ResNet18, images: NDArray[np.float32]
) -> None:
    exported = export(network, images[:0])
    assert exported.storage == "float32"
    with torch.inference_mode():
        expected = network(torch.from_numpy(images)).numpy()
    assert np.abs(run(exported.model, images) - expected).max() < EXPORT_TOLERANCE
    with pytest.raises(ExportError, match="differs from torch"):
        export(Moody(), images[:0])


class Moody(torch.nn.Module):
    """Counts its calls, which a traced graph cannot."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0.0

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        self.calls += 1.0
        return pixels.mean(dim=(2, 3)) + self.calls


def test_a_network_that_depends_on_its_calls_is_noticed(images: NDArray[np.float32]) -> None:
    with pytest.raises(ExportError, match="differs from torch"):
        export(Moody(), images)


@pytest.mark.parametrize("name", ["resnet18", "efficientnet-lite0"])
def test_nothing_is_warned_of(name: str) -> None:
    """Padding at one side, of EfficientNet, makes the exporter warn of constants it leaves."""
    options = {"width": 2} if name == "resnet18" else {"pretrained": False, "taps": [1]}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        to_onnx(export_ready(build(name, **options)), 32)
