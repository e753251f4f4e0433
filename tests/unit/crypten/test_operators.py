"""Every operator that the front end takes, in CrypTen's own arithmetic, against onnxruntime."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from radiopaque.engine.crypten.frontend import translate
from radiopaque.engine.crypten.operators import TABLE
from radiopaque.errors import UnsupportedModelError
from tests.unit.graph.support import make_model, node, plaintext, rng

ROOT = Path(__file__).parents[3]
FINE = 1e-3
"""A few of CrypTen's units, 2^-16, through a layer."""


@dataclass(frozen=True)
class Case:
    nodes: list[onnx.NodeProto]
    shape: tuple[int, ...]
    constants: dict[str, Any] = field(default_factory=dict)
    tolerance: float = FINE
    low: float = -2.0
    high: float = 2.0
    opset: int = 17

    def model(self) -> onnx.ModelProto:
        return make_model(self.nodes, self.shape, self.constants, self.opset)

    def image(self) -> NDArray[np.float32]:
        return rng(3).uniform(self.low, self.high, self.shape).astype(np.float32)


def draw(*shape: int) -> NDArray[np.float32]:
    return (rng(sum(shape)).standard_normal(shape) * 0.4).astype(np.float32)


W = {"w": draw(4, 3, 3, 3), "b": draw(4)}
BATCH_NORM = {
    "g": draw(4) + 1,
    "h": draw(4),
    "m": draw(4),
    "v": np.abs(draw(4)) + np.float32(0.5),
}
IMAGE = (1, 3, 8, 8)

