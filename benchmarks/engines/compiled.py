"""The compiled engine."""

from __future__ import annotations

from math import prod
from pathlib import Path

from benchmarks import floors
from benchmarks.case import Case, Inputs, Tell
from benchmarks.deployment import Hosted
from benchmarks.engines import parties
from benchmarks.errors import NotAvailableError
from benchmarks.network import LOOPBACK
from benchmarks.record import Part, Record
from radiopaque.cli.reports import largest_value_bytes
from radiopaque.engine.devices import open_device
from radiopaque.engine.names import DeviceName
from radiopaque.engine.weights_file import write_compiled
from radiopaque.errors import ConfigError
from radiopaque.gates import plan_cost
from radiopaque.graph.compile import compile_model
from radiopaque.graph.plan import Plan


def measure(case: Case, inputs: Inputs, folder: Path, tell: Tell, *, ring_bits: int) -> Part:
    """See :class:`benchmarks.case.Engine`."""
    accelerator = _accelerator(DeviceName(case.device))
    tell("compiling")
    hosted, floor = _compile(case, inputs, folder, ring_bits)
    part = parties.measure(case, inputs, folder, tell, hosted)
    part.accelerator = accelerator
    if floor is not None:
        part.floors.append(floor)
        seconds = floor["floor_seconds"]
        part.result["floor_seconds"] = seconds
        part.result["online_over_floor"] = part.result["online_seconds_median"] / seconds
    return part


def _accelerator(name: DeviceName) -> str | None:
    """The GPU's name. Raises NotAvailableError where parties could not use it."""
    if name is DeviceName.CPU:
        return None
    try:
        open_device(name)
    except ConfigError as error:
        raise NotAvailableError(str(error)) from None
    from torch.cuda import get_device_name

    return get_device_name()


def _compile(
    case: Case, inputs: Inputs, folder: Path, ring_bits: int
) -> tuple[Hosted, Record | None]:
    """The model as it is hosted, and its floor where nothing but the floor is in the way.

    Floors are those of the processor's kernels on one thread.
    """
    source = inputs.source
    compiled = compile_model(
        source.onnx,
        manifest=source.manifest,
        ring_bits=ring_bits,
        batch=None if case.batch == 1 else case.batch,
    )
    plan = compiled.plan
    write_compiled(folder / "compiled", plan, compiled.weights)
    floor = None
    alone = case.concurrency == case.threads == 1 and case.device == DeviceName.CPU
    if case.network == LOOPBACK and alone:
        floor = floors.measure(plan, compiled.weights, folder / "floor").record(plan)
    return hosted(plan, folder / "compiled"), floor


def hosted(plan: Plan, folder: Path) -> Hosted:
    """What is known of a plan before it runs."""
    cost = plan_cost(plan)
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
            "weight_bytes": weight_bytes(plan),
            "largest_value_bytes": largest_value_bytes(plan),
        },
    )


def weight_bytes(plan: Plan) -> int:
    """Of the secret weights, in ring words."""
    return sum(prod(shape) for _, shape in plan.weight_shapes()) * (plan.ring_bits // 8)
