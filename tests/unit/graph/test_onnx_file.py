"""Files: what is no ONNX file, is cut short, or keeps its weights elsewhere."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from radiopaque.errors import ModelFileError, UnsupportedOpsetError
from radiopaque.graph.compile import compile_model
from radiopaque.graph.onnx_file import load_model
from tests.unit.graph.support import assert_matches, make_model, node, rng


def matmul(rows: int = 40) -> onnx.ModelProto:
    return make_model([node("MatMul", "x w")], (2, rows), {"w": rng().normal(size=(rows, 30))})


@pytest.mark.parametrize("content", [b"", b"GIF89a", b"\x00" * 100, b"{}"])
def test_other_files(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelFileError, match="is not an ONNX file"):
        compile_model(path, ring_bits=64)


@pytest.mark.parametrize("part", [0.02, 0.3, 0.5, 0.9, 0.999])
def test_a_file_that_is_cut_short(tmp_path: Path, part: float) -> None:
    path = tmp_path / "model.onnx"
    content = matmul().SerializeToString()
    path.write_bytes(content[: int(part * len(content))])
    with pytest.raises((ModelFileError, UnsupportedOpsetError)):
        compile_model(path, ring_bits=64)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="cannot read"):
        compile_model(tmp_path / "model.onnx", ring_bits=64)


def test_devices_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").symlink_to("/dev/null")
    with pytest.raises(ModelFileError, match="not a regular file"):
        compile_model(tmp_path / "model.onnx", ring_bits=64)


def test_external_data(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save_model(
        matmul(), path, save_as_external_data=True, location="weights.bin", size_threshold=0
    )
    loaded = load_model(path)
    assert_matches(loaded, rng(1).normal(size=(2, 40)).astype(np.float32))
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(ModelFileError, match=r"keeps tensor 'w' in another file, 'weights.bin'"):
        load_model(path)


def test_external_data_outside_the_folder(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    path = tmp_path / "inner" / "model.onnx"
    (tmp_path / "weights.bin").write_bytes(b"\0" * 4800)
    model = matmul()
    onnx.external_data_helper.set_external_data(model.graph.initializer[0], "../weights.bin")
    model.graph.initializer[0].ClearField("raw_data")
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ModelFileError, match="keeps tensor 'w' in another file"):
        load_model(path)


def test_an_inconsistent_graph() -> None:
    model = make_model([node("Relu", "x")], (2, 3))
    model.graph.node[0].input[0] = "nowhere"
    with pytest.raises(ModelFileError, match="inconsistent"):
        compile_model(model, ring_bits=64)


def test_no_opset() -> None:
    model = make_model([node("Relu", "x")], (2, 3))
    del model.opset_import[:]
    with pytest.raises(UnsupportedOpsetError, match="does not say which opset"):
        compile_model(model, ring_bits=64)


@pytest.mark.parametrize("narrow", [TensorProto.FLOAT16, TensorProto.BFLOAT16])
def test_narrow_weights_are_widened(narrow: int) -> None:
    """As the shipped model stores them: float16 and a Cast."""
    model = make_model(
        [node("Cast", "w", "wide", to=TensorProto.FLOAT), node("MatMul", "x wide")],
        (2, 40),
        {"w": rng().normal(size=(40, 30))},
    )
    stored = model.graph.initializer[0]
    array = numpy_helper.to_array(stored).astype(onnx.helper.tensor_dtype_to_np_dtype(narrow))
    stored.CopyFrom(numpy_helper.from_array(array, "w"))
    assert_matches(model, rng(1).normal(size=(2, 40)).astype(np.float32))


def test_a_network_in_half_precision() -> None:
    model = make_model([node("Relu", "x")], (2, 3), elem_type=TensorProto.FLOAT16)
    assert_matches(model, rng(1).normal(size=(2, 3)).astype(np.float16))


def test_the_compiler_is_deterministic() -> None:
    first, second = (compile_model(matmul(), ring_bits=64) for _ in range(2))
    assert first.plan == second.plan
    assert first.report == second.report
    for number, words in first.weights.linear.items():
        np.testing.assert_array_equal(words, second.weights.linear[number])
