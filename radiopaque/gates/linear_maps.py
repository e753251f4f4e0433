"""The linear maps of gates with secret weights, exact in the ring.

The same map is applied with three different weight tensors: W by the model owner, the mask B by
the crypto provider and F = W - B by the data owner. It is linear in its weights too, which is what
makes F*A + B*A = W*A.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from radiopaque.graph.plan import Convolution, Linear, MatrixProduct, Plan
from radiopaque.kernels.convolution import PackedConvolution, PackedMatrix
from radiopaque.kernels.workers import ALONE, Workers
from radiopaque.ring import RingArray

LinearMap = Callable[[RingArray], RingArray]


def linear_map(gate: Linear, weights: RingArray, workers: Workers = ALONE) -> LinearMap:
    """The map x -> weights * x of one gate; weights are packed once for the kernels.

    ``workers`` share the work of a call. The time of W's maps, and so the model owner's, depends on
    whether all weights of a gate fit 16 bits (:class:`PackedConvolution`); that of the masks B and
    F, on shapes alone.
    """
    if isinstance(gate, Convolution):
        return PackedConvolution(weights, gate, workers=workers)
    if isinstance(gate, MatrixProduct):
        return PackedMatrix(weights, workers=workers)
    return _Elementwise(weights)


class _Elementwise:
    """x -> weights * x with broadcasting."""

    def __init__(self, weights: RingArray) -> None:
        self._weights = weights

    def __call__(self, x: RingArray) -> RingArray:
        return x * self._weights

    def __repr__(self) -> str:
        return f"<elementwise map, weights {list(self._weights.shape)} {self._weights.dtype}>"


def linear_maps(
    plan: Plan, weights: Mapping[int, RingArray], workers: Workers = ALONE
) -> dict[int, LinearMap]:
    """The maps of all linear gates of a plan, by gate number; see :func:`linear_map`."""
    maps = {}
    for number, _ in plan.weight_shapes():
        gate = plan.steps[number].gate
        maps[number] = linear_map(gate, weights[number], workers)  # type: ignore[arg-type]
    return maps
