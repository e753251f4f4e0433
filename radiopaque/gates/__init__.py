"""The gates: one file per gate, its three halves side by side.

``halves(gate)`` finds the implementation of a plan's gate; there is no other registry.
"""

from __future__ import annotations

from radiopaque.gates.base import Gate, GateCost, Site, sites
from radiopaque.gates.ends import InputGate, OutputGate, RemaskGate
from radiopaque.gates.linear import LinearGate
from radiopaque.gates.local import LocalGate
from radiopaque.gates.relu import ReluGate
from radiopaque.gates.truncate import TruncateGate
from radiopaque.graph import plan as p

_LOCAL = LocalGate()
_LINEAR = LinearGate()
_HALVES: dict[type, Gate] = {
    p.Input: InputGate(),
    p.Convolution: _LINEAR,
    p.MatrixProduct: _LINEAR,
    p.Multiply: _LINEAR,
    p.AddConstant: _LOCAL,
    p.Combine: _LOCAL,
    p.Reshape: _LOCAL,
    p.Transpose: _LOCAL,
    p.Slice: _LOCAL,
    p.Pad: _LOCAL,
    p.Concatenate: _LOCAL,
    p.Expand: _LOCAL,
    p.WindowSum: _LOCAL,
    p.Remask: RemaskGate(),
    p.Truncate: TruncateGate(),
    p.Relu: ReluGate(),
    p.Output: OutputGate(),
}


def halves(gate: p.Gate) -> Gate:
    """The three halves of a plan's gate."""
    return _HALVES[type(gate)]


def plan_cost(plan: p.Plan) -> GateCost:
    """Payload bytes, round trips and work of one inference, known before anything runs."""
    total = GateCost()
    for site in sites(plan):
        total += halves(site.step.gate).cost(site)
    return total


__all__ = ["Gate", "GateCost", "Site", "halves", "plan_cost", "sites"]
