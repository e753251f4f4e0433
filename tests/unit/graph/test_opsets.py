"""Operators whose form changed between opsets, in every opset that is supported."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from radiopaque.errors import UnsupportedOpsetError
from radiopaque.graph.compile import compile_model
from radiopaque.graph.onnx_file import NEWEST_OPSET, OLDEST_OPSET
from tests.unit.graph.support import assert_matches, make_model, node, rng


def network(opset: int) -> onnx.ModelProto:
    """Attributes became inputs: Squeeze, Unsqueeze, ReduceSum, Split in 13, reductions in 18."""
    constants: dict[str, Any] = {
        "w": rng(1).normal(size=(4, 3, 3, 3)),
        "s": rng(2).normal(size=4),
        "b": rng(3).normal(size=4),
        "m": rng(4).normal(size=4),
        "v": rng(5).uniform(0.5, 2, size=4),
        "lo": np.float32(0),
        "hi": np.float32(6),
        "pads": np.array([0, 0, 1, 0, 0, 0, 0, 1]),
        "starts": np.array([1]),
        "ends": np.array([4]),
        "axes": np.array([3]),
        "space": np.array([2, 3]),
        "one": np.array([1]),
        "halves": np.array([2, 2]),
        "shape": np.array([0, -1]),
        "ratio": np.float32(0.5),
        "fc": rng(6).normal(size=(2, 3)),
    }

    def axes(name: str, since: int) -> tuple[str, dict[str, Any]]:
        if opset >= since:
            return f" {name}", {}
        return "", {"axes": constants[name].tolist()}

    split = ("halves", {}) if opset >= 13 else ("", {"split": [2, 2]})
    mean, squeeze, total = axes("space", 18), axes("one", 13), axes("one", 13)
    nodes = [
        node("Pad", "x pads", "padded"),
        node("Conv", "padded w", "conv", pads=[1, 1, 1, 1]),
        node("BatchNormalization", "conv s b m v", "norm"),
        node("Clip", "norm lo hi", "relu6"),
        node("MaxPool", "relu6", "pool", kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1),
        node("Slice", "pool starts ends axes", "sliced"),
        node("Split", f"sliced {split[0]}", "left right", axis=1, **split[1]),
        node("Add", "left right", "added"),
        node("Unsqueeze", f"added{squeeze[0]}", "unsqueezed", **squeeze[1]),
        node("ReduceSum", f"unsqueezed{total[0]}", "summed", keepdims=0, **total[1]),
        node("Dropout", "summed ratio" if opset >= 12 else "summed", "dropped"),
        node("ReduceMean", f"dropped{mean[0]}", "mean", keepdims=1, **mean[1]),
        node("Reshape", "mean shape", "flat"),
        node("MatMul", "flat fc", "logits"),
        node("Softmax", "logits", "y", axis=1),
    ]
    return make_model(nodes, ("n", 3, 9, 8), constants, opset)


@pytest.mark.parametrize("opset", range(OLDEST_OPSET, NEWEST_OPSET + 1))
def test_every_opset(opset: int) -> None:
    model = network(opset)
    x = rng(9).normal(size=(2, 3, 9, 8)).astype(np.float32)
    logits = onnx.ModelProto()
    logits.CopyFrom(model)
    del logits.graph.node[-1:]
    logits.graph.output[0].name = "logits"
    logits.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 3
    assert_matches(logits, x, batch=2)
    assert compile_model(model, ring_bits=64).plan.task == "multiclass"


@pytest.mark.parametrize(
    "opset", [OLDEST_OPSET - 1, NEWEST_OPSET + 1, onnx.defs.onnx_opset_version()]
)
def test_other_opsets_are_refused(opset: int) -> None:
    model = make_model([node("Relu", "x")], (1, 2))
    model.opset_import[0].version = opset
    with pytest.raises(UnsupportedOpsetError, match=f"opset {opset}; opsets 11 to 26"):
        compile_model(model, ring_bits=64)


def test_the_newest_opset_runs_in_onnxruntime() -> None:
    """What the compiler accepts must also be what the plaintext comparison can run."""
    model = make_model([node("Relu", "x")], (1, 2), opset=NEWEST_OPSET)
    onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
