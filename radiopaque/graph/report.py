"""What the compiler says about a plan before anything is run: shapes, ranges, scales, windows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import log2
from typing import TYPE_CHECKING, Any

from radiopaque.graph import plan as p
from radiopaque.graph.draft import Interval, Op

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True)
class Row:
    """One step. ``tensor`` is the ONNX tensor that it computes or helps to compute.

    ``range`` is the calibrated one, None where the tensor has none. ``limit`` is the largest
    absolute real value that the step may take; ``free_bits`` is log2 of window over limit.
    """

    number: int
    gate: str
    tensor: str
    shape: tuple[int, ...]
    range: Interval | None
    limit: float
    fraction_bits: int
    divisor: int
    opened_bits: int | None
    shift: int | None
    compared_bits: int | None
    free_bits: float | None


@dataclass(frozen=True)
class Report:
    """All steps and the totals that the round trips and the traffic follow from."""

    name: str
    version: str
    ring_bits: int
    batch: int
    margin: float
    calibrated: bool
    rows: tuple[Row, ...]
    linear_gates: int
    truncate_gates: int
    relu_gates: int
    remask_gates: int
    truncations: int
    comparisons: int
    round_trips: int
    output_bits: int
    output_position: int

    def to_dict(self) -> dict[str, Any]:
        """For ``--json``: the fields under their names, tuples as lists."""
        return asdict(self)


def make_report(
    plan: p.Plan,
    ops: Sequence[Op],
    sources: Sequence[int],
    ranges: Mapping[str, Interval] | None,
    margin: float,
) -> Report:
    """The report of a plan whose step i came from ``ops[sources[i]]``."""
    rows = tuple(
        _row(plan, number, step, ops[sources[number]], ranges)
        for number, step in enumerate(plan.steps)
    )
    output = plan.output_step.gate
    if not isinstance(output, p.Output):
        raise TypeError("the last step of a plan is its output")
    return Report(
        name=plan.name,
        version=plan.version,
        ring_bits=plan.ring_bits,
        batch=plan.batch if plan.input_step.shape else 1,
        margin=margin,
        calibrated=ranges is not None,
        rows=rows,
        linear_gates=_count(plan, p.LINEAR_GATES),
        truncate_gates=_count(plan, (p.Truncate,)),
        relu_gates=_count(plan, (p.Relu,)),
        remask_gates=_count(plan, (p.Remask,)),
        truncations=_elements(plan, p.Truncate),
        comparisons=_elements(plan, p.Relu),
        round_trips=1 + _count(plan, (p.Truncate,)) + 2 * _count(plan, (p.Relu,)),
        output_bits=output.bits,
        output_position=output.position,
    )


def _count(plan: p.Plan, gates: tuple[type, ...]) -> int:
    return sum(isinstance(step.gate, gates) for step in plan.steps)


def _elements(plan: p.Plan, gate: type) -> int:
    return sum(step.size for step in plan.steps if isinstance(step.gate, gate))


def _row(
    plan: p.Plan, number: int, step: p.Step, op: Op, ranges: Mapping[str, Interval] | None
) -> Row:
    gate = step.gate
    opened = shift = compared = None
    free = None
    if isinstance(gate, p.Relu | p.Truncate):
        opened, shift = gate.opened_bits, gate.shift
        window = 1 << (opened - 1 if isinstance(gate, p.Relu) else opened - 2)
        free = log2(window / plan.steps[step.inputs[0]].limit)
    if isinstance(gate, p.Relu):
        compared = gate.compared_bits
    return Row(
        number=number,
        gate=type(gate).__name__,
        tensor=op.origin,
        shape=step.shape,
        range=(ranges or {}).get(op.tensor),
        limit=float(step.limit / step.scale),
        fraction_bits=step.fraction_bits,
        divisor=step.divisor,
        opened_bits=opened,
        shift=shift,
        compared_bits=compared,
        free_bits=free,
    )


def render(report: Report, console: Console) -> None:
    """Print the report as a table and its totals."""
    from rich.table import Table

    table = Table(title=f"{report.name} {report.version}, {report.ring_bits}-bit ring")
    for heading in ("step", "gate", "tensor", "shape", "range", "limit", "scale", "window"):
        table.add_column(heading, justify="left" if heading in ("gate", "tensor") else "right")
    for row in report.rows:
        table.add_row(
            str(row.number),
            row.gate,
            row.tensor,
            "x".join(str(size) for size in row.shape),
            "" if row.range is None else f"{row.range[0]:.3g} .. {row.range[1]:.3g}",
            f"{row.limit:.4g}",
            f"2^{row.fraction_bits}" + (f" x {row.divisor}" if row.divisor > 1 else ""),
            _window(row),
        )
    console.print(table)
    source = f"margin {report.margin:g} x calibrated" if report.calibrated else "assumed ranges"
    console.print(
        f"{report.linear_gates} linear gates, {report.truncate_gates} truncations and "
        f"{report.relu_gates} comparison layers, {report.round_trips} round trips; "
        f"{report.truncations:,} truncated and {report.comparisons:,} compared elements; {source}; "
        f"each output reveals {report.output_bits} bits"
    )


def _window(row: Row) -> str:
    if row.opened_bits is None:
        return ""
    compared = "" if row.compared_bits is None else f", {row.compared_bits} compared"
    return f"{row.opened_bits} bits >> {row.shift}{compared}, {row.free_bits:.1f} free"