CASES: dict[str, Case] = {
    "conv": Case([node("Conv", "x w b", pads=[1, 1, 1, 1])], IMAGE, W),
    "conv_batch": Case([node("Conv", "x w b", pads=[1, 1, 1, 1])], (3, 3, 8, 8), W),
    "conv_strides_dilations": Case(
        [node("Conv", "x w", pads=[2, 1, 2, 1], strides=[2, 1], dilations=[2, 1])], IMAGE, W
    ),
    "conv_uneven_pads": Case([node("Conv", "x w", pads=[0, 1, 2, 3])], IMAGE, W),
    "conv_same_upper": Case([node("Conv", "x w", auto_pad="SAME_UPPER", strides=[2, 2])], IMAGE, W),
    "conv_depthwise": Case([node("Conv", "x d", group=3)], IMAGE, {"d": draw(3, 1, 3, 3)}),
    "conv_1d": Case([node("Conv", "x c", pads=[1, 1])], (1, 3, 12), {"c": draw(5, 3, 3)}),
    "batch_norm_folded": Case(
        [node("Conv", "x w b", "t"), node("BatchNormalization", "t g h m v")],
        IMAGE,
        {**W, **BATCH_NORM},
    ),
    "batch_norm_alone": Case(
        [node("Relu", "x", "t"), node("BatchNormalization", "t g h m v")], (1, 4, 5, 5), BATCH_NORM
    ),
    "gemm": Case(
        [node("Gemm", "x w b", transB=1, alpha=0.5, beta=2.0)],
        (2, 6),
        {"w": draw(4, 6), "b": draw(4)},
    ),
    "gemm_without_bias": Case([node("Gemm", "x w")], (1, 6), {"w": draw(6, 4)}),
    "matmul": Case([node("MatMul", "x w")], (1, 5, 6), {"w": draw(6, 4)}),
    "matmul_of_two_secrets": Case(
        [node("Transpose", "x", "t", perm=[0, 2, 1]), node("MatMul", "x t")], (2, 4, 5)
    ),
    "add": Case([node("Add", "x c")], IMAGE, {"c": draw(3, 1, 1)}),
    "sum_of_three": Case([node("Relu", "x", "t"), node("Sum", "x t c")], IMAGE, {"c": draw(1)}),
    "sub": Case([node("Sub", "c x")], IMAGE, {"c": draw(3, 1, 1)}),
    "mul_of_two_secrets": Case([node("Relu", "x", "t"), node("Mul", "x t")], IMAGE),
    "div_by_constant": Case([node("Div", "x c")], IMAGE, {"c": np.array([3.0], np.float32)}),
    "div_by_secret": Case(
        [node("Div", "c x")], (1, 8), {"c": draw(8)}, tolerance=0.01, low=0.5, high=3.0
    ),
    "neg": Case([node("Neg", "x")], IMAGE),
    "relu": Case([node("Relu", "x")], IMAGE),
    "leaky_relu": Case([node("LeakyRelu", "x", alpha=0.1)], IMAGE),
    "prelu": Case([node("PRelu", "x c")], IMAGE, {"c": draw(3, 1, 1)}),
    "clip": Case([node("Clip", "x a b")], IMAGE, {"a": np.float32(-0.5), "b": np.float32(1)}),
    "clip_above": Case([node("Clip", "x _ b")], IMAGE, {"b": np.float32(1)}),
    "clip_below": Case([node("Clip", "x a")], IMAGE, {"a": np.float32(-0.5)}),
    "hard_sigmoid": Case([node("HardSigmoid", "x")], IMAGE),
    "hard_swish": Case([node("HardSwish", "x")], IMAGE),
    "sigmoid": Case([node("Sigmoid", "x", "t"), node("Neg", "t")], IMAGE, tolerance=0.01),
    "tanh": Case([node("Tanh", "x")], IMAGE, tolerance=0.01),
    "exp": Case([node("Exp", "x")], IMAGE, tolerance=0.1, low=-2.0, high=1.0),
    "sqrt": Case([node("Sqrt", "x")], (1, 16), tolerance=0.02, low=0.5, high=4.0),
    "reciprocal": Case([node("Reciprocal", "x")], (1, 16), tolerance=0.02, low=0.5, high=4.0),
    "square": Case([node("Pow", "x p")], IMAGE, {"p": np.float32(2)}),
    "cube": Case([node("Pow", "x p")], IMAGE, {"p": np.float32(3)}),
    "softmax_inside": Case(
        [node("Softmax", "x", "t", axis=-1), node("Mul", "t t")], (1, 3, 6), tolerance=0.01
    ),
    "softmax_opset_11": Case(
        [node("Softmax", "x", "t", axis=1), node("Mul", "t t")], (1, 2, 3), tolerance=0.01, opset=11
    ),
    "max": Case(
        [node("Relu", "x", "t"), node("Neg", "t", "s"), node("Max", "x s c")],
        IMAGE,
        {"c": np.array([-0.7], np.float32)},
    ),
    "min": Case(
        [node("Neg", "x", "t"), node("Min", "x t c")], IMAGE, {"c": np.array([0.7], np.float32)}
    ),
    "max_pool": Case([node("MaxPool", "x", kernel_shape=[2, 2], strides=[2, 2])], IMAGE),
    "max_pool_padded": Case(
        [node("MaxPool", "x", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])], IMAGE
    ),
    "max_pool_rectangular": Case(
        [node("MaxPool", "x", kernel_shape=[3, 2], strides=[1, 2])], IMAGE
    ),
    "max_pool_batch": Case([node("MaxPool", "x", kernel_shape=[2, 2])], (2, 3, 4, 4)),
    "max_pool_1d": Case([node("MaxPool", "x", kernel_shape=[2], strides=[2])], (1, 3, 8)),
    "max_pool_ceil_without_effect": Case(
        [node("MaxPool", "x", kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1)], IMAGE
    ),
    "average_pool": Case([node("AveragePool", "x", kernel_shape=[2, 2], strides=[2, 2])], IMAGE),
    "average_pool_rectangular": Case(
        [node("AveragePool", "x", kernel_shape=[3, 2], strides=[1, 2])], IMAGE
    ),
    "average_pool_counting_pads": Case(
        [node("AveragePool", "x", kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1)],
        IMAGE,
    ),
    "average_pool_uneven_pads": Case(
        [node("AveragePool", "x", kernel_shape=[2, 2], pads=[0, 0, 1, 1], count_include_pad=1)],
        IMAGE,
    ),
    "global_average_pool": Case([node("GlobalAveragePool", "x")], IMAGE),
    "global_max_pool": Case([node("GlobalMaxPool", "x")], (1, 2, 3, 3)),
    "reduce_mean": Case([node("ReduceMean", "x", axes=[1], keepdims=1)], IMAGE),
    "reduce_sum": Case(
        [node("ReduceSum", "x a", keepdims=0)], IMAGE, {"a": np.array([2, 3], np.int64)}
    ),
    "reduce_max": Case([node("ReduceMax", "x", axes=[1], keepdims=0)], (1, 3, 4, 4)),
    "layer_norm": Case(
        [node("LayerNormalization", "x g h")],
        (1, 4, 8),
        {"g": draw(8) + 1, "h": draw(8)},
        tolerance=0.02,
    ),
    "flatten": Case([node("Flatten", "x")], (2, 3, 4, 4)),
    "reshape": Case([node("Reshape", "x s")], IMAGE, {"s": np.array([1, -1, 16], np.int64)}),
    "squeeze": Case([node("Squeeze", "x a")], (1, 3, 1, 8), {"a": np.array([2], np.int64)}),
    "unsqueeze": Case([node("Unsqueeze", "x a")], (1, 8), {"a": np.array([1], np.int64)}),
    "transpose": Case([node("Transpose", "x")], (2, 3, 4)),
    "concat": Case([node("Relu", "x", "t"), node("Concat", "x t", axis=1)], IMAGE),
    "concat_constant": Case([node("Concat", "c x", axis=1)], (1, 4), {"c": draw(1, 2)}),
    "slice": Case(
        [node("Slice", "x s e a p")],
        IMAGE,
        {
            "s": np.array([1, 7], np.int64),
            "e": np.array([8, 0], np.int64),
            "a": np.array([2, 3], np.int64),
            "p": np.array([2, -3], np.int64),
        },
    ),
    "split": Case(
        [
            node("Split", "x n", "t s", axis=1),
            node("Concat", "s t", axis=1),
        ],
        (1, 5, 3),
        {"n": np.array([2, 3], np.int64)},
    ),
    "gather": Case([node("Gather", "x i", axis=1)], IMAGE, {"i": np.array([2, 0], np.int64)}),
    "gather_scalar": Case([node("Gather", "x i", axis=1)], IMAGE, {"i": np.array(1, np.int64)}),
    "pad": Case(
        [node("Pad", "x p v")],
        IMAGE,
        {"p": np.array([0, 1, 0, 2, 0, 0, 3, 0], np.int64), "v": np.float32(0.5)},
    ),
    "expand": Case([node("Expand", "x s")], (1, 3, 1), {"s": np.array([1, 3, 4], np.int64)}),
    "identity_and_cast": Case(
        [node("Identity", "x", "t"), node("Cast", "t", "s", to=1), node("Relu", "s")], IMAGE
    ),
    "squeeze_and_excite": Case(
        [
            node("GlobalAveragePool", "x", "p"),
            node("Conv", "p w", "q"),
            node("Sigmoid", "q", "s"),
            node("Mul", "x s"),
        ],
        IMAGE,
        {"w": draw(3, 3, 1, 1)},
        tolerance=0.01,
    ),
}


