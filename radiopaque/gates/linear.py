"""Linear gates with secret weights: convolution, matrix product, elementwise product.

Beaver triple (A, B, C) with A the input's mask, B the mask of the weights, C = B * A, where ``*``
is the gate's linear map.

* Setup, once per artefact: the data owner has F = W - B, the model owner W.
* Crypto provider: knows A and B; sends the model owner C_O = B * A - C_D.
* Data owner: S = F * A + C_D is its share of the output. Offline.
* Model owner: W * h + C_O. Online.

The sum is W * h + F * A + B * A = W * (h + A) = W * x.

Source: docs/protocol.md, section 4 (Beaver, CRYPTO 1991, with both operands masked beforehand).
Leaks: nothing; C_O is padded by C_D and stays at the model owner (with A it would give B).
Round trips: 0. Bytes: one ring word an output element, offline, crypto provider to model owner.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from radiopaque.errors import PlanError
from radiopaque.gates.base import (
    Dealing,
    Dealt,
    DeviceStreams,
    Evaluating,
    Gate,
    GateCost,
    Prepared,
    Preparing,
    Raw,
    Reach,
    Site,
)
from radiopaque.graph.bands import Rows
from radiopaque.graph.plan import Convolution, MatrixProduct, WindowSum
from radiopaque.kernels.device import Array


class LinearGate(Gate):
    """A convolution, matrix product or elementwise product with secret weights."""

    def cost(self, site: Site) -> GateCost:
        return GateCost(
            correction_bytes=site.step.size * site.dtype.itemsize,
            multiply_adds=_multiply_adds(site),
        )

    def reach(self, site: Site) -> Reach:
        return Reach.WINDOWS if isinstance(site.step.gate, Convolution) else Reach.ROWS

    def rows_needed(self, site: Site, bottom: int) -> int:
        gate = site.step.gate
        if not isinstance(gate, Convolution):
            raise TypeError(f"{type(gate).__name__} has no windows")
        return window_bottom(gate, bottom)

    def deal(self, context: Dealing, site: Site, masks: Sequence[Array | None]) -> Dealt:
        mask = masks[0]
        if mask is None:
            raise PlanError(
                f"gate {site.number} multiplies a value whose mask the crypto provider does not "
                "know; the plan needs a Remask before it: compile the model again"
            )
        product = context.maps[site.number](mask)
        product -= _share(context.data_owner, site)
        return Dealt(None, context.device.download(product))

    def prepare(self, context: Preparing, site: Site, masks: Sequence[Array]) -> Prepared:
        product = context.maps[site.number](masks[0])
        product += _share(context.streams, site)
        return Prepared(product)

    def load_evaluate(
        self, streams: DeviceStreams, site: Site, corrections: Raw, offline: Raw
    ) -> Array:
        return streams.device.upload(corrections.view(site.dtype).reshape(site.step.shape))

    def evaluate(
        self,
        context: Evaluating,
        site: Site,
        state: Array,
        values: Sequence[Array],
        rows: Rows | None = None,
    ) -> Array:
        product = context.maps[site.number](values[0], rows)
        product += state if rows is None else state[rows.where]
        return product


def window_bottom(gate: Convolution | WindowSum, bottom: int) -> int:
    """Where the windows of the first ``bottom`` rows end, in rows of the image."""
    reach = (gate.kernel[0] - 1) * gate.dilations[0] + 1
    return (bottom - 1) * gate.strides[0] + reach - gate.pads[0]


def _share(streams: DeviceStreams, site: Site) -> Array:
    """C_D, the data owner's share of B * A."""
    return streams.words(site.number, "product", site.step.shape, site.dtype)


def _multiply_adds(site: Site) -> int:
    gate = site.step.gate
    if isinstance(gate, Convolution):
        return site.step.size * prod(gate.kernel) * (site.operands[0].shape[1] // gate.groups)
    if isinstance(gate, MatrixProduct):
        return site.step.size * site.operands[0].shape[-1]
    return site.step.size
