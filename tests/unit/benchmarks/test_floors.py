"""Floors: what they are made of, on tiny models, and that the transport is really crossed."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import pytest

from benchmarks import floors, wire_rate
from benchmarks.errors import BenchmarkError
from benchmarks.models import choose, obtain
from radiopaque.gates import plan_cost
from radiopaque.graph.compile import compile_model
from radiopaque.graph.plan import Relu
from radiopaque.telemetry import Span, recorder


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(floors, "ELEMENTS", 1 << 10)
    monkeypatch.setattr(wire_rate, "_FRAMES", 2)


@pytest.mark.parametrize("ring_bits", [32, 64])
def test_the_floor_of_a_model(
    model_cache: None, small: None, tmp_path: Path, ring_bits: int
) -> None:
    source = obtain(choose("lenet"))
    compiled = compile_model(source.onnx, manifest=source.manifest, ring_bits=ring_bits)
    floor = floors.measure(compiled.plan, compiled.weights, tmp_path / "new")
    record = floor.record(compiled.plan)
    parts = ("linear", "model_owner_comparison", "data_owner_comparison", "transfer")
    assert all(record[f"{part}_seconds"] > 0 for part in parts)
    assert record["floor_seconds"] == sum(record[f"{part}_seconds"] for part in parts)
    # each rate times its amount is the part it was computed from
    cost = plan_cost(compiled.plan)
    assert cost.multiply_adds / record["multiply_adds_per_second"] == pytest.approx(
        record["linear_seconds"]
    )
    assert record["data_owner_seconds_per_comparison"] * cost.comparisons == pytest.approx(
        record["data_owner_comparison_seconds"]
    )
    moved = cost.to_model_owner_bytes + cost.to_data_owner_bytes
    assert moved / record["bytes_per_second"] == pytest.approx(record["transfer_seconds"])


def test_comparisons_cost_in_proportion(model_cache: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gates are measured once for each number of tables, and counted by their elements."""
    source = obtain(choose("lenet"))
    plan = compile_model(source.onnx, manifest=source.manifest).plan
    asked: list[int] = []

    def rate(gate: Relu, ring_bits: int) -> tuple[float, float]:
        asked.append(gate.chunks)
        return 2.0 * floors.ELEMENTS, 3.0 * floors.ELEMENTS

    monkeypatch.setattr(floors, "layer_seconds", rate)
    comparisons = plan_cost(plan).comparisons
    assert floors.comparison_seconds(plan) == (2.0 * comparisons, 3.0 * comparisons)
    assert len(asked) == len(set(asked))


@pytest.mark.parametrize(("opened_bits", "shift"), [(26, 7), (19, 0), (30, 7)])
def test_a_layer_by_itself(small: None, opened_bits: int, shift: int) -> None:
    model_owner, data_owner = floors.layer_seconds(Relu(opened_bits, shift), 32)
    assert 0 < model_owner < 1
    assert 0 < data_owner < 1
    # nothing is recorded any more
    assert isinstance(recorder.span("deal", 0), nullcontext)


def test_waiting_and_sending_are_not_the_gates_own() -> None:
    def span(activity: str, gate: int, begin: int, end: int, thread: int) -> Span:
        return Span(activity, gate, "", 0, begin, end, thread)  # type: ignore[arg-type]

    spans = [
        span("evaluate", 1, 1_000, 9_000, 1),
        span("wait", 1, 2_000, 5_000, 1),
        span("send", 1, 5_000, 6_000, 1),
        # another gate's, another party's
        span("wait", 0, 0, 1_000, 1),
        span("answer", 1, 1_000, 8_000, 2),
        span("wait", 1, 1_000, 7_000, 2),
    ]
    assert floors._own_seconds(spans, "evaluate") == pytest.approx(4e-6)
    assert floors._own_seconds(spans, "answer") == pytest.approx(1e-6)


def test_a_transport_that_does_not_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/bin/false")
    with pytest.raises(BenchmarkError, match="did not start"):
        wire_rate.bytes_per_second(tmp_path / "new")
