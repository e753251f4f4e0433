"""The ONNX project's own node tests, compiled and run under secret sharing.

Every case with a single node of a supported operator (Cast apart) either passes or is listed here
with its reason; docs/onnx-support.md repeats the list. The first input is the image; other inputs
become constants, except for Concat, whose inputs are cut out of one image. Of several outputs each
is compared in a run of its own.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.backend.test.case.node import collect_testcases
from onnx.backend.test.case.test_case import TestCase

from radiopaque.errors import ModelError
from radiopaque.graph.compile import compile_model
from radiopaque.graph.lowering.driver import OPERATORS
from radiopaque.graph.onnx_file import NEWEST_OPSET
from radiopaque.graph.ranges import calibrate
from tests.unit.graph.support import Floats, compile_for, run_plan

DISAPPEARING = {"Identity", "Dropout", "Softmax", "LogSoftmax", "Sigmoid"}
CONSTANT = {"Constant", "ConstantOfShape", "Shape"}
TOLERANCE = 2.0**-12
"""Relative to the largest output: 16 fraction bits, averages over many roundings."""
LEAST_PASSING = 200

INTEGER = "integer, boolean or string tensors; images are real"
NO_TENSOR = "sequences and optional values; images are tensors"
NO_IMAGE = "the output does not depend on the values of the input"
REFUSED = {
    "test_batchnorm_epsilon_training_mode": "batch norm in training mode",
    "test_batchnorm_example_training_mode": "batch norm in training mode",
    "test_clip_min_greater_than_max": "leave no range",
    "test_logsoftmax_axis_0": "runs along axis 0",
    "test_logsoftmax_axis_1": "runs along axis 1",
    "test_logsoftmax_axis_2": "runs along axis 2",
    "test_logsoftmax_default_axis": "runs along axis 2",
    "test_logsoftmax_negative_axis": "runs along axis 2",
    "test_matmul_1d_3d": "has batch dimensions",
    "test_matmul_3d": "has batch dimensions",
    "test_matmul_4d": "has batch dimensions",
    "test_matmul_bcast": "has batch dimensions",
    "test_averagepool_3d_default": "3 spatial dimensions",
    "test_averagepool_3d_dilations_large_count_include_pad_is_0_ceil_mode_is_False": (
        "3 spatial dimensions"
    ),
    "test_averagepool_3d_dilations_large_count_include_pad_is_0_ceil_mode_is_True": (
        "3 spatial dimensions"
    ),
    "test_averagepool_3d_dilations_large_count_include_pad_is_1_ceil_mode_is_False": (
        "3 spatial dimensions"
    ),
    "test_averagepool_3d_dilations_large_count_include_pad_is_1_ceil_mode_is_True": (
        "3 spatial dimensions"
    ),
    "test_averagepool_3d_dilations_small": "3 spatial dimensions",
    "test_maxpool_3d_default": "3 spatial dimensions",
    "test_maxpool_3d_dilations": "3 spatial dimensions",
    "test_maxpool_3d_dilations_use_ref_impl": "3 spatial dimensions",
    "test_maxpool_3d_dilations_use_ref_impl_large": "3 spatial dimensions",
    "test_maxpool_with_argmax_2d_precomputed_pads": "2 outputs",
    "test_maxpool_with_argmax_2d_precomputed_strides": "2 outputs",
    "test_dropout_default_mask": "2 outputs",
    "test_dropout_default_mask_ratio": "2 outputs",
    "test_reduce_max_empty_set": "dimension 1 is 0",
    "test_reduce_sum_empty_set": "dimension 1 is 0",
    "test_reduce_sum_empty_set_non_reduced_axis_zero": "dimension 1 is 0",
    "test_reshape_allowzero_reordered": "dimension 0 is 0",
    "test_slice_start_out_of_bounds": "has no elements",
    "test_softmax_axis_0": "runs along axis 0",
    "test_softmax_axis_1": "runs along axis 1",
    "test_softmax_axis_2": "runs along axis 2",
    "test_softmax_default_axis": "runs along axis 2",
    "test_softmax_negative_axis": "runs along axis 2",
    "test_split_zero_size_splits_opset13": "dimension 0 is 0",
    "test_split_zero_size_splits_opset18": "dimension 0 is 0",
    "test_training_dropout": "model.eval",
    "test_training_dropout_default": "model.eval",
    "test_training_dropout_default_mask": "model.eval",
    "test_training_dropout_mask": "model.eval",
    "test_training_dropout_zero_ratio": "model.eval",
    "test_training_dropout_zero_ratio_mask": "model.eval",
}
"""Cases that the compiler refuses, with a part of what it says."""

DOCUMENT = Path(__file__).parents[3] / "docs" / "onnx-support.md"


def arrays(tensors: Iterable[object]) -> list[NDArray[np.generic]]:
    return [
        numpy_helper.to_array(t) if isinstance(t, TensorProto) else np.asarray(t, dtype=None)
        for t in tensors
        if not isinstance(t, list) and t is not None
    ]


def collected() -> list[TestCase]:
    """Every case of one node with a supported operator, whatever its types."""
    wanted = {*OPERATORS, *DISAPPEARING, *CONSTANT}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # onnx computes the expected values as it goes
        cases = collect_testcases()
    return [
        case
        for case in cases
        if len(case.model.graph.node) == 1 and case.model.graph.node[0].op_type in wanted
    ]


def skipped(case: TestCase) -> str | None:
    """Why a case is outside what images need, None where it must pass or be refused."""
    if case.model.graph.node[0].op_type in CONSTANT:
        return NO_IMAGE
    inputs = arrays(case.data_sets[0][0])
    if not inputs:
        return NO_TENSOR
    return None if inputs[0].dtype.kind == "f" else INTEGER


CASES = {case.name: case for case in collected()}
RUN = sorted(n for n, c in CASES.items() if n not in REFUSED and skipped(c) is None)


def image_model(case: TestCase) -> tuple[onnx.ModelProto, Floats]:
    """The case's model with one input, and that input."""
    model = onnx.ModelProto()
    model.CopyFrom(case.model)
    for entry in model.opset_import:
        # Only the schema of this operator counts; none changed since.
        entry.version = min(entry.version, NEWEST_OPSET)
    model.ir_version = min(model.ir_version, 11)
    values = arrays(case.data_sets[0][0])
    graph = model.graph
    if graph.node[0].op_type == "Concat":
        return _joined(model, values)
    for entry, value in list(zip(graph.input, values, strict=False))[1:]:
        graph.initializer.append(numpy_helper.from_array(value, entry.name))
    del graph.input[1:]
    return model, values[0].astype(values[0].dtype)


