"""The compiled engine."""

from __future__ import annotations

from math import prod
from pathlib import Path

from benchmarks.case import Case, Inputs, Tell
from benchmarks.deployment import Hosted
from benchmarks.engines import parties
from benchmarks.errors import NotAvailableError
from benchmarks.record import Part
from radiopaque.cli.reports import largest_value_bytes
from radiopaque.engine.weights_file import write_compiled
from radiopaque.gates import plan_cost
from radiopaque.graph.compile import compile_model
from radiopaque.graph.plan import Plan


def measure(case: Case, inputs: Inputs, folder: Path, tell: Tell, *, ring_bits: int) -> Part:
    """See :class:`benchmarks.case.Engine`."""
    if case.device != "cpu":
        raise NotAvailableError("the compiled engine has no GPU path yet")
    if case.threads != 1:
        raise NotAvailableError(
            "the compiled engine computes an inference on one thread a party; "
            "several inferences run at once with --concurrency"
        )
    tell("compiling")
    return parties.measure(case, inputs, folder, tell, _compile(case, inputs, folder, ring_bits))


def _compile(case: Case, inputs: Inputs, folder: Path, ring_bits: int) -> Hosted:
    source = inputs.source
    compiled = compile_model(
        source.onnx,
        manifest=source.manifest,
        ring_bits=ring_bits,
        batch=None if case.batch == 1 else case.batch,
    )
    plan = compiled.plan
    write_compiled(folder / "compiled", plan, compiled.weights)
    return hosted(plan, folder / "compiled")


def hosted(plan: Plan, folder: Path) -> Hosted:
    """What is known of a plan before it runs."""
    cost = plan_cost(plan)
    words = sum(prod(shape) for _, shape in plan.weight_shapes())
    return Hosted(
        plan.name,
        folder,
        "compiled",
        predicted=cost,
        gates=[type(step.gate).__name__ for step in plan.steps],
        timed=True,
        known={
            "one_way_delays": 2 * cost.round_trips,
            "comparisons": cost.comparisons,
            "multiply_adds": cost.multiply_adds,
            "weight_bytes": words * (plan.ring_bits // 8),
            "largest_value_bytes": largest_value_bytes(plan),
        },
    )
