"""The floor under an inference: what its kernels and its bytes take on this machine by themselves.

Three parts, added up, so no overlap between them is assumed:

* linear: the model's own maps, each applied once to random ring words of its input's shape;
* comparisons: the Relu gates' online halves, model owner's and data owner's added up, at the rate
  of a layer of 2^18 elements in memory with as many tables as the model's, times the model's;
* transfer: the online payload of both directions by the rate at which frames of a block's size
  cross gRPC with mutual TLS between two processes on loopback (:mod:`benchmarks.wire_rate`).

Each is the fastest of several repeats, on one thread. Left out are truncations, sums, slices,
masks, waiting, round trips, and all that is prepared before the image exists.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks import wire_rate
from benchmarks.record import Record
from radiopaque.engine.local import LocalDeployment
from radiopaque.gates import plan_cost
from radiopaque.gates.linear_maps import linear_maps
from radiopaque.graph.plan import Input, Output, Plan, Relu, Step
from radiopaque.graph.weights import Weights
from radiopaque.prg import SecretKey, Streams
from radiopaque.ring import ring_dtype
from radiopaque.telemetry import Span, recorder

ELEMENTS = 1 << 18
_LAYER_REPEATS = 9
_MAP_REPEATS = 3
_RELU = 1
"""The Relu's place in the plan of one layer."""


@dataclass(frozen=True)
class Floor:
    """Seconds of one inference's online phase that nothing but faster kernels can save."""

    linear_seconds: float
    model_owner_seconds: float
    """Of comparisons."""
    data_owner_seconds: float
    """Of comparisons."""
    transfer_seconds: float

    @property
    def seconds(self) -> float:
        """All parts, one after the other."""
        return (
            self.linear_seconds
            + self.model_owner_seconds
            + self.data_owner_seconds
            + self.transfer_seconds
        )

    def record(self, plan: Plan) -> Record:
        """Seconds, and the rates that they were computed from."""
        cost = plan_cost(plan)
        moved = cost.to_model_owner_bytes + cost.to_data_owner_bytes
        gates = max(1, cost.comparisons)
        return {
            "floor_seconds": self.seconds,
            "linear_seconds": self.linear_seconds,
            "model_owner_comparison_seconds": self.model_owner_seconds,
            "data_owner_comparison_seconds": self.data_owner_seconds,
            "transfer_seconds": self.transfer_seconds,
            "multiply_adds_per_second": cost.multiply_adds / self.linear_seconds,
            "model_owner_seconds_per_comparison": self.model_owner_seconds / gates,
            "data_owner_seconds_per_comparison": self.data_owner_seconds / gates,
            "bytes_per_second": moved / self.transfer_seconds,
        }


def measure(plan: Plan, weights: Weights, folder: Path) -> Floor:
    """The floor of a compiled model. Makes ``folder`` for the certificates of the transfer."""
    cost = plan_cost(plan)
    moved = cost.to_model_owner_bytes + cost.to_data_owner_bytes
    model_owner, data_owner = comparison_seconds(plan)
    return Floor(
        linear_seconds(plan, weights),
        model_owner,
        data_owner,
        moved / wire_rate.bytes_per_second(folder),
    )


def linear_seconds(plan: Plan, weights: Weights) -> float:
    """Applying every linear map of the model once, one after the other."""
    dtype = ring_dtype(plan.ring_bits)
    words = Streams(SecretKey.generate(), bytes(32), bytes(16), "data-owner")
    total = 0.0
    for number, linear_map in linear_maps(plan, weights.linear.items()).items():
        shape = plan.steps[plan.steps[number].inputs[0]].shape
        x = words.words(number, "floor", shape, dtype)
        total += min(_timed(partial(linear_map, x)) for _ in range(_MAP_REPEATS))
    return total


def comparison_seconds(plan: Plan) -> tuple[float, float]:
    """All comparisons online, (model owner, data owner), at the rates of :func:`layer_seconds`."""
    sizes: Counter[int] = Counter()
    gates: dict[int, Relu] = {}
    for step in plan.steps:
        if isinstance(step.gate, Relu):
            sizes[step.gate.chunks] += step.size
            gates.setdefault(step.gate.chunks, step.gate)
    model_owner = data_owner = 0.0
    for chunks, size in sizes.items():
        each = layer_seconds(gates[chunks], plan.ring_bits)
        model_owner += each[0] * size / ELEMENTS
        data_owner += each[1] * size / ELEMENTS
    return model_owner, data_owner


def layer_seconds(gate: Relu, ring_bits: int) -> tuple[float, float]:
    """A Relu gate's online halves on :data:`ELEMENTS` elements: (model owner, data owner).

    All three parties are in this process; sending and waiting do not count.
    """
    deployment = LocalDeployment(_one_layer(gate, ring_bits), Weights({}, {}))
    image = np.linspace(-1.0, 1.0, ELEMENTS).reshape(1, 1, 1, ELEMENTS)
    times = []
    try:
        for _ in range(_LAYER_REPEATS):
            spans = recorder.start()
            deployment.infer(image)
            times.append([_own_seconds(spans, activity) for activity in ("evaluate", "answer")])
    finally:
        recorder.stop()
    model_owner, data_owner = np.min(times, axis=0)
    return float(model_owner), float(data_owner)


def _one_layer(gate: Relu, ring_bits: int) -> Plan:
    """Image, Relu, result; the image's values fit into what the gate opens."""
    shape = (1, 1, 1, ELEMENTS)
    before = gate.opened_bits - 3
    after = before - gate.shift
    steps = (
        Step(Input(), (), shape, before, limit=1 << before),
        Step(gate, (0,), shape, after, limit=1 << after),
        Step(Output(gate.compared_bits + 1, 0), (_RELU,), shape, after, limit=1 << after),
    )
    return Plan(ring_bits, "one layer", "1", steps)


def _own_seconds(spans: Sequence[Span], activity: str) -> float:
    """A party's time at the Relu, less what it spent sending and waiting there."""
    own = [span for span in spans if (span.activity, span.gate) == (activity, _RELU)]
    inner = [
        span
        for span in spans
        if (span.thread, span.gate) == (own[0].thread, _RELU) and span.activity in ("send", "wait")
    ]
    return (_sum(own) - _sum(inner)) / 1e9


def _sum(spans: Sequence[Span]) -> int:
    return sum(span.end - span.begin for span in spans)


def _timed(function: Callable[[], object]) -> float:
    began = time.perf_counter()
    function()
    return time.perf_counter() - began