def _joined(
    model: onnx.ModelProto, values: list[NDArray[np.generic]]
) -> tuple[onnx.ModelProto, Floats]:
    """All inputs cut out of one flat image by Slice and Reshape."""
    graph = model.graph
    flat = np.concatenate([v.reshape(-1) for v in values]).astype(np.float32)
    nodes, start = [], 0
    for entry, value in zip(graph.input, values, strict=True):
        ends = {"from": [start], "to": [start + value.size], "shape": value.shape}
        for key, numbers in ends.items():
            array = np.array(numbers, np.int64)
            graph.initializer.append(numpy_helper.from_array(array, f"{entry.name}/{key}"))
        piece = f"{entry.name}/flat"
        names = ["image", f"{entry.name}/from", f"{entry.name}/to"]
        nodes.append(helper.make_node("Slice", names, [piece]))
        nodes.append(helper.make_node("Reshape", [piece, f"{entry.name}/shape"], [entry.name]))
        start += value.size
    nodes.extend(graph.node)
    del graph.node[:]
    graph.node.extend(nodes)
    del graph.input[:]
    graph.input.append(helper.make_tensor_value_info("image", TensorProto.FLOAT, flat.shape))
    return model, flat


def activated(model: onnx.ModelProto, logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """What the data owner does with the opened logits."""
    operator = model.graph.node[-1].op_type
    if operator == "Sigmoid":
        return 1 / (1 + np.exp(-logits))
    if operator not in ("Softmax", "LogSoftmax"):
        return logits
    odds = np.exp(logits - logits.max(axis=-1, keepdims=True))
    probabilities = odds / odds.sum(axis=-1, keepdims=True)
    return np.asarray(np.log(probabilities) if operator == "LogSoftmax" else probabilities)


@pytest.mark.parametrize("name", RUN)
def test_case(name: str) -> None:
    model, image = image_model(CASES[name])
    expected = arrays(CASES[name].data_sets[0][1])
    for position, wanted in enumerate(expected):
        single = onnx.ModelProto()
        single.CopyFrom(model)
        del single.graph.output[:]
        single.graph.output.append(model.graph.output[position])
        compiled = compile_for(single, image)
        actual = activated(single, run_plan(compiled, image))
        assert actual.shape == wanted.shape
        reals = wanted.astype(np.float64)
        scale = max(1.0, float(np.abs(reals).max()))
        assert float(np.abs(actual - reals).max()) <= TOLERANCE * scale


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_refused_with_a_reason(name: str) -> None:
    model, _ = image_model(CASES[name])
    with pytest.raises(ModelError, match=re.escape(REFUSED[name])):
        compile_model(model, ring_bits=64)


def test_enough_cases_pass() -> None:
    """The project asks for 150; fewer than now means that something was lost."""
    assert len(RUN) >= LEAST_PASSING


def test_the_document_lists_every_skipped_case() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    skips = [name for name in CASES if name not in RUN]
    missing = [name for name in skips if f"`{name}`" not in text]
    assert not missing
    assert f"{len(RUN)} of {len(CASES)} cases" in text


def test_the_document_lists_every_operator() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    missing = [name for name in {*OPERATORS, *DISAPPEARING} if f"`{name}`" not in text]
    assert not missing


def test_calibration_and_compilation_name_the_same_tensors() -> None:
    """Every range that calibration finds is of a tensor of the file, and none is lost."""
    model, image = image_model(CASES["test_relu"])
    assert set(calibrate(model, [image])) == {"x", "y"}
