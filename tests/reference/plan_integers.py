"""A plan on signed integers in the clear: every value of every step, truncation by floor.

No masks, no shares: what the parties' halves of each value must add up to, but for the rounding of
each truncation, which the protocol draws.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from radiopaque.graph import plan as p
from radiopaque.graph.weights import Weights

Integers = NDArray[np.int64]


def evaluate(plan: p.Plan, weights: Weights, images: NDArray[np.floating]) -> list[Integers]:
    """All values for real images, in plan order; the last is what the output gate is given."""
    values: list[Integers] = []
    for number, step in enumerate(plan.steps):
        operands = [values[i] for i in step.inputs]
        if isinstance(step.gate, p.Input):
            value = np.rint(images.astype(np.float64) * float(step.scale)).astype(np.int64)
        elif number in weights.linear:
            value = _linear(step.gate, _signed(weights.linear[number]), operands[0])
        elif number in weights.constants:
            value = operands[0] + _signed(weights.constants[number])
        else:
            value = _public(step, operands)
        values.append(_wrap(value, plan.ring_bits).reshape(step.shape))
    return values


def outputs(plan: p.Plan, weights: Weights, images: NDArray[np.floating]) -> NDArray[np.float64]:
    """The result in reals, all of its bits."""
    return evaluate(plan, weights, images)[-1] / float(plan.output_step.scale)


def _signed(words: NDArray[np.unsignedinteger]) -> Integers:
    kind = np.int32 if words.dtype == np.uint32 else np.int64
    return words.view(kind).astype(np.int64)


def _wrap(value: Integers, bits: int) -> Integers:
    shift = np.int64(64 - bits)
    return (value << shift) >> shift


def _linear(gate: p.Gate, weights: Integers, x: Integers) -> Integers:
    if isinstance(gate, p.MatrixProduct):
        return np.asarray(x @ weights)
    if isinstance(gate, p.Multiply):
        return x * weights
    assert isinstance(gate, p.Convolution)
    patches = _patches(x, gate)
    n, _, height, width = patches.shape[:4]
    out = []
    per_group = x.shape[1] // gate.groups
    for group, kernel in enumerate(np.split(weights, gate.groups)):
        taken = patches[:, group * per_group : (group + 1) * per_group]
        flat = taken.transpose(0, 2, 3, 1, 4).reshape(n * height * width, -1)
        product = flat @ kernel.reshape(len(kernel), -1).T
        out.append(product.reshape(n, height, width, -1).transpose(0, 3, 1, 2))
    return np.concatenate(out, axis=1)


def _patches(x: Integers, gate: p.Convolution | p.WindowSum) -> Integers:
    """[n, c, windows down, windows across, taps]."""
    top, left, bottom, right = gate.pads
    x = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)))
    spans = [(k - 1) * d + 1 for k, d in zip(gate.kernel, gate.dilations, strict=True)]
    windows = np.lib.stride_tricks.sliding_window_view(x, spans, axis=(2, 3))
    windows = windows[:, :, :: gate.strides[0], :: gate.strides[1]]
    windows = windows[..., :: gate.dilations[0], :: gate.dilations[1]]
    return windows.reshape(*windows.shape[:4], -1)


def _public(step: p.Step, operands: Sequence[Integers]) -> Integers:
    gate, first = step.gate, operands[0]
    if isinstance(gate, p.Combine):
        pairs = zip(gate.coefficients, operands, strict=True)
        return np.asarray(sum(c * v for c, v in pairs))
    if isinstance(gate, p.Transpose):
        return first.transpose(gate.permutation)
    if isinstance(gate, p.Slice):
        index = tuple(
            slice(start, start + (count - 1) * stride + 1, stride)
            for start, stride, count in zip(gate.starts, gate.strides, step.shape, strict=True)
        )
        return first[index]
    if isinstance(gate, p.Pad):
        around = tuple(zip(gate.before, gate.after, strict=True))
        return np.pad(first, around, constant_values=gate.value)
    if isinstance(gate, p.Concatenate):
        return np.concatenate(operands, gate.axis)
    if isinstance(gate, p.Expand):
        return np.broadcast_to(first, step.shape)
    if isinstance(gate, p.WindowSum):
        stacked = first.reshape(1, -1, *first.shape[-2:])
        return _patches(stacked, gate).sum(axis=-1)
    if isinstance(gate, p.Truncate):
        return first >> gate.shift
    if isinstance(gate, p.Relu):
        return np.maximum(first, 0) >> gate.shift
    assert isinstance(gate, p.Reshape | p.Remask | p.Output), f"no such gate: {gate}"
    return first
