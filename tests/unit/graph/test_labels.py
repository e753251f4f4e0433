"""Label-only outputs: the right label, and nothing else of the scores."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from radiopaque.errors import ManifestError, UnsupportedModelError
from radiopaque.graph import plan as p
from radiopaque.graph.compile import Compiled, compile_model
from radiopaque.wire.plans import decode_plan, encode_plan
from tests.unit.graph.support import (
    assert_within_limits,
    compile_for,
    gates,
    make_model,
    node,
    rng,
    run_plan,
)


def scores(x: np.ndarray, activation: str, matrix: np.ndarray | None = None) -> onnx.ModelProto:
    """A model whose scores are x times a matrix, by default the identity."""
    weights = np.eye(x.shape[1]) if matrix is None else matrix
    nodes = [node("MatMul", "x w", "s"), node(activation, "s")]
    return make_model(nodes, x.shape, {"w": weights})


def labels(x: np.ndarray, activation: str, ring_bits: int = 32) -> tuple[Compiled, np.ndarray]:
    compiled = compile_for(scores(x, activation), x, ring_bits, labels_only=True)
    assert_within_limits(compiled, x)
    return compiled, run_plan(compiled, x)


@pytest.mark.parametrize("ring_bits", [32, 64])
@pytest.mark.parametrize("classes", [2, 3, 5, 8, 14])
def test_the_largest_score_has_the_label(classes: int, ring_bits: int) -> None:
    x = np.asarray(rng(classes).normal(scale=6, size=(40, classes)), np.float32)
    x[1] = -np.abs(x[1])
    x[2] = np.abs(x[2])
    _, found = labels(x, "Softmax", ring_bits)
    expected = np.zeros_like(found)
    expected[np.arange(40), x.argmax(axis=1)] = 1
    # settling rounds: scores that are closer than two units are one score
    unit = 2.0**-6
    apart = np.sort(x, axis=1)[:, -1] - np.sort(x, axis=1)[:, -2] > unit
    assert apart.sum() > 35
    assert (found[apart] == expected[apart]).all()
    assert (found.sum(axis=1) == 1).all()


def test_equal_scores_give_one_label() -> None:
    """The first of them, whatever their number: a tie would tell more than a label."""
    x = np.array([[4, 4, 4, 4, 4], [0, 0, 0, 0, 0], [1, 3, 3, 2, 3]], np.float32)
    _, found = labels(x, "Softmax", 64)
    assert (found.sum(axis=1) == 1).all()
    # where nothing is rounded the first one wins
    assert np.isin(found, (0, 1)).all()


def test_a_score_wins_by_few_units() -> None:
    """Making scores distinct does not change their order: ranks weigh less than a unit."""
    x = np.full((20, 14), -8.0, np.float32)
    compiled, _ = labels(x, "Softmax")
    apart = next(step for step in compiled.plan.steps if step.gate == p.AddConstant((14,)))
    unit = 1 / float(apart.scale)
    x[:, 13] = 1
    x[:, 0] = 1 - 4 * unit
    found = run_plan(compiled, x)
    assert (found.argmax(axis=1) == 13).all()
    assert (found.sum(axis=1) == 1).all()


@pytest.mark.parametrize("ring_bits", [32, 64])
def test_multi_label(ring_bits: int) -> None:
    x = np.asarray(rng(4).normal(scale=5, size=(30, 6)), np.float32)
    _, found = labels(x, "Sigmoid", ring_bits)
    clear = np.abs(x) > 2.0**-6
    assert clear.mean() > 0.95
    assert (found[clear] == (x > 0)[clear]).all()
    assert np.isin(found, (0, 1)).all()


def test_what_is_revealed_is_two_bits_of_a_flag() -> None:
    x = np.asarray(rng(5).normal(size=(2, 3)), np.float32)
    compiled, found = labels(x, "Softmax")
    (output,) = gates(compiled, p.Output)
    assert (output.bits, output.position) == (2, 0)
    assert compiled.plan.output_step.limit == 1
    assert compiled.plan.labels_only
    assert compiled.plan.task == "multiclass"
    assert found.shape == (2, 3)
    again = decode_plan(encode_plan(compiled.plan))
    assert again.labels_only
    assert not compile_for(scores(x, "Softmax"), x, 32).plan.labels_only
    assert not compile_for(scores(x, "Softmax"), x, 32, output_bits=2).plan.labels_only


@pytest.mark.parametrize(("classes", "more"), [(2, 5), (3, 7), (5, 9), (14, 11)])
def test_round_trips(classes: int, more: int) -> None:
    """One to settle, two for each halving, two for the labels."""
    x = np.asarray(rng(6).normal(size=(1, classes)), np.float32)
    model = scores(x, "Softmax")
    plain = compile_for(model, x, 32).report
    assert (
        compile_for(model, x, 32, labels_only=True).report.round_trips - plain.round_trips == more
    )


def test_multi_label_takes_three_round_trips_more() -> None:
    x = np.asarray(rng(7).normal(size=(1, 9)), np.float32)
    model = scores(x, "Sigmoid")
    plain = compile_for(model, x, 32).report
    assert compile_for(model, x, 32, labels_only=True).report.round_trips == plain.round_trips + 3


def test_feature_maps_as_scores() -> None:
    """[n, c, 1, 1], as a network that ends in a pool gives them."""
    x = np.asarray(rng(8).normal(size=(2, 3, 4, 4)), np.float32)
    model = make_model([node("GlobalAveragePool", "x", "s"), node("Sigmoid", "s")], x.shape)
    compiled = compile_for(model, x, 32, labels_only=True)
    found = run_plan(compiled, x)
    assert found.shape == (2, 3, 1, 1)
    assert (found[..., 0, 0] == (x.mean(axis=(2, 3)) > 0)).all()


def test_a_task_is_needed() -> None:
    x = np.asarray(rng(9).normal(size=(1, 3)), np.float32)
    model = make_model([node("MatMul", "x w")], x.shape, {"w": np.eye(3)})
    with pytest.raises(ManifestError, match="key 'task'"):
        compile_model(model, ring_bits=64, labels_only=True)


def test_one_class_has_no_label() -> None:
    x = np.asarray(rng(9).normal(size=(2, 1)), np.float32)
    with pytest.raises(UnsupportedModelError, match="no label to choose"):
        compile_model(scores(x, "Softmax"), ring_bits=64, labels_only=True)
    _, found = labels(x, "Sigmoid")
    assert (found == (x > 0)).all()
