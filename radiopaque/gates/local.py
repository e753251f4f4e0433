"""Gates that each party applies to its own half, without communication.

They are linear with public coefficients, so m and h = v - m go through the same map. Public and
secret constants enter once: the model owner alone adds them.

Source: docs/protocol.md, section 7. Leaks: nothing. Round trips: 0. Bytes: 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from radiopaque.gates.base import (
    Dealing,
    Dealt,
    Evaluating,
    Gate,
    Prepared,
    Preparing,
    Reach,
    Site,
)
from radiopaque.gates.linear import window_bottom
from radiopaque.graph import plan as p
from radiopaque.graph.bands import Rows, crossing, some_rows
from radiopaque.kernels.device import Array, Device


class LocalGate(Gate):
    """Any gate that is linear with public coefficients, constants included."""

    def reach(self, site: Site) -> Reach:
        gate, shapes = site.step.gate, {step.shape for step in site.operands}
        if isinstance(gate, p.AddConstant | p.Combine):
            return Reach.ROWS
        if isinstance(gate, p.Concatenate) and gate.axis == 1:
            return Reach.ROWS
        if isinstance(gate, p.WindowSum):
            return Reach.WINDOWS
        (shape,) = shapes if len(shapes) == 1 else ((),)
        if isinstance(gate, p.Slice | p.Pad) and shape[:1] == site.step.shape[:1]:
            return Reach.WINDOWS
        return Reach.WHOLE

    def rows_needed(self, site: Site, bottom: int) -> int:
        gate = site.step.gate
        if isinstance(gate, p.WindowSum):
            return window_bottom(gate, bottom)
        if isinstance(gate, p.Slice):
            return gate.starts[2] + (bottom - 1) * gate.strides[2] + 1
        if isinstance(gate, p.Pad):
            return bottom - gate.before[2]
        raise TypeError(f"{type(gate).__name__} has no windows")

    def deal(self, context: Dealing, site: Site, masks: Sequence[Array | None]) -> Dealt:
        known = [mask for mask in masks if mask is not None]
        if len(known) < len(masks):
            return Dealt(None)
        return Dealt(apply_local(context.device, site, known))

    def prepare(self, context: Preparing, site: Site, masks: Sequence[Array]) -> Prepared:
        return Prepared(apply_local(context.streams.device, site, masks))

    def evaluate(
        self,
        context: Evaluating,
        site: Site,
        state: Any,
        values: Sequence[Array],
        rows: Rows | None = None,
    ) -> Array:
        gate, device = site.step.gate, context.device
        if isinstance(gate, p.AddConstant):
            return values[0] + some_rows(context.constants[site.number], rows)
        if isinstance(gate, p.Pad):
            return _pad(device, gate, values[0], gate.value, rows)
        return apply_local(device, site, values, rows)


def apply_local(
    device: Device, site: Site, values: Sequence[Array], rows: Rows | None = None
) -> Array:
    """The homogeneous part of a local gate: constants count as zero. Rows as in evaluate."""
    gate, shape = site.step.gate, site.step.shape
    first = values[0]
    if isinstance(gate, p.AddConstant):
        return first
    if isinstance(gate, p.Combine):
        return _combine(device, gate.coefficients, values)
    if isinstance(gate, p.Reshape):
        return device.contiguous(first).reshape(shape)
    if isinstance(gate, p.Transpose):
        return device.transpose(first, gate.permutation)
    if isinstance(gate, p.Slice):
        places = [range(count) for count in shape]
        if rows is not None:
            places[0], places[2] = range(rows.first, rows.last), range(rows.top, rows.bottom)
        index = tuple(
            slice(start + place[0] * stride, start + place[-1] * stride + 1, stride)
            for start, stride, place in zip(gate.starts, gate.strides, places, strict=True)
        )
        return device.contiguous(first[index])
    if isinstance(gate, p.Pad):
        return _pad(device, gate, first, 0, rows)
    if isinstance(gate, p.Concatenate):
        return device.concatenate(values, gate.axis)
    if isinstance(gate, p.Expand):
        return device.broadcast(first, shape)
    if isinstance(gate, p.WindowSum):
        return device.window_sum(first, gate, rows)
    raise TypeError(f"{type(gate).__name__} is not a local gate")


def _combine(device: Device, coefficients: Sequence[int], values: Sequence[Array]) -> Array:
    total: Array | None = None
    for coefficient, value in zip(coefficients, values, strict=True):
        if total is None:
            total = device.scaled(value, coefficient)
        elif coefficient == 1:
            total += value
        elif coefficient == -1:
            total -= value
        else:
            total += device.scaled(value, coefficient)
    if total is None:
        raise ValueError("a combination needs at least one input")
    return total


def _pad(device: Device, gate: p.Pad, value: Array, constant: int, rows: Rows | None) -> Array:
    before, after = list(gate.before), list(gate.after)
    if rows is not None:
        start, stop = rows.top - before[2], rows.bottom - before[2]
        before[2], inside, after[2] = crossing(start, stop, value.shape[2])
        value = value[rows.first : rows.last, :, inside]
    return device.pad(value, before, after, constant)
