"""The report says what the plan says."""

from __future__ import annotations

import io
import json

import numpy as np
from rich.console import Console

from radiopaque.graph import plan as p
from radiopaque.graph.compile import Compiled
from radiopaque.graph.report import render
from tests.unit.graph.support import compile_for, make_model, node, rng


def compiled() -> Compiled:
    nodes = [
        node("Conv", "x w", "c"),
        node("Relu", "c", "r"),
        node("MaxPool", "r", "p", kernel_shape=[2, 2], strides=[2, 2]),
        node("GlobalAveragePool", "p"),
    ]
    model = make_model(nodes, (1, 2, 10, 10), {"w": rng().normal(size=(3, 2, 3, 3))})
    return compile_for(
        model, rng(1).normal(size=(1, 2, 10, 10)).astype(np.float32), 32, output_bits=16
    )


def test_totals() -> None:
    report = compiled().report
    assert (report.linear_gates, report.truncate_gates, report.relu_gates) == (1, 1, 3)
    assert report.truncations == 3 * 8 * 8
    assert report.comparisons == 3 * (8 * 4 + 4 * 4 + 4 * 4)
    assert report.round_trips == 1 + 1 + 2 * 3
    assert report.output_bits <= 16
    assert report.calibrated


def test_rows_follow_the_steps() -> None:
    result = compiled()
    assert len(result.report.rows) == len(result.plan.steps)
    for number, (row, step) in enumerate(zip(result.report.rows, result.plan.steps, strict=True)):
        assert (row.number, row.gate, row.shape) == (number, type(step.gate).__name__, step.shape)
        assert row.limit == float(step.limit / step.scale)
    convolution, truncate = result.report.rows[1:3]
    assert convolution.tensor == "c"
    assert convolution.range is not None
    assert convolution.limit == 4 * max(abs(v) for v in convolution.range)
    gate = result.plan.steps[2].gate
    assert isinstance(gate, p.Truncate)
    assert (truncate.opened_bits, truncate.shift) == (gate.opened_bits, gate.shift)
    assert truncate.free_bits is not None
    assert 0 <= truncate.free_bits < 1
    assert {row.tensor for row in result.report.rows if row.gate == "Relu"} == {
        "p/before_relu",
        "p",
    }


def test_json() -> None:
    content = json.loads(json.dumps(compiled().report.to_dict()))
    assert content["round_trips"] == 8
    assert content["rows"][0]["gate"] == "Input"
    assert content["rows"][0]["shape"] == [1, 2, 10, 10]


def test_table() -> None:
    text = io.StringIO()
    render(compiled().report, Console(file=text, width=160))
    assert "Convolution" in text.getvalue()
    assert "18 compared" in text.getvalue()
    assert "8 round trips" in text.getvalue().replace("\n", " ")
