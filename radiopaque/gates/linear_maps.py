"""The linear maps of gates with secret weights, exact in the ring.

The same map is applied with three different weight tensors: W by the model owner, the mask B by
the crypto provider and F = W - B by the data owner. It is linear in its weights too, which is what
makes F*A + B*A = W*A.
"""

from __future__ import annotations

from collections.abc import Mapping

from radiopaque.graph.plan import LINEAR_GATES, Plan
from radiopaque.kernels.cpu import CPU
from radiopaque.kernels.device import Device, LinearMap
from radiopaque.ring import RingArray

__all__ = ["LinearMap", "linear_maps"]


def linear_maps(
    plan: Plan, weights: Mapping[int, RingArray], device: Device = CPU
) -> dict[int, LinearMap]:
    """The maps of all linear gates of a plan, by gate number, on arrays of a device.

    Weights are brought there and packed once for the kernels.
    """
    return {
        number: device.linear_map(step.gate, weights[number])
        for number, step in enumerate(plan.steps)
        if isinstance(step.gate, LINEAR_GATES)
    }
