"""What is folded, cut off, put in another order or truncated once, seen in the plan."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import onnx
import pytest

from radiopaque.graph import plan as p
from radiopaque.graph.compile import Compiled, compile_model
from tests.unit.graph.support import assert_matches, gate_names, gates, make_model, node, rng

IMAGE = (2, 4, 8, 8)
NORM = {
    "s": rng(1).uniform(0.5, 2, 4),
    "b": rng(2).normal(size=4),
    "m": rng(3).normal(size=4),
    "v": rng(4).uniform(0.5, 2, 4),
}
CONV = {"w": rng(5).normal(size=(4, 4, 3, 3))}
norm = node("BatchNormalization", "c s b m v", "n")


def run(
    nodes: list[onnx.NodeProto], constants: dict[str, Any], shape: tuple[int, ...] = IMAGE
) -> Compiled:
    model = make_model(nodes, shape, constants)
    return assert_matches(model, rng(9).normal(size=shape).astype(np.float32))


def test_batch_norm_is_folded_into_the_convolution() -> None:
    compiled = run([node("Conv", "x w", "c"), norm, node("Relu", "n")], NORM | CONV)
    assert gate_names(compiled) == ["Convolution", "AddConstant", "Relu"]


def test_bias_and_batch_norm_become_one_constant() -> None:
    constants = NORM | CONV | {"bias": rng(6).normal(size=4)}
    compiled = run([node("Conv", "x w bias", "c"), norm, node("Relu", "n")], constants)
    assert gate_names(compiled) == ["Convolution", "AddConstant", "Relu"]


def test_batch_norm_of_a_signal() -> None:
    """The convolution is two-dimensional inside, so a reshape lies between."""
    constants = NORM | {"w": rng(5).normal(size=(4, 4, 3)), "bias": rng(6).normal(size=4)}
    nodes = [node("Conv", "x w bias", "c"), norm, node("Relu", "n")]
    compiled = run(nodes, constants, (2, 4, 9))
    assert gate_names(compiled) == ["Reshape", "Convolution", "AddConstant", "Reshape", "Relu"]


def test_factors_and_summands_in_a_row() -> None:
    constants = CONV | {
        "two": np.float32(2),
        "three": np.float32(3),
        "k": rng(1).normal(size=(4, 1, 1)),
    }
    nodes = [
        node("Mul", "x two", "a"),
        node("Conv", "a w", "c"),
        node("Mul", "c k", "d"),
        node("Add", "d three", "e"),
        node("Div", "e two", "f"),
        node("Sub", "f k", "y"),
    ]
    assert gate_names(run(nodes, constants)) == ["Convolution", "AddConstant"]


def test_batch_norm_stays_where_another_reads_the_convolution() -> None:
    nodes = [node("Conv", "x w", "c"), norm, node("Relu", "c", "r"), node("Add", "n r")]
    compiled = run(nodes, NORM | CONV)
    assert len(gates(compiled, p.Multiply)) == 1
    assert len(gates(compiled, p.Convolution)) == 1


def test_a_factor_for_each_pixel_stays() -> None:
    compiled = run(
        [node("Conv", "x w", "c"), node("Mul", "c k")], CONV | {"k": rng(1).normal(size=(6, 6))}
    )
    assert len(gates(compiled, p.Multiply)) == 1


def test_a_grouped_convolution_takes_the_factor_of_its_input() -> None:
    constants = {"w": rng(5).normal(size=(6, 2, 3, 3)), "k": rng(1).normal(size=(4, 1, 1))}
    nodes = [node("Mul", "x k", "a"), node("Conv", "a w", group=2)]
    assert gate_names(run(nodes, constants)) == ["Convolution"]


def test_a_zero_factor_is_no_obstacle() -> None:
    constants = CONV | {"k": np.array([1.0, 0.0, 2.0, 3.0]).reshape(4, 1, 1), "one": np.float32(1)}
    nodes = [node("Mul", "x k", "a"), node("Add", "a one", "b"), node("Conv", "b w")]
    run(nodes, constants)


def test_reshapes_in_a_row_are_one() -> None:
    shapes = {"a": np.array([2, 16, 16]), "b": np.array([4, 8, 16])}
    nodes = [
        node("Flatten", "x", "f"),
        node("Reshape", "f a", "g"),
        node("Reshape", "g b", "h"),
        node("Relu", "h"),
    ]
    assert gate_names(run(nodes, shapes)) == ["Reshape", "Relu"]


def test_a_transpose_of_unit_axes_is_a_reshape() -> None:
    compiled = run([node("Transpose", "x", perm=[0, 2, 3, 1])], {}, (2, 1, 3, 1))
    assert gate_names(compiled) == ["Reshape"]


def test_noise_disappears() -> None:
    nodes = [
        node("Identity", "x", "a"),
        node("Cast", "a", "b", to=onnx.TensorProto.DOUBLE),
        node("Cast", "b", "c", to=onnx.TensorProto.FLOAT),
        node("Dropout", "c", "d"),
        node("Relu", "d", "e"),
        node("Identity", "e"),
    ]
    assert gate_names(run(nodes, {})) == ["Relu"]


@pytest.mark.parametrize(
    ("operator", "task"),
    [("Softmax", "multiclass"), ("LogSoftmax", "multiclass"), ("Sigmoid", "multilabel")],
)
def test_the_last_activation_is_the_data_owners(operator: str, task: str) -> None:
    nodes = [node("Flatten", "x", "f"), node(operator, "f", "p"), node("Identity", "p")]
    plan = compile_model(make_model(nodes, IMAGE), ring_bits=64).plan
    assert plan.task == task
    assert [type(step.gate).__name__ for step in plan.steps] == ["Input", "Reshape", "Output"]


def test_an_average_behind_a_convolution_is_exact() -> None:
    nodes = [
        node("Conv", "x w", "c"),
        node("AveragePool", "c", "a", kernel_shape=[3, 3]),
        node("Relu", "a"),
    ]
    assert gate_names(run(nodes, CONV)) == ["Convolution", "WindowSum", "Relu"]


def test_a_residual_block_needs_no_truncation() -> None:
    nodes = [
        node("Relu", "x", "r"),
        node("Conv", "r w", "c", pads=[1, 1, 1, 1]),
        node("Add", "c r", "s"),
        node("Relu", "s"),
    ]
    compiled = run(nodes, CONV)
    assert gate_names(compiled) == ["Relu", "Convolution", "Combine", "Relu"]


def test_one_truncation_serves_all_readers() -> None:
    nodes = [
        node("Conv", "x w", "c", pads=[1, 1, 1, 1]),
        node("Concat", "c x", "j", axis=1),
        node("Conv", "j u", "d"),
        node("Conv", "j v", "e"),
        node("Conv", "c w", "f"),
        node("Sum", "d e f"),
    ]
    constants = CONV | {
        "u": rng(6).normal(size=(4, 8, 3, 3)),
        "v": rng(7).normal(size=(4, 8, 3, 3)),
    }
    model = make_model(nodes, IMAGE, constants)
    x = rng(9).normal(size=IMAGE).astype(np.float32)
    compiled = assert_matches(model, x, 32, 2.0**-9)
    assert [s.size for s in compiled.plan.steps if isinstance(s.gate, p.Truncate)] == [512]


def test_reading_a_plan_needs_no_onnx() -> None:
    code = (
        "import sys, radiopaque.graph.plan, radiopaque.graph.validate, radiopaque.graph.weights, "
        "radiopaque.wire.plans; print([m for m in ('onnx', 'onnxruntime', 'torch') "
        "if m in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"