@pytest.fixture(scope="module")
def traced(crypten: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with every case's output, computed in one process."""
    folder = tmp_path_factory.mktemp("traces")
    for name, case in CASES.items():
        onnx.save(case.model(), str(folder / f"{name}.onnx"))
        np.save(folder / f"{name}.npy", case.image())
    done = subprocess.run(
        [sys.executable, "-m", "tests.unit.crypten.tracing", str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("name", CASES)
def test_the_result_is_onnxruntimes(traced: Path, name: str) -> None:
    case = CASES[name]
    failed = traced / f"{name}.error"
    assert not failed.exists(), failed.read_text()
    found = np.load(traced / f"{name}.out.npy")
    expected = plaintext(case.model(), case.image())
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= case.tolerance


def test_every_operator_has_a_case() -> None:
    """Above, so that no operator is taken that nobody has compared."""
    covered = {one.op_type for case in CASES.values() for one in case.nodes}
    assert set(TABLE) <= covered


REFUSED: dict[str, tuple[Case, str]] = {
    "erf": (Case([node("Erf", "x")], IMAGE), "odd powers"),
    "fifth power": (Case([node("Pow", "x p")], IMAGE, {"p": np.float32(5)}), "exponents 2 and 3"),
    "average without its pads": (
        Case([node("AveragePool", "x", kernel_shape=[3, 3], pads=[1, 1, 1, 1])], IMAGE),
        "counts the padding",
    ),
    "ceil_mode with a further window": (
        Case([node("MaxPool", "x", kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1)], IMAGE),
        "ceil_mode adds a window",
    ),
    "uneven pads of a maximum": (
        Case([node("MaxPool", "x", kernel_shape=[2, 2], pads=[0, 0, 1, 1])], IMAGE),
        "uneven padding",
    ),
    "pads of a maximum that differ": (
        Case([node("MaxPool", "x", kernel_shape=[3, 2], pads=[1, 0, 1, 0])], IMAGE),
        "confuses height and width",
    ),
    "three dimensions": (
        Case([node("MaxPool", "x", kernel_shape=[2, 2, 2])], (1, 2, 4, 4, 4)),
        "3 spatial dimensions",
    ),
    "division by zero": (
        Case([node("Div", "x c")], IMAGE, {"c": np.array([0.0], np.float32)}),
        "division by zero",
    ),
    "a constant beyond the ring": (
        Case([node("Mul", "x c")], IMAGE, {"c": np.array([1e9], np.float32)}),
        "reaches 1e+09",
    ),
    "reflection": (
        Case(
            [node("Pad", "x p", mode="reflect")],
            IMAGE,
            {"p": np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64)},
        ),
        "padding mode 'reflect'",
    ),
    "an unknown operator": (Case([node("Elu", "x")], IMAGE), "no such operator"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_crypten_gets_wrong_is_refused(name: str) -> None:
    case, reason = REFUSED[name]
    with pytest.raises(UnsupportedModelError, match="remedy") as caught:
        translate(case.model())
    assert reason in str(caught.value)


def test_all_problems_are_reported_at_once() -> None:
    model = make_model([node("Erf", "x", "t"), node("Elu", "x", "s"), node("Add", "t s")], IMAGE)
    with pytest.raises(UnsupportedModelError) as caught:
        translate(model)
    assert len(caught.value.problems) == 2


def test_the_last_activation_goes_to_the_data_owner() -> None:
    model = make_model([node("Flatten", "x", "t"), node("Softmax", "t")], IMAGE)
    translated = translate(model)
    assert (translated.task, translated.output) == ("multiclass", "t")
    assert translated.program.operations[-1].name == "reshape"


def test_unused_values_are_not_computed() -> None:
    """A folded batch norm leaves the convolution without it behind."""
    translated = translate(CASES["batch_norm_folded"].model())
    names = [operation.name for operation in translated.program.operations]
    assert names.count("conv") == 1
    assert len(translated.constants) == names.count("constant") == 2
