"""Rows on demand: random networks against plain integers, in bands of every size, and what is kept.

Values stay inside their windows and everything that is cut off is zero, so that results are exact.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from math import prod
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from radiopaque.engine import model_owner
from radiopaque.engine.local import Devices, LocalDeployment
from radiopaque.engine.values import Values
from radiopaque.engine.window import Window
from radiopaque.graph import plan as p
from radiopaque.graph.weights import Weights
from radiopaque.kernels.cpu import CPU
from radiopaque.kernels.device import Device
from radiopaque.kernels.tensors.device import TensorDevice
from radiopaque.wire.plans import decode_plan, encode_plan
from tests.plans import PlanBuilder
from tests.protocol import plain
from tests.protocol.plain import Bench, Integers, integers

LIMIT = 1 << 17
MOST_ELEMENTS = 2000


class Network:
    """A network under construction: each value with its integers, drawn from ``rng``."""

    def __init__(self, seed: int) -> None:
        self.rng = rng = random.Random(seed)
        sizes = ((1, 1, 2, 3), (1, 2, 3), (1, 2, 3, 5, 8, 13), (1, 2, 4, 7, 16))
        shape = tuple(map(rng.choice, sizes))
        image = integers([rng.randint(-8, 8) for _ in range(prod(shape))], shape)
        self.bench = Bench(rng.choice((32, 64)), image, seed, LIMIT)
        self.values = {self.bench.value: image}
        self._derived = {self.bench.value: False}

    def grow(self) -> None:
        """One more gate, or none where the one that was drawn does not fit."""
        kinds: tuple[Callable[[int, Integers], object], ...] = (
            self._convolution, self._window_sum, self._relu, self._relu, self._truncate,
            self._slice, self._pad, self._combine, self._concatenate, self._scale, self._shift,
            self._product, self._transpose, self._reshape,
        )  # fmt: skip
        known = list(self.values)
        source = self.rng.choice(known[-4:] + self.rng.choices(known))
        self.rng.choice(kinds)(source, self.values[source])

    def _add(self, gate: p.Gate, sources: list[int], value: Integers) -> int:
        new = self.bench.build.add(gate, *sources, shape=value.shape, limit=LIMIT)
        return self._note(new, value, any(self._derived[i] for i in sources))

    def _note(self, new: int, value: Integers, derived: bool) -> int:
        self.values[new], self._derived[new] = value, derived
        return new

    def _linear(self, gate: p.Linear, source: int, weights: Integers, value: Integers) -> None:
        if not fits(value):
            return
        if self._derived[source]:
            source = self._add(p.Remask(), [source], self.values[source])
            self._derived[source] = False
        self._note(self.bench.linear(gate, source, weights, value.shape), value, True)

    def _fresh(self, gate: p.Gate, source: int, value: Integers) -> None:
        self._derived[self._add(gate, [source], value)] = False

    def _weights(self, shape: p.Shape) -> Integers:
        """Few of them are not zero."""
        drawn = [self.rng.choice((0, 0, 0, 0, 1, -1)) for _ in range(prod(shape))]
        return integers(drawn, shape)

    def _windows(self, x: Integers) -> dict[str, tuple[int, ...]] | None:
        pick = self.rng.choice
        found = {
            "kernel": (pick((1, 2, 3, 4)), pick((1, 2, 3))),
            "strides": (pick((1, 2, 3, 4)), pick((1, 2))),
            "pads": tuple(pick((0, 0, 1, 3)) for _ in range(4)),
            "dilations": (pick((1, 2, 3)), pick((1, 2))),
        }
        for axis in range(2):
            span = (found["kernel"][axis] - 1) * found["dilations"][axis] + 1
            room = x.shape[axis - 2] + found["pads"][axis] + found["pads"][axis + 2]
            if room < span:
                return None
        return found

    def _convolution(self, source: int, x: Integers) -> None:
        windows = self._windows(x) if x.ndim == 4 else None
        if windows is None:
            return
        groups = self.rng.choice([d for d in range(1, x.shape[1] + 1) if x.shape[1] % d == 0])
        channels = groups * self.rng.randint(1, 2)
        gate = p.Convolution(channels, groups=groups, **windows)  # type: ignore[arg-type]
        weights = self._weights((channels, x.shape[1] // groups, *gate.kernel))
        self._linear(gate, source, weights, plain.convolution(x, weights, gate))

    def _product(self, source: int, x: Integers) -> None:
        weights = self._weights((x.shape[-1], self.rng.randint(1, 4)))
        value = (x[..., :, None] * weights).sum(axis=-2)
        self._linear(p.MatrixProduct(weights.shape[1]), source, weights, value)

    def _scale(self, source: int, x: Integers) -> None:
        weights = self._weights(self._narrow(x.shape))
        self._linear(p.Multiply(weights.shape), source, weights, x * weights)

    def _shift(self, source: int, x: Integers) -> None:
        constant = self._weights(self._narrow(x.shape))
        new = self.bench.constant(source, constant)
        self._note(new, x + constant, self._derived[source])

    def _narrow(self, shape: p.Shape) -> p.Shape:
        """What is broadcast to a shape."""
        kept = shape[self.rng.randint(0, len(shape)) :]
        return tuple(self.rng.choice((1, extent)) for extent in kept)

    def _relu(self, source: int, x: Integers) -> None:
        places, bits = self.rng.choice(((0, 19), (0, 25), (5, 24), (7, 32)))
        if fits(x):
            y = self._add(p.Combine((1 << places,)), [source], x << places)
            self._fresh(p.Relu(bits, places), y, np.maximum(x, 0))

    def _truncate(self, source: int, x: Integers) -> None:
        if fits(x):
            y = self._add(p.Combine((1 << 8,)), [source], x << 8)
            self._fresh(p.Truncate(28, 8), y, x)

    def _window_sum(self, source: int, x: Integers) -> None:
        windows = self._windows(x) if x.ndim >= 2 else None
        if windows is not None:
            gate = p.WindowSum(**windows)  # type: ignore[arg-type]
            self._add(gate, [source], plain.window_sum(x, gate))

    def _slice(self, source: int, x: Integers) -> None:
        starts, strides, index = [], [], []
        for extent in x.shape:
            start = self.rng.choice((0, 0, self.rng.randrange(extent)))
            stride = self.rng.choice((1, 1, 2, 3))
            most = (extent - 1 - start) // stride + 1
            count = self.rng.choice((most, most, self.rng.randint(1, most)))
            starts.append(start)
            strides.append(stride)
            index.append(slice(start, start + (count - 1) * stride + 1, stride))
        self._add(p.Slice(tuple(starts), tuple(strides)), [source], x[tuple(index)])

    def _pad(self, source: int, x: Integers) -> None:
        around = [(self.rng.choice((0, 0, 3)), self.rng.choice((0, 0, 1))) for _ in x.shape]
        filling = self.rng.randint(-5, 5)
        value = plain.pad(x, around, filling)
        if value.size <= MOST_ELEMENTS:
            before, after = zip(*around, strict=True)
            self._add(p.Pad(before, after, filling), [source], value)

    def _combine(self, source: int, x: Integers) -> None:
        alike = [i for i, other in self.values.items() if other.shape == x.shape]
        sources = [source, *self.rng.choices(alike, k=self.rng.randint(0, 2))]
        factors = [self.rng.choice((1, 1, -1, 2, 0)) for _ in sources]
        value = x * 0
        for factor, i in zip(factors, sources, strict=True):
            value = value + factor * self.values[i]
        self._add(p.Combine(tuple(factors)), sources, value)

    def _concatenate(self, source: int, x: Integers) -> None:
        axis = self.rng.randrange(x.ndim)
        rest = [*x.shape[:axis], *x.shape[axis + 1 :]]
        alike = [
            i
            for i, other in self.values.items()
            if other.ndim == x.ndim and [*other.shape[:axis], *other.shape[axis + 1 :]] == rest
        ]
        sources = [source, *self.rng.choices(alike, k=self.rng.randint(0, 2))]
        value = np.concatenate([self.values[i] for i in sources], axis)
        if value.size <= MOST_ELEMENTS:
            self._add(p.Concatenate(axis), sources, value)

    def _transpose(self, source: int, x: Integers) -> None:
        axes = self.rng.sample(range(x.ndim), x.ndim)
        self._add(p.Transpose(tuple(axes)), [source], x.transpose(axes))

    def _reshape(self, source: int, x: Integers) -> None:
        left, shape = x.size, []
        for _ in range(3):
            shape.append(self.rng.choice([d for d in range(1, left + 1) if left % d == 0]))
            left //= shape[-1]
        value = x.reshape(*shape, left)
        self._add(p.Reshape(), [source], value)


def fits(value: Integers) -> bool:
    """Whether it may be compared, and multiplied a few times before it is."""
    return bool(abs(value).max() < 1 << 14)


@settings(max_examples=250, deadline=None)
@given(st.integers(0, 1 << 40))
def test_random_networks(seed: int) -> None:
    network = Network(seed)
    for _ in range(network.rng.randint(3, 16)):
        network.grow()
    network.bench.check(network.values[network.bench.build.last])


def cropped(height: int) -> p.Plan:
    """A convolution and a comparison in four bands, of which the first ``height`` rows are read."""
    build = PlanBuilder(32, (1, 2, 8, 5), limit=1 << 10)
    build.add(p.WindowSum((1, 1)), 0)
    build.add(p.Convolution(2, (1, 1)), 0, limit=1 << 16)
    build.add(p.Slice((0, 0, 0, 0), (1, 1, 1, 1)), 2, shape=(1, 2, height, 5))
    build.add(p.Relu(19, 0), build.last)
    build.add(p.Relu(19, 0), 1)
    build.add(p.Slice((0, 0, 0, 0), (1, 1, 1, 1)), build.last, shape=(1, 2, height, 5))
    build.add(p.Combine((1, 1)), 4, build.last)
    build.add(p.Relu(19, 0), build.last)
    return build.finish()


@pytest.mark.parametrize("height", [1, 2, 3, 5, 8])
def test_rows_that_nobody_reads(height: int) -> None:
    """What a crop leaves out is not waited for, in one band or many, and nothing is kept of it."""
    plan = cropped(height)
    image = np.arange(-40, 40, dtype=np.float64).reshape(plan.input_step.shape)
    weights = Weights({2: np.full((2, 2, 1, 1), 3, np.uint32)}, {})
    kept: list[Values] = []

    class Watched(Values):
        def __init__(self, *args: object) -> None:
            super().__init__(*args)  # type: ignore[arg-type]
            kept.append(self)

    freed: list[int] = []
    free = Window.free

    def watched(self: Window, gate: int) -> None:
        freed.append(gate)
        free(self, gate)

    with (
        mock.patch("radiopaque.graph.bands.BLOCK_BYTES", 20 * 4),
        mock.patch.object(model_owner, "Values", Watched),
        mock.patch.object(Window, "free", watched),
    ):
        run = LocalDeployment(plan, weights).infer(image)
    both = 3 * image.sum(axis=1, keepdims=True).repeat(2, axis=1)
    expected = np.maximum(both, 0) + np.maximum(image, 0)
    assert (run.outputs == expected[:, :, :height]).all()
    (values,) = kept
    assert not values._arrays
    assert 2 in freed


def test_a_chain_of_gates_is_longer_than_the_stack() -> None:
    build = PlanBuilder(32, (1, 1, 2, 2), limit=8)
    for _ in range(1500):
        build.add(p.Combine((1,)), build.last)
    image = np.arange(4, dtype=np.float64).reshape(1, 1, 2, 2)
    assert (LocalDeployment(build.finish(), Weights({}, {})).infer(image).outputs == image).all()


@pytest.mark.parametrize("device", [CPU, TensorDevice(torch.device("cpu"))], ids=["cpu", "torch"])
def test_a_single_number_goes_through_every_gate_that_takes_it(device: Device) -> None:
    build = PlanBuilder(32, (1,), limit=1 << 10)
    build.add(p.Reshape(), 0, shape=())
    gates: tuple[p.Gate, ...] = (
        p.Multiply(()), p.Remask(), p.Slice((), ()), p.AddConstant(()), p.Relu(19, 0),
        p.Expand(), p.Combine((4,)), p.Truncate(20, 2),
    )  # fmt: skip
    for gate in gates:
        build.add(gate, build.last)
    build.add(p.Expand(), build.last, shape=(2, 3))
    plan = decode_plan(encode_plan(build.finish()))
    three = np.full((), 3, np.uint32)
    weights = Weights({2: three}, {5: three})
    deployment = LocalDeployment(plan, weights, Devices.all(device))
    assert (deployment.infer(np.array([5.0])).outputs == np.full((2, 3), 18)).all()
