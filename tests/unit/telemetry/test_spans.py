"""Spans: off by default, named, nested, and of every gate and frame of a session."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest

from radiopaque.engine.local import LocalDeployment
from radiopaque.engine.material import region_sizes
from radiopaque.gates import plan_cost
from radiopaque.gates.schedule import schedule
from radiopaque.graph.plan import Plan
from radiopaque.telemetry import Span, recorder
from radiopaque.wire.frames import Kind
from tests.e2e.networks import Network, findings, lungs
from tests.e2e.parties import until

TO_MODEL_OWNER = {"IMAGE", "SELECTION", "RERANDOMISED"}


@pytest.fixture
def spans() -> Iterator[list[Span]]:
    yield recorder.start()
    recorder.stop()


def over(spans: list[Span], plan: Plan) -> bool:
    """Is the model owner done? Its last gate ends a moment after the data owner has its result."""
    last = len(plan.steps) - 1
    return any((span.activity, span.gate) == ("evaluate", last) for span in spans)


def test_nothing_is_kept_while_recording_is_off() -> None:
    kept = recorder.start()
    recorder.stop()
    with recorder.span("deal", 1):
        pass
    assert kept == []


def test_a_span_is_kept_when_its_block_fails(spans: list[Span]) -> None:
    with pytest.raises(ValueError, match="inside"), recorder.span("send", 3, "IMAGE", 10):
        raise ValueError("inside")
    (span,) = spans
    assert span[:4] == ("send", 3, "IMAGE", 10)
    assert span.begin <= span.end
    assert span.thread == threading.get_ident()


@pytest.mark.parametrize("network", [lungs(), findings()], ids=["lungs", "findings"])
def test_a_session_leaves_a_span_of_every_gate_and_frame(
    spans: list[Span], network: Network
) -> None:
    plan, cost = network.plan, plan_cost(network.plan)
    LocalDeployment(plan, network.weights).infer(network.images())
    gates = list(range(len(plan.steps)))
    until(lambda: over(spans, plan))
    order = schedule(plan)
    answered = [span.gate for span in spans if span.activity == "answer"]
    assert answered == [event.site.number for event in order.data_owner]
    evaluated = [span.gate for span in spans if span.activity == "evaluate"]
    assert set(evaluated) == set(gates)
    communicating = {event.site.number for event in order.model_owner}
    assert [gate for gate in evaluated if gate in communicating] == [
        event.site.number for event in order.model_owner
    ]
    for activity, kind in (("deal", Kind.CORRECTION), ("prepare", Kind.OFFLINE)):
        # nobody asks for what comes after the last region
        made = [span.gate for span in spans if span.activity == activity]
        assert made == gates[: len(made)]
        assert set(region_sizes(plan, kind)) <= set(made)
    # loaded by both the data owner and the model owner
    assert Counter(span.gate for span in spans if span.activity == "load") == dict.fromkeys(
        gates, 2
    )
    sent = [span for span in spans if span.activity == "send"]
    waited = [span for span in spans if span.activity == "wait"]
    assert sorted(span[1:4] for span in sent) == sorted(span[1:4] for span in waited)
    forth = sum(span.size for span in sent if span.kind in TO_MODEL_OWNER)
    back = sum(span.size for span in sent if span.kind not in TO_MODEL_OWNER)
    assert (forth, back) == (cost.to_model_owner_bytes, cost.to_data_owner_bytes)
    for name, size in (("CORRECTION", cost.correction_bytes), ("OFFLINE", cost.offline_bytes)):
        taken = [span.size for span in spans if span[0] == "accept" and span.kind == name]
        assert sum(taken) == size


def test_frames_lie_within_their_gate_and_on_its_thread(spans: list[Span]) -> None:
    network = lungs()
    LocalDeployment(network.plan, network.weights).infer(network.images())
    until(lambda: over(spans, network.plan))
    around: dict[tuple[int, int], list[Span]] = {}
    for span in spans:
        if span.activity in ("answer", "evaluate"):
            around.setdefault((span.thread, span.gate), []).append(span)
    frames = [span for span in spans if span.activity in ("send", "wait")]
    assert len({span.thread for span in frames}) == 2
    for span in frames:
        assert any(
            outer.begin <= span.begin <= span.end <= outer.end
            for outer in around[span.thread, span.gate]
        )


def test_spans_hold_names_and_sizes_alone(spans: list[Span]) -> None:
    network = lungs()
    LocalDeployment(network.plan, network.weights).infer(np.zeros(network.plan.input_step.shape))
    assert all(type(value) in (str, int) for span in spans for value in span)
    until(lambda: over(spans, network.plan))
    first = {span[:4] for span in spans}
    again = recorder.start()
    LocalDeployment(network.plan, network.weights).infer(network.images())
    until(lambda: {span[:4] for span in again} == first)
