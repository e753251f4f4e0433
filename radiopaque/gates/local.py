"""Gates that each party applies to its own half, without communication.

They are linear with public coefficients, so m and h = v - m go through the same map. Public and
secret constants enter once: the model owner alone adds them.

Source: docs/protocol.md, section 7. Leaks: nothing. Round trips: 0. Bytes: 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from radiopaque.gates.base import Dealing, Dealt, Evaluating, Gate, Prepared, Preparing, Site
from radiopaque.graph import plan as p
from radiopaque.kernels.convolution import window_sum
from radiopaque.ring import RingArray


class LocalGate(Gate):
    """Any gate that is linear with public coefficients, constants included."""

    def deal(self, context: Dealing, site: Site, masks: Sequence[RingArray | None]) -> Dealt:
        known = [mask for mask in masks if mask is not None]
        if len(known) < len(masks):
            return Dealt(None)
        return Dealt(apply_local(site, known))

    def prepare(self, context: Preparing, site: Site, masks: Sequence[RingArray]) -> Prepared:
        return Prepared(apply_local(site, masks))

    def evaluate(
        self, context: Evaluating, site: Site, state: Any, values: Sequence[RingArray]
    ) -> RingArray:
        gate = site.step.gate
        if isinstance(gate, p.AddConstant):
            return values[0] + context.constants[site.number]
        if isinstance(gate, p.Pad):
            return _pad(gate, values[0], gate.value)
        return apply_local(site, values)


def apply_local(site: Site, values: Sequence[RingArray]) -> RingArray:
    """The homogeneous part of a local gate: constants count as zero."""
    gate, shape = site.step.gate, site.step.shape
    first = values[0]
    if isinstance(gate, p.AddConstant):
        return first
    if isinstance(gate, p.Combine):
        return _combine(gate.coefficients, values)
    if isinstance(gate, p.Reshape):
        return np.ascontiguousarray(first).reshape(shape)
    if isinstance(gate, p.Transpose):
        return np.ascontiguousarray(first.transpose(gate.permutation))
    if isinstance(gate, p.Slice):
        index = tuple(
            slice(start, start + (count - 1) * stride + 1, stride)
            for start, stride, count in zip(gate.starts, gate.strides, shape, strict=True)
        )
        return np.ascontiguousarray(first[index])
    if isinstance(gate, p.Pad):
        return _pad(gate, first, 0)
    if isinstance(gate, p.Concatenate):
        return np.concatenate(values, gate.axis)
    if isinstance(gate, p.Expand):
        return np.broadcast_to(first, shape).copy()
    if isinstance(gate, p.WindowSum):
        return window_sum(first, gate)
    raise TypeError(f"{type(gate).__name__} is not a local gate")


def _combine(coefficients: Sequence[int], values: Sequence[RingArray]) -> RingArray:
    word = values[0].dtype.type
    modulus = 1 << (8 * values[0].dtype.itemsize)
    total: RingArray | None = None
    for coefficient, value in zip(coefficients, values, strict=True):
        if total is None:
            total = value * word(coefficient % modulus) if coefficient != 1 else value.copy()
        elif coefficient == 1:
            total += value
        elif coefficient == -1:
            total -= value
        else:
            total += value * word(coefficient % modulus)
    if total is None:
        raise ValueError("a combination needs at least one input")
    return total


def _pad(gate: p.Pad, value: RingArray, constant: int) -> RingArray:
    widths = tuple(zip(gate.before, gate.after, strict=True))
    stored = value.dtype.type(constant % (1 << (8 * value.dtype.itemsize)))
    return np.pad(value, widths, constant_values=stored)
