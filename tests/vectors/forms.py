"""Plans between the production classes and the JSON of the vectors."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

from radiopaque.graph import plan as p

FOLDER = Path(__file__).parent

GATES = {
    re.sub(r"(?<!^)(?=[A-Z])", "_", kind.__name__).lower(): kind
    for kind in (
        p.Input,
        p.Convolution,
        p.MatrixProduct,
        p.Multiply,
        p.AddConstant,
        p.Combine,
        p.Reshape,
        p.Transpose,
        p.Slice,
        p.Pad,
        p.Concatenate,
        p.Expand,
        p.WindowSum,
        p.Remask,
        p.Truncate,
        p.Relu,
        p.Output,
    )
}
_KINDS = {kind: name for name, kind in GATES.items()}


def load(name: str) -> Any:
    """The content of one vector file."""
    return json.loads((FOLDER / f"{name}.json").read_text())


def plan_to_json(plan: p.Plan) -> dict[str, Any]:
    """A plan as JSON values."""
    out = dataclasses.asdict(plan)
    for step, entry in zip(plan.steps, out["steps"], strict=True):
        entry["gate"] = {"kind": _KINDS[type(step.gate)], **entry["gate"]}
    parsed: dict[str, Any] = json.loads(json.dumps(out))
    return parsed


def plan_from_json(data: dict[str, Any]) -> p.Plan:
    """The inverse of :func:`plan_to_json`."""
    fields = _tuples(data)
    steps = []
    for entry in data["steps"]:
        gate = _tuples(entry["gate"])
        kind = GATES[gate.pop("kind")]
        steps.append(p.Step(**(_tuples(entry) | {"gate": kind(**gate)})))
    fields["steps"] = tuple(steps)
    if data["preprocessing"]:
        fields["preprocessing"] = p.Preprocessing(**_tuples(data["preprocessing"]))
    if data["intended_use"]:
        fields["intended_use"] = p.IntendedUse(**_tuples(data["intended_use"]))
    return p.Plan(**fields)


def _tuples(data: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(v) if isinstance(v, list) else v for key, v in data.items()}


def dump(data: Any, depth: int = 0) -> str:
    """JSON that is stable and fits a diff: what fits a line stays on it."""
    flat = json.dumps(data)
    scalars = not isinstance(data, (list, dict)) or all(
        not isinstance(v, (list, dict)) for v in (data.values() if isinstance(data, dict) else data)
    )
    if len(flat) <= 96 - depth or (scalars and not isinstance(data, dict)) or not data:
        return flat
    inner = " " * (depth + 1)
    if isinstance(data, dict):
        lines = [f"{inner}{json.dumps(key)}: {dump(v, depth + 1)}" for key, v in data.items()]
        return "{\n" + ",\n".join(lines) + "\n" + " " * depth + "}"
    return "[\n" + ",\n".join(inner + dump(v, depth + 1) for v in data) + "\n" + " " * depth + "]"
