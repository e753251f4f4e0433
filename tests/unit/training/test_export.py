"""The network and its ONNX form: shapes, float16 storage, agreement with torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto

torch = pytest.importorskip("torch")

from training.export import (  # noqa: E402
    EXPORT_TOLERANCE,
    ExportError,
    export,
    run,
    store_half,
    to_onnx,
)
from training.resnet import ResNet18  # noqa: E402

SIZE = 64


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


def test_export_writes_what_it_checked(
    network: ResNet18, images: NDArray[np.float32], tmp_path: Path
) -> None:
    path = tmp_path / "out" / "model.onnx"
    stored, error = export(network, images, path)
    assert path.read_bytes() == stored.SerializeToString()
    assert 0.0 < error < 0.02
    assert [entry.name for entry in path.parent.iterdir()] == ["model.onnx"]


def test_a_network_that_depends_on_the_batch_is_noticed(
    images: NDArray[np.float32], tmp_path: Path
) -> None:
    class Moody(torch.nn.Module):
        """Counts its calls, which a traced graph cannot."""

        def __init__(self) -> None:
            super().__init__()
            self.calls = 0.0

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            self.calls += 1.0
            return pixels.mean(dim=(2, 3)) + self.calls

    with pytest.raises(ExportError, match="differs from torch"):
        export(Moody(), images, tmp_path / "model.onnx")
    assert not (tmp_path / "model.onnx").exists()
