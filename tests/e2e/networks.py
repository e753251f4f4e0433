"""Small networks with secret weights, and what they compute in the clear with how far off the
protocol may be.

Every truncation may be one unit off, the output half a unit of its lowest revealed bit; those
errors are propagated through the weights at hand, so a comparison within the bound is as strict as
the protocol's promise.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from radiopaque.graph import plan as p
from radiopaque.graph.weights import Weights
from radiopaque.ring import ring_dtype, signed

Reals = NDArray[np.float64]
SIDE = 16
FRACTION_BITS = 8
INTENDED_USE = p.IntendedUse(
    ("CR", "DX"), ("CHEST",), (), (1.0, 5.0), "A network with random weights. Not for diagnosis."
)


@dataclass(frozen=True)
class Network:
    """A plan with its weights, as a vendor has them before it compiles them into a folder."""

    plan: p.Plan
    weights: Weights

    def offered_as(self, version: str) -> Network:
        """The same network under another version."""
        return replace(self, plan=replace(self.plan, version=version))

    def images(self, seed: int = 0) -> Reals:
        """Inputs in the range of preprocessed pictures."""
        shape = self.plan.input_step.shape
        return np.random.default_rng(seed).uniform(-2.0, 2.0, shape)

    def plaintext(self, images: NDArray[np.floating]) -> tuple[Reals, Reals]:
        """The outputs in the clear, and the largest error of each that the protocol may make."""
        return _plaintext(self, np.asarray(images, np.float64))


class Builder:
    """Collects steps with random weights; limits are the worst case of the weights drawn."""

    def __init__(self, ring_bits: int, batch: int, seed: int, compared_bits: int = 18) -> None:
        self.ring_bits = ring_bits
        self.compared_bits = compared_bits
        self.kept_bits = compared_bits - 2
        self.steps = [p.Step(p.Input(), (), (batch, 1, SIDE, SIDE), FRACTION_BITS, limit=1 << 10)]
        self._random = np.random.default_rng(seed)
        self._linear: dict[int, NDArray[np.int64]] = {}
        self._constants: dict[int, NDArray[np.int64]] = {}

    def add(
        self,
        gate: p.Gate,
        *inputs: int,
        shape: p.Shape,
        limit: int,
        bits: int,
        divisor: int | None = None,
    ) -> int:
        own = self.steps[inputs[0]].divisor if divisor is None else divisor
        self.steps.append(p.Step(gate, inputs, shape, bits, own, limit))
        return len(self.steps) - 1

    def convolution(self, value: int, channels: int, weight_bits: int = 5) -> int:
        """3 x 3, same size, with a bias; weights of ``weight_bits`` bits and a sign."""
        source = self.steps[value]
        n, c, h, w = source.shape
        shape = (n, channels, h, w)
        weights = self._draw((channels, c, 3, 3), weight_bits)
        limit = int(np.abs(weights).sum(axis=(1, 2, 3)).max()) * source.limit
        gate = p.Convolution(channels, (3, 3), pads=(1, 1, 1, 1))
        bits = source.fraction_bits + weight_bits
        linear = self.add(gate, value, shape=shape, limit=limit, bits=bits)
        self._linear[linear] = weights
        bias = self._draw((channels, 1, 1), bits - 1)
        limit += int(np.abs(bias).max())
        added = p.AddConstant(bias.shape)
        constant = self.add(added, linear, shape=shape, limit=limit, bits=bits)
        self._constants[constant] = bias
        return constant

    def relu(self, value: int, shift: int | None = None) -> int:
        source = self.steps[value]
        if shift is None:
            shift = max(0, source.limit.bit_length() - self.kept_bits)
        gate = p.Relu(self.compared_bits + 1 + shift, shift)
        limit = (source.limit >> shift) + 1
        bits = source.fraction_bits - shift
        return self.add(gate, value, shape=source.shape, limit=limit, bits=bits)

    def truncate(self, value: int, shift: int) -> int:
        source = self.steps[value]
        gate = p.Truncate(source.limit.bit_length() + 2, shift)
        limit = (source.limit >> shift) + 1
        bits = source.fraction_bits - shift
        return self.add(gate, value, shape=source.shape, limit=limit, bits=bits)

    def halve(self, value: int) -> int:
        """The larger of two neighbours along the last axis: max(a, b) = b + relu(a - b)."""
        source = self.steps[value]
        shape = (*source.shape[:-1], source.shape[-1] // 2)
        more: dict[str, Any] = {"shape": shape, "bits": source.fraction_bits}
        a, b = (
            self.add(p.Slice((0, 0, 0, start), (1, 1, 1, 2)), value, limit=source.limit, **more)
            for start in (0, 1)
        )
        difference = self.add(p.Combine((1, -1)), a, b, limit=2 * source.limit, **more)
        larger = self.relu(difference, 0)
        return self.add(p.Combine((1, 1)), b, larger, limit=source.limit, **more)

    def head(self, value: int, columns: int, weight_bits: int = 6) -> int:
        """Average over space, then a matrix product."""
        source = self.steps[value]
        n, c, h, w = source.shape
        area, bits = h * w, source.fraction_bits
        gate = p.WindowSum((h, w))
        limit = area * source.limit
        summed = self.add(gate, value, shape=(n, c, 1, 1), limit=limit, bits=bits, divisor=area)
        flat = self.add(p.Reshape(), summed, shape=(n, c), limit=limit, bits=bits)
        weights = self._draw((c, columns), weight_bits)
        limit *= int(np.abs(weights).sum(axis=0).max())
        bits += weight_bits
        product = p.MatrixProduct(columns)
        number = self.add(product, flat, shape=(n, columns), limit=limit, bits=bits)
        self._linear[number] = weights
        return number

    def finish(self, name: str, bits: int = 16, **more: object) -> Network:
        """Reveal the top ``bits`` bits of the last value."""
        last = self.steps[-1]
        position = max(0, last.limit.bit_length() + 1 - bits)
        output = p.Output(bits, position)
        number = len(self.steps) - 1
        self.add(output, number, shape=last.shape, limit=0, bits=last.fraction_bits)
        plan = p.Plan(self.ring_bits, name, "1", tuple(self.steps), **more)  # type: ignore[arg-type]
        word = ring_dtype(self.ring_bits)
        return Network(
            plan,
            Weights(
                {gate: array.astype(word) for gate, array in self._linear.items()},
                {gate: array.astype(word) for gate, array in self._constants.items()},
            ),
        )

    def _draw(self, shape: p.Shape, bits: int) -> NDArray[np.int64]:
        return self._random.integers(-(1 << bits), (1 << bits) + 1, shape)


def _preprocessing() -> p.Preprocessing:
    return p.Preprocessing(1, SIDE, SIDE, "stretch", "bilinear", (0.5,), (0.25,))


def lungs(seed: int = 1) -> Network:
    """k = 32, three classes: convolution, truncation, max-pool, ReLUs, average, product."""
    b = Builder(32, 1, seed)
    x = b.truncate(b.convolution(0, 4), 2)
    x = b.relu(b.halve(x))
    b.head(b.relu(b.convolution(x, 4, weight_bits=4)), 3)
    return b.finish(
        "lungs",
        classes=("normal", "bacterial", "viral"),
        task="multiclass",
        preprocessing=_preprocessing(),
        intended_use=INTENDED_USE,
    )


def findings(seed: int = 2) -> Network:
    """k = 64, four findings that exclude none of the others."""
    b = Builder(64, 1, seed, compared_bits=24)
    x = b.relu(b.convolution(0, 4, weight_bits=12))
    b.head(b.relu(b.convolution(x, 6, weight_bits=8)), 4)
    return b.finish(
        "findings",
        bits=24,
        classes=("effusion", "nodule", "fracture", "device"),
        task="multilabel",
        preprocessing=_preprocessing(),
    )


def stack(seed: int = 3) -> Network:
    """k = 32, three images at once, raw outputs without names."""
    b = Builder(32, 3, seed)
    b.head(b.relu(b.convolution(0, 3)), 5)
    return b.finish("stack", preprocessing=_preprocessing())


def wide(seed: int = 4) -> Network:
    """k = 32, enough comparisons that its material does not fit the buffers of a connection."""
    b = Builder(32, 16, seed)
    x = b.relu(b.convolution(0, 64))
    b.head(b.relu(b.convolution(x, 2, weight_bits=1)), 2, weight_bits=3)
    return b.finish("wide")


def _plaintext(network: Network, images: Reals) -> tuple[Reals, Reals]:
    plan, weights = network.plan, network.weights
    bits = plan.ring_bits
    stored = np.rint(images * float(plan.input_step.scale))
    values: list[tuple[Reals, Reals]] = []
    for number, step in enumerate(plan.steps):
        gate = step.gate
        operands = [values[i] for i in step.inputs]
        if isinstance(gate, p.Input):
            result = stored, np.zeros_like(stored)
        elif isinstance(gate, p.Convolution | p.MatrixProduct):
            w = signed(weights.linear[number], bits).astype(np.float64)
            function = _convolve if isinstance(gate, p.Convolution) else np.matmul
            value, error = operands[0]
            result = function(value, w), function(error, np.abs(w))
        elif isinstance(gate, p.AddConstant):
            value, error = operands[0]
            result = value + signed(weights.constants[number], bits), error
        elif isinstance(gate, p.Truncate | p.Relu):
            value, error = operands[0]
            positive = np.maximum(value, 0) if isinstance(gate, p.Relu) else value
            rounding = 1.0 if gate.shift else 0.0
            result = positive / 2**gate.shift, error / 2**gate.shift + rounding
        elif isinstance(gate, p.Output):
            value, error = operands[0]
            result = value, error + 2**gate.position / 2
        else:
            result = _moved(gate, step, operands)
        values.append(result)
    scale = float(plan.output_step.scale)
    value, error = values[-1]
    return value / scale, error / scale


def _moved(gate: p.Gate, step: p.Step, operands: list[tuple[Reals, Reals]]) -> tuple[Reals, Reals]:
    """Gates that add and move values."""
    if isinstance(gate, p.Combine):
        pairs = list(zip(gate.coefficients, operands, strict=True))
        nothing = np.zeros(())
        value = sum((c * v for c, (v, _) in pairs), start=nothing)
        return value, sum((abs(c) * e for c, (_, e) in pairs), start=nothing)
    value, error = operands[0]
    if isinstance(gate, p.Slice):
        window = tuple(
            slice(start, start + (count - 1) * stride + 1, stride)
            for start, stride, count in zip(gate.starts, gate.strides, step.shape, strict=True)
        )
        return value[window], error[window]
    if isinstance(gate, p.Reshape):
        return value.reshape(step.shape), error.reshape(step.shape)
    if isinstance(gate, p.WindowSum) and gate.kernel == value.shape[-2:]:
        return value.sum((2, 3), keepdims=True), error.sum((2, 3), keepdims=True)
    raise TypeError(f"the networks of these tests have no {type(gate).__name__}")


def _convolve(value: Reals, weights: Reals) -> Reals:
    padded = np.pad(value, ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    return np.asarray(np.einsum("nchwij,ocij->nohw", windows, weights))
