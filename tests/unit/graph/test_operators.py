"""Every operator and its attributes: compiled, run under secret sharing, against onnxruntime."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import pytest

from radiopaque.graph import plan as p
from tests.unit.graph.support import (
    OPSET,
    assert_matches,
    gate_names,
    gates,
    make_model,
    node,
    rng,
)

IMAGE = (2, 4, 9, 8)
SIGNAL = (2, 4, 11)
COARSE = 2.0**-10
"""Relative error allowed in the 32-bit ring; 11 fraction bits, weights of 13."""


@dataclass(frozen=True)
class Case:
    """One model: nodes from "x" to "y"."""

    name: str
    nodes: list[onnx.NodeProto]
    shape: tuple[int, ...] = IMAGE
    constants: dict[str, Any] = field(default_factory=dict)
    opset: int = OPSET

    def model(self) -> onnx.ModelProto:
        return make_model(self.nodes, self.shape, self.constants, self.opset)


def normal(*shape: int, seed: int = 1) -> Any:
    return rng(seed).normal(size=shape)


def conv(
    name: str,
    weights: tuple[int, ...],
    shape: tuple[int, ...] = IMAGE,
    bias: bool = True,
    **attributes: Any,
) -> Case:
    constants = {"w": normal(*weights), "b": normal(weights[0], seed=2)}
    inputs = "x w b" if bias else "x w"
    return Case(name, [node("Conv", inputs, **attributes)], shape, constants)


CONVOLUTIONS = [
    conv("plain", (5, 4, 3, 3)),
    conv("no bias", (5, 4, 3, 3), bias=False),
    conv("one by one", (5, 4, 1, 1)),
    conv("stride and padding", (5, 4, 3, 3), strides=[2, 3], pads=[1, 2, 1, 2]),
    conv("uneven padding", (5, 4, 3, 2), pads=[2, 0, 1, 1]),
    conv("dilation", (5, 4, 3, 2), dilations=[2, 3]),
    conv("groups", (6, 2, 3, 3), group=2, pads=[1, 1, 1, 1]),
    conv("depthwise", (4, 1, 3, 3), group=4, strides=[2, 2]),
    conv("depthwise with multiplier", (8, 1, 3, 3), group=4),
    conv("SAME_UPPER", (3, 4, 3, 4), auto_pad="SAME_UPPER", strides=[2, 2]),
    conv("SAME_LOWER", (3, 4, 3, 4), auto_pad="SAME_LOWER", strides=[2, 3]),
    conv("VALID", (3, 4, 4, 3), auto_pad="VALID", strides=[2, 1]),
    conv("signal", (5, 4, 3), SIGNAL),
    conv(
        "signal with everything",
        (6, 2, 3),
        SIGNAL,
        strides=[2],
        pads=[2, 1],
        dilations=[2],
        group=2,
    ),
    conv("signal SAME_LOWER", (3, 4, 4), SIGNAL, auto_pad="SAME_LOWER", strides=[2]),
]

MATRICES = [
    Case("gemm", [node("Gemm", "x w b")], (3, 5), {"w": normal(5, 4), "b": normal(4)}),
    Case("gemm without bias", [node("Gemm", "x w")], (3, 5), {"w": normal(5, 4)}),
    Case(
        "gemm with all attributes",
        [node("Gemm", "x w b", alpha=0.5, beta=-2.0, transA=1, transB=1)],
        (5, 3),
        {"w": normal(4, 5), "b": normal(3, 1)},
    ),
    Case(
        "gemm with constant left factor",
        [node("Gemm", "w x b", alpha=2.0)],
        (5, 3),
        {"w": normal(4, 5), "b": normal(1)},
    ),
    Case(
        "gemm with transposed constant left factor",
        [node("Gemm", "w x", transA=1, transB=1)],
        (3, 5),
        {"w": normal(5, 4)},
    ),
    Case(
        "gemm plus tensor",
        [node("Relu", "x", "c"), node("Gemm", "x w c")],
        (4, 4),
        {"w": normal(4, 4)},
    ),
    Case("matmul", [node("MatMul", "x w")], (2, 3, 5), {"w": normal(5, 4)}),
    Case("matmul of a signal and a vector", [node("MatMul", "x w")], (2, 3, 5), {"w": normal(5)}),
    Case("matmul from the left", [node("MatMul", "w x")], (2, 3, 5), {"w": normal(4, 3)}),
    Case("matmul vector from the left", [node("MatMul", "w x")], (2, 3, 5), {"w": normal(3)}),
    Case("matmul of a vector", [node("MatMul", "x w")], (5,), {"w": normal(5, 4)}),
    Case("matmul with unit batch", [node("MatMul", "x w")], (3, 5), {"w": normal(1, 1, 5, 4)}),
]

AFFINE = [
    Case(
        "batch norm",
        [node("BatchNormalization", "x s b m v", epsilon=0.01)],
        IMAGE,
        {"s": normal(4), "b": normal(4), "m": normal(4), "v": rng(3).uniform(0.5, 2, 4)},
    ),
    Case(
        "batch norm of vectors",
        [node("BatchNormalization", "x s b m v")],
        (3, 4),
        {"s": normal(4), "b": normal(4), "m": normal(4), "v": rng(3).uniform(0.5, 2, 4)},
    ),
    Case("add constant", [node("Add", "x c")], IMAGE, {"c": normal(4, 1, 1)}),
    Case("add from the left", [node("Add", "c x")], (4, 1), {"c": normal(3, 4, 5)}),
    Case("subtract constant", [node("Sub", "x c")], IMAGE, {"c": normal(8)}),
    Case("subtract from constant", [node("Sub", "c x")], IMAGE, {"c": normal(1)}),
    Case("multiply", [node("Mul", "x c")], IMAGE, {"c": normal(4, 1, 1)}),
    Case("multiply from the left", [node("Mul", "c x")], (4, 1), {"c": normal(2, 4, 5)}),
    Case("divide", [node("Div", "x c")], IMAGE, {"c": rng(1).uniform(0.5, 2, (9, 1))}),
    Case("negate", [node("Neg", "x")]),
    Case(
        "tensors of other shapes",
        [
            node("GlobalAveragePool", "x", "g"),
            node("Relu", "x", "r"),
            node("Add", "g r", "a"),
            node("Sub", "a x", "d"),
            node("Sum", "d x c r"),
        ],
        IMAGE,
        {"c": normal(4, 1, 1)},
    ),
    Case("sum of one", [node("Sum", "x")]),
    Case("double", [node("Add", "x x")]),
]

ACTIVATIONS = [
    Case("relu", [node("Relu", "x")]),
    Case("relu6", [node("Clip", "x lo hi")], IMAGE, {"lo": np.float32(0), "hi": np.float32(6)}),
    Case("clip", [node("Clip", "x lo hi")], IMAGE, {"lo": np.float32(-1), "hi": np.float32(0.5)}),
    Case("clip below", [node("Clip", "x lo")], IMAGE, {"lo": np.float32(-0.7)}),
    Case("clip above", [node("Clip", "x _ hi")], IMAGE, {"hi": np.float32(0.7)}),
    Case(
        "clip nowhere",
        [
            node("Clip", "x"),
        ],
        IMAGE,
    ),
    Case(
        "clip by the largest float",
        [node("Clip", "x lo hi")],
        IMAGE,
        {"lo": np.float32(0), "hi": np.finfo(np.float32).max},
    ),
    Case("leaky relu", [node("LeakyRelu", "x", alpha=0.1)]),
    Case("prelu", [node("PRelu", "x s")], IMAGE, {"s": normal(4, 1, 1)}),
    Case("max with constant", [node("Max", "x c")], IMAGE, {"c": normal(4, 1, 1)}),
    Case("min with constant", [node("Min", "c x")], IMAGE, {"c": normal(8)}),
    Case("max of tensors", [node("Neg", "x", "n"), node("Max", "x n c")], IMAGE, {"c": normal(1)}),
    Case("min of tensors", [node("Neg", "x", "n"), node("Min", "x n")]),
]

MOVEMENTS = [
    Case("flatten", [node("Flatten", "x", axis=2)]),
    Case("reshape", [node("Reshape", "x s")], IMAGE, {"s": np.array([0, -1, 6])}),
    Case("squeeze", [node("Squeeze", "x a")], (2, 1, 3, 1), {"a": np.array([1, -1])}),
    Case("unsqueeze", [node("Unsqueeze", "x a")], (2, 3), {"a": np.array([0, -1])}),
    Case("transpose", [node("Transpose", "x", perm=[3, 0, 2, 1])]),
    Case("reverse axes", [node("Transpose", "x")]),
    Case("expand", [node("Expand", "x s")], (2, 1, 3), {"s": np.array([4, 1, 5, 1])}),
    Case(
        "slice",
        [node("Slice", "x s e a t")],
        IMAGE,
        {
            "s": np.array([1, -7, 0]),
            "e": np.array([4, -1, 9999]),
            "a": np.array([1, -2, 3]),
            "t": np.array([2, 3, 1]),
        },
    ),
    Case(
        "slice backwards",
        [node("Slice", "x s e a t")],
        IMAGE,
        {"s": np.array([-1]), "e": np.array([0]), "a": np.array([2]), "t": np.array([-2])},
    ),
    Case("gather one", [node("Gather", "x i", axis=1)], IMAGE, {"i": np.array(-1)}),
    Case("gather some", [node("Gather", "x i", axis=2)], IMAGE, {"i": np.array([[5, 0], [2, 2]])}),
    Case(
        "split and concatenate",
        [node("Split", "x n", "a b", axis=1), node("Concat", "b x a", axis=-3)],
        IMAGE,
        {"n": np.array([1, 3])},
    ),
    Case(
        "pad",
        [node("Pad", "x p c")],
        IMAGE,
        {"p": np.array([0, 1, 0, 2, 1, 0, 3, 0]), "c": np.float32(-1.5)},
    ),
    Case("crop and pad", [node("Pad", "x p")], IMAGE, {"p": np.array([0, -1, 0, 2, 0, 0, -3, 1])}),
]

POOLS = [
    Case("max", [node("MaxPool", "x", kernel_shape=[2, 2], strides=[2, 2])]),
    Case(
        "max with padding",
        [node("MaxPool", "x", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])],
    ),
    Case(
        "max dilated",
        [node("MaxPool", "x", kernel_shape=[3, 2], dilations=[2, 3], pads=[1, 0, 0, 1])],
    ),
    Case(
        "max with ceil_mode",
        [node("MaxPool", "x", kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1)],
    ),
    Case("max of five", [node("MaxPool", "x", kernel_shape=[5, 1], strides=[1, 1])]),
    Case("max in blocks", [node("MaxPool", "x", kernel_shape=[4, 5], strides=[4, 5])]),
    Case(
        "max SAME_UPPER",
        [node("MaxPool", "x", kernel_shape=[3, 2], strides=[2, 2], auto_pad="SAME_UPPER")],
    ),
    Case(
        "max of a signal",
        [node("MaxPool", "x", kernel_shape=[3], strides=[2], pads=[1, 0])],
        SIGNAL,
    ),
    Case("max of one", [node("MaxPool", "x", kernel_shape=[1, 1], strides=[2, 2])]),
    Case(
        "relu and max",
        [node("Relu", "x", "r"), node("MaxPool", "r", kernel_shape=[2, 2], strides=[2, 2])],
    ),
    Case(
        "relu and overlapping max",
        [node("Relu", "x", "r"), node("MaxPool", "r", kernel_shape=[2, 2], pads=[1, 1, 0, 0])],
    ),
    Case("average", [node("AveragePool", "x", kernel_shape=[3, 2], strides=[2, 2])]),
    Case(
        "average without padding",
        [node("AveragePool", "x", kernel_shape=[3, 3], pads=[1, 1, 1, 1])],
    ),
    Case(
        "average with padding",
        [node("AveragePool", "x", kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1)],
    ),
    Case(
        "average with ceil_mode",
        [node("AveragePool", "x", kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1)],
    ),
    Case(
        "average with padding and ceil_mode",
        [
            node(
                "AveragePool",
                "x",
                kernel_shape=[3, 3],
                strides=[2, 2],
                pads=[1, 1, 1, 1],
                ceil_mode=1,
                count_include_pad=1,
            )
        ],
    ),
    Case(
        "average dilated",
        [node("AveragePool", "x", kernel_shape=[2, 3], dilations=[2, 2])],
        opset=19,
    ),
    Case(
        "average of a signal",
        [node("AveragePool", "x", kernel_shape=[3], strides=[2], pads=[1, 1])],
        SIGNAL,
    ),
    Case(
        "average SAME_LOWER",
        [node("AveragePool", "x", kernel_shape=[2, 3], strides=[2, 2], auto_pad="SAME_LOWER")],
    ),
    Case("global average", [node("GlobalAveragePool", "x")]),
    Case("global average of a signal", [node("GlobalAveragePool", "x")], SIGNAL),
    Case("global max", [node("GlobalMaxPool", "x")]),
    Case("mean over space", [node("ReduceMean", "x", axes=[2, 3], keepdims=0)]),
    Case("mean over other axes", [node("ReduceMean", "x", axes=[0, -2])]),
    Case("mean of all", [node("ReduceMean", "x", keepdims=0)]),
    Case("sum", [node("ReduceSum", "x a", keepdims=0)], IMAGE, {"a": np.array([1, 3])}),
    Case("sum of nothing", [node("ReduceSum", "x", noop_with_empty_axes=1)]),
    Case("max over axes", [node("ReduceMax", "x", axes=[1, 2])]),
]

CASES = CONVOLUTIONS + MATRICES + AFFINE + ACTIVATIONS + MOVEMENTS + POOLS


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_fine(case: Case) -> None:
    """64-bit ring: all but rounding at 16 fraction bits."""
    assert_matches(case.model(), (3 * normal(*case.shape, seed=7)).astype(np.float32))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_coarse(case: Case) -> None:
    """32-bit ring: the windows and scales that every bit counts in."""
    x = (3 * normal(*case.shape, seed=8)).astype(np.float32)
    assert_matches(case.model(), x, ring_bits=32, tolerance=COARSE)


def test_max_pool_pairs_of_a_round_share_one_layer() -> None:
    """Five candidates: two pairs, one pair and one left over, one pair: three layers."""
    nodes = [node("MaxPool", "x", kernel_shape=[5, 1])]
    compiled = assert_matches(make_model(nodes, IMAGE), normal(*IMAGE).astype(np.float32))
    shapes = [step.shape for step in compiled.plan.steps if isinstance(step.gate, p.Relu)]
    assert shapes == [(4, 4, 5, 8), (2, 4, 5, 8), (2, 4, 5, 8)]


def test_max_pool_goes_before_relu_only_where_that_pays() -> None:
    """With stride 1 the pooled tensor is as large as the other: ReLU first, no truncation."""
    relu = node("Relu", "c", "r")
    constants = {"w": normal(4, 4, 3, 3)}
    first = [node("Conv", "x w", "c"), relu, node("MaxPool", "r", kernel_shape=[2, 2])]
    x = normal(*IMAGE).astype(np.float32)
    overlapping = assert_matches(make_model(first, IMAGE, constants), x)
    assert not gates(overlapping, p.Truncate)
    second = [*first[:2], node("MaxPool", "r", kernel_shape=[2, 2], strides=[2, 2])]
    apart = assert_matches(make_model(second, IMAGE, constants), x)
    kinds = [name for name in gate_names(apart) if name in ("Relu", "Truncate")]
    assert kinds == ["Truncate", "Relu", "Relu", "Relu"]
    assert [step.size for step in apart.plan.steps if isinstance(step.gate, p.Relu)][-1] == 72


def test_an_average_costs_nothing_but_a_divisor() -> None:
    compiled = assert_matches(
        make_model([node("AveragePool", "x", kernel_shape=[3, 3])], IMAGE),
        normal(*IMAGE).astype(np.float32),
    )
    assert gate_names(compiled) == ["WindowSum"]
    assert compiled.plan.steps[1].divisor == 9


def test_both_halves_of_relu6_are_one_layer() -> None:
    constants = {"lo": np.float32(0), "hi": np.float32(6)}
    compiled = assert_matches(
        make_model([node("Clip", "x lo hi")], IMAGE, constants),
        (9 * normal(*IMAGE)).astype(np.float32),
    )
    assert compiled.report.relu_gates == 1
    assert compiled.report.round_trips == 3
