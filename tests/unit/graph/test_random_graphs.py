"""Random networks: branches that meet, moves between products, pools of what is not truncated."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.graph.support import assert_matches, make_model, node, rng

OPERATORS = (
    "Conv", "Depthwise", "Relu", "Norm", "MaxPool", "AveragePool", "Uneven", "Plus", "Sub",
    "Concat", "Slice", "Pad", "Mul", "Clip", "Transpose", "Mean", "Leaky", "Max", "Bias",
)  # fmt: skip
CHANNELS = 3


class Builder:
    """Every value is [2, 3, n, n] for some n, so that any operator may follow any other."""

    def __init__(self, seed: int) -> None:
        self.random = rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, Any] = {}
        self.values = [("x", 6)]

    def constant(self, value: Any) -> str:
        name = f"c{len(self.constants)}"
        self.constants[name] = value
        return name

    def add(self, op: str, inputs: str, **attributes: Any) -> str:
        name = f"v{len(self.nodes)}"
        self.nodes.append(node(op, inputs, name, **attributes))
        return name

    def weights(self, *shape: int) -> str:
        return self.constant(self.random.normal(size=shape) / 3)

    def apply(self, operator: str) -> None:
        name, size = self.values[
            self.random.integers(max(0, len(self.values) - 4), len(self.values))
        ]
        others = [value for value, n in self.values if n == size]
        other = others[self.random.integers(len(others))]
        result = getattr(self, operator.lower())(name, other, size)
        self.values.append(result if isinstance(result, tuple) else (result, size))

    def conv(self, x: str, _: str, __: int) -> str:
        return self.add("Conv", f"{x} {self.weights(3, 3, 3, 3)}", pads=[1, 1, 1, 1])

    def depthwise(self, x: str, _: str, __: int) -> str:
        return self.add("Conv", f"{x} {self.weights(3, 1, 3, 3)}", pads=[1, 1, 1, 1], group=3)

    def relu(self, x: str, _: str, __: int) -> str:
        return self.add("Relu", x)

    def norm(self, x: str, _: str, __: int) -> str:
        names = [self.constant(self.random.uniform(0.5, 1.5, 3)) for _ in range(4)]
        return self.add("BatchNormalization", " ".join([x, *names]))

    def maxpool(self, x: str, _: str, __: int) -> str:
        return self.add("MaxPool", x, kernel_shape=[3, 2], pads=[1, 0, 1, 1])

    def averagepool(self, x: str, _: str, size: int) -> tuple[str, int]:
        pads = [1, 1, 1, 1] if size < 4 else [0, 0, 0, 0]
        attributes = {"kernel_shape": [3, 3], "pads": pads, "count_include_pad": 1}
        return self.add("AveragePool", x, **attributes), size if size < 4 else size - 2

    def uneven(self, x: str, _: str, __: int) -> str:
        return self.add("AveragePool", x, kernel_shape=[3, 3], pads=[1, 1, 1, 1])

    def plus(self, x: str, other: str, _: int) -> str:
        return self.add("Add", f"{x} {other}")

    def sub(self, x: str, other: str, _: int) -> str:
        return self.add("Sub", f"{x} {other}")

    def max(self, x: str, other: str, _: int) -> str:
        return self.add("Max", f"{x} {other}")

    def concat(self, x: str, other: str, _: int) -> str:
        both = self.add("Concat", f"{x} {other}", axis=1)
        return self.add("Conv", f"{both} {self.weights(3, 6, 1, 1)}")

    def slice(self, x: str, _: str, size: int) -> tuple[str, int]:
        start, end, axes = (self.constant(np.array(v)) for v in ([0, 0], [4, 4], [2, 3]))
        return self.add("Slice", f"{x} {start} {end} {axes}"), min(size, 4)

    def pad(self, x: str, _: str, size: int) -> tuple[str, int]:
        if size > 7:
            return x, size
        pads = self.constant(np.array([0, 0, 1, 0, 0, 0, 0, 1]))
        return self.add("Pad", f"{x} {pads} {self.constant(np.array(0.5))}"), size + 1

    def mul(self, x: str, _: str, __: int) -> str:
        return self.add("Mul", f"{x} {self.weights(3, 1, 1)}")

    def bias(self, x: str, _: str, __: int) -> str:
        return self.add("Add", f"{x} {self.weights(3, 1, 1)}")

    def clip(self, x: str, _: str, __: int) -> str:
        return self.add(
            "Clip", f"{x} {self.constant(np.array(-0.5))} {self.constant(np.array(1.0))}"
        )

    def leaky(self, x: str, _: str, __: int) -> str:
        return self.add("LeakyRelu", x, alpha=0.2)

    def transpose(self, x: str, _: str, __: int) -> str:
        return self.add("Transpose", x, perm=[0, 1, 3, 2])

    def mean(self, x: str, _: str, size: int) -> str:
        shape = self.constant(np.array([2, CHANNELS, size, size]))
        return self.add("Expand", f"{self.add('GlobalAveragePool', x)} {shape}")

    def model(self) -> onnx.ModelProto:
        return make_model(
            self.nodes, (2, CHANNELS, 6, 6), self.constants, outputs=(self.values[-1][0],)
        )


@pytest.mark.parametrize(("ring_bits", "tolerance"), [(32, 2.0**-6), (64, 2.0**-11)])
@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**32),
    operators=st.lists(st.sampled_from(OPERATORS), min_size=2, max_size=10),
)
def test_random_graph(ring_bits: int, tolerance: float, seed: int, operators: list[str]) -> None:
    builder = Builder(seed)
    for operator in operators:
        builder.apply(operator)
    if not builder.nodes:
        return
    x = rng(seed).normal(size=(2, CHANNELS, 6, 6)).astype(np.float32)
    assert_matches(builder.model(), x, ring_bits, tolerance)
