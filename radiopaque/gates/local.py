"""Gates that each party applies to its own half, without communication.

They are linear with public coefficients, so m and h = v - m go through the same map. Public and
secret constants enter once: the model owner alone adds them.

Source: docs/protocol.md, section 7. Leaks: nothing. Round trips: 0. Bytes: 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from radiopaque.gates.base import Dealing, Dealt, Evaluating, Gate, Prepared, Preparing, Site
from radiopaque.graph import plan as p
from radiopaque.kernels.device import Array, Device


class LocalGate(Gate):
    """Any gate that is linear with public coefficients, constants included."""

    def deal(self, context: Dealing, site: Site, masks: Sequence[Array | None]) -> Dealt:
        known = [mask for mask in masks if mask is not None]
        if len(known) < len(masks):
            return Dealt(None)
        return Dealt(apply_local(context.device, site, known))

    def prepare(self, context: Preparing, site: Site, masks: Sequence[Array]) -> Prepared:
        return Prepared(apply_local(context.streams.device, site, masks))

    def evaluate(
        self, context: Evaluating, site: Site, state: Any, values: Sequence[Array]
    ) -> Array:
        gate, device = site.step.gate, context.device
        if isinstance(gate, p.AddConstant):
            return values[0] + context.constants[site.number]
        if isinstance(gate, p.Pad):
            return device.pad(values[0], gate.before, gate.after, gate.value)
        return apply_local(device, site, values)


def apply_local(device: Device, site: Site, values: Sequence[Array]) -> Array:
    """The homogeneous part of a local gate: constants count as zero."""
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
        index = tuple(
            slice(start, start + (count - 1) * stride + 1, stride)
            for start, stride, count in zip(gate.starts, gate.strides, shape, strict=True)
        )
        return device.contiguous(first[index])
    if isinstance(gate, p.Pad):
        return device.pad(first, gate.before, gate.after, 0)
    if isinstance(gate, p.Concatenate):
        return device.concatenate(values, gate.axis)
    if isinstance(gate, p.Expand):
        return device.broadcast(first, shape)
    if isinstance(gate, p.WindowSum):
        return device.window_sum(first, gate)
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
