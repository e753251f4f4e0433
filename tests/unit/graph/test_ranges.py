"""Calibration measures what onnxruntime computes, for every tensor, over all batches."""

from __future__ import annotations

import numpy as np
import pytest

from radiopaque.errors import ModelFileError, TensorError
from radiopaque.graph.ranges import calibrate
from tests.unit.graph.support import OPSET, Floats, make_model, node, rng

SHAPE = ("n", 2, 4)


def model(opset: int = OPSET):  # type: ignore[no-untyped-def]
    nodes = [
        node("Exp", "c", "factor"),
        node("Mul", "x factor", "m"),
        node("Shape", "x", "s"),
        node("Relu", "m", "r"),
        node("Reshape", "r s"),
    ]
    return make_model(nodes, SHAPE, {"c": np.array([0.5])}, opset)


def batches(count: int = 3) -> list[Floats]:
    return [rng(i).normal(size=(i + 1, 2, 4)).astype(np.float32) for i in range(count)]


@pytest.mark.parametrize("opset", [11, 17, 18, 26])
def test_smallest_and_largest_over_all_batches(opset: int) -> None:
    found = calibrate(model(opset), batches())
    values = np.concatenate([b.reshape(-1) for b in batches()])
    scaled = values * np.float32(np.exp(np.float32(0.5)))
    assert set(found) == {"x", "m", "r", "y"}
    assert found["x"] == (values.min(), values.max())
    assert found["m"] == pytest.approx((scaled.min(), scaled.max()), rel=1e-6)
    assert found["r"] == found["y"] == pytest.approx((0, scaled.max()), rel=1e-6)


def test_batches_may_come_from_a_generator() -> None:
    assert calibrate(model(), iter(batches())) == calibrate(model(), batches())


def test_nothing_to_calibrate_with() -> None:
    with pytest.raises(TensorError, match="at least one image"):
        calibrate(model(), [])


def test_a_batch_of_another_shape() -> None:
    with pytest.raises(TensorError, match=r"batch \[1, 3, 4\]"):
        calibrate(model(), [np.zeros((1, 3, 4), np.float32)])


def test_a_batch_that_is_not_finite() -> None:
    with pytest.raises(TensorError, match="NaN or infinity"):
        calibrate(model(), [np.full((1, 2, 4), np.nan, np.float32)])


def test_a_model_that_onnxruntime_cannot_load() -> None:
    broken = model()
    broken.graph.node[3].op_type = "Rleu"
    with pytest.raises(ModelFileError):
        calibrate(broken, batches())
