"""What is computed from constants while compiling, and what is not: texts, windows, long work."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.backend.test.case.node import collect_testcases
from onnx.backend.test.case.test_case import TestCase

from radiopaque.errors import ModelFileError, UnsupportedModelError
from radiopaque.graph.compile import check_support, compile_model
from radiopaque.graph.constants import COMPUTED, NUMBERS
from radiopaque.graph.onnx_file import NEWEST_OPSET, OLDEST_OPSET
from radiopaque.graph.onnx_import import import_model
from tests.unit.graph.support import make_model, node

IMAGE = (1, 4, 6, 6)
UNKNOWN = ("test_range_bfloat16_type_positive_delta", "test_range_float16_type_positive_delta")
"""Whose shapes the library does not infer."""
DOCUMENT = Path(__file__).parents[3] / "docs" / "onnx-support.md"


def array(value: Any) -> NDArray[Any]:
    """A tensor of a case."""
    return numpy_helper.to_array(value) if isinstance(value, TensorProto) else np.asarray(value)


def finite(case: TestCase) -> bool:
    """Whether no value is infinite or no number: a model with such constants is refused."""
    values = (array(value) for values in case.data_sets[0] for value in values)
    return all(np.isfinite(value.astype(np.float64)).all() for value in values)


def collected() -> dict[str, TestCase]:
    """The ONNX project's cases of one node that is computed, on tensors of numbers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # onnx computes the expected values as it goes
        cases = collect_testcases()
    return {
        case.name: case
        for case in cases
        if len(case.model.graph.node) == 1
        and case.model.graph.node[0].op_type in COMPUTED
        and all(
            value.type.tensor_type.elem_type in NUMBERS
            for value in (*case.model.graph.input, *case.model.graph.output)
        )
        and case.name not in UNKNOWN
        and finite(case)
    }


CASES = collected()


def with_an_image(case: TestCase) -> onnx.ModelProto:
    """The case's inputs as constants; the output is of an image beside them."""
    model = onnx.ModelProto()
    model.CopyFrom(case.model)
    for entry in model.opset_import:
        entry.version = min(max(entry.version, OLDEST_OPSET), NEWEST_OPSET)
    graph = model.graph
    for entry, value in zip(graph.input, case.data_sets[0][0], strict=True):
        graph.initializer.append(numpy_helper.from_array(array(value), entry.name))
    del graph.input[:]
    del graph.output[:]
    graph.node.append(helper.make_node("Relu", ["its/image"], ["its/result"]))
    graph.input.append(helper.make_tensor_value_info("its/image", TensorProto.FLOAT, [1]))
    graph.output.append(helper.make_tensor_value_info("its/result", TensorProto.FLOAT, [1]))
    return model


@pytest.mark.parametrize("name", sorted(CASES))
def test_case(name: str) -> None:
    case = CASES[name]
    imported = import_model(with_an_image(case))
    assert imported.problems == []
    outputs = (output for output in case.model.graph.output if output.name)
    for output, wanted in zip(outputs, case.data_sets[0][1], strict=True):
        found = imported.graph.constants[output.name]
        np.testing.assert_allclose(found, array(wanted), rtol=case.rtol, atol=case.atol)


def test_every_operator_has_a_case() -> None:
    """But casts, whose cases have values that are no numbers."""
    assert {case.model.graph.node[0].op_type for case in CASES.values()} == COMPUTED - {
        "Cast",
        "CastLike",
    }


def test_the_document_lists_every_operator() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    assert not [name for name in COMPUTED if f"`{name}`" not in text]


def text(name: str, values: list[bytes]) -> onnx.TensorProto:
    return helper.make_tensor(name, TensorProto.STRING, [len(values)], values)


NOT_COMPUTED: list[list[onnx.NodeProto]] = [
    [node("Constant", "", "c", value_string=b"a" * 64), node("StringConcat", "c c", "d")],
    [node("Constant", "", "c", value_strings=[b"a"])],
    [node("Constant", "", "c", value=text("v", [b"a"]))],
    [node("Cast", "one", "c", to=TensorProto.STRING)],
    [node("CastLike", "one t", "c")],
    [node("Conv", "one one", "c", pads=[9] * 4, strides=[9] * 2)],
    [node("AveragePool", "one", "c", kernel_shape=[2, 2], pads=[1] * 4, strides=[2, 2])],
    [node("Einsum", "one one", "c", equation="abcd,efgh->")],
    [node("RandomNormal", "", "c", shape=[2])],
    [node("Resize", "one _ s", "c")],
    [node("EyeLike", "wide", "c")],
]


@pytest.mark.parametrize("nodes", NOT_COMPUTED, ids=lambda nodes: nodes[-1].op_type)
def test_what_is_not_computed_from_constants(nodes: list[onnx.NodeProto]) -> None:
    """Texts, windows, and whatever takes more than a pass over what it reads and makes."""
    constants = {
        "one": np.ones((1, 1, 1, 1), np.float32),
        "wide": np.ones((2, 2), np.float32),
        "s": np.ones(4, np.float32),
    }
    model = make_model([*nodes, node("Relu", "x")], IMAGE, constants, opset=20)
    if nodes[0].op_type == "CastLike":
        model.graph.initializer.append(text("t", [b"a"]))
    with pytest.raises((UnsupportedModelError, ModelFileError)) as caught:
        compile_model(model, ring_bits=64)
    assert re.search("not among the operators on numbers|holds texts", str(caught.value))


def test_texts_of_different_lengths() -> None:
    """The library would give each the length of the longest."""
    model = make_model([node("Relu", "x")], IMAGE)
    model.graph.initializer.append(text("t", [b"a" * 1000, *[b""] * 1000]))
    with pytest.raises(ModelFileError, match="tensor 't' of the ONNX file holds texts"):
        compile_model(model, ring_bits=64)


@pytest.mark.parametrize(
    "nodes",
    [
        [node("ReduceSum", "c", f"r{i}", keepdims=0) for i in range(60)],
        [node("MatMul", "c c", "d")],
        [node("Sum", " ".join(["c"] * 40), "d")],
    ],
    ids=["many sums", "a product of matrices", "many summands"],
)
def test_constants_that_take_long_to_make(nodes: list[onnx.NodeProto]) -> None:
    """Each result has a million elements at most."""
    constants = {"s": np.array([1 << 10, 1 << 10])}
    model = make_model(
        [node("ConstantOfShape", "s", "c"), *nodes, node("Relu", "x")], (1,), constants
    )
    assert "steps to make a constant, which is too much" in check_support(model)[0]


def test_an_axis_without_elements_beside_a_long_one() -> None:
    """The result is empty; the evaluator would make the long one first."""
    constants = {"e": np.ones((1, 0), np.float32), "s": np.array([1 << 23, 1])}
    model = make_model([node("Expand", "e s", "c"), node("Relu", "x")], (1,), constants)
    assert "of 8388608 elements, which is too much" in check_support(model)[0]
