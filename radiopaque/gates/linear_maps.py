"""The linear maps of gates with secret weights, exact in the ring.

The same map is applied with three different weight tensors: W by the model owner, the mask B by
the crypto provider and F = W - B by the data owner. It is linear in its weights too, which is what
makes F*A + B*A = W*A.
"""

from __future__ import annotations

from collections.abc import Iterable

from radiopaque.graph.plan import LINEAR_GATES, Plan
from radiopaque.kernels.cpu import CPU
from radiopaque.kernels.device import Device, LinearMap
from radiopaque.ring import RingArray

__all__ = ["LinearMap", "linear_maps"]


def linear_maps(
    plan: Plan, weights: Iterable[tuple[int, RingArray]], device: Device = CPU
) -> dict[int, LinearMap]:
    """The maps of linear gates of a plan, by gate number, on arrays of a device.

    ``weights`` are (gate, words), which are brought there and packed once for the kernels, one
    after the other, so that a generator need not hold them all.
    """
    maps = {}
    for number, words in weights:
        gate = plan.steps[number].gate
        if isinstance(gate, LINEAR_GATES):
            maps[number] = device.linear_map(gate, words)
    return maps
