"""Gates on plain Python integers in object arrays, and runs that show every bit of a result."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import product
from typing import Any
from unittest import mock

import numpy as np
from numpy.typing import NDArray

from radiopaque.engine import data_owner
from radiopaque.engine.local import LocalDeployment, LocalResult
from radiopaque.graph import plan as p
from radiopaque.graph.weights import Weights
from radiopaque.ring import ring_dtype
from tests.plans import PlanBuilder, ring_values

Integers = NDArray[Any]
"""dtype object: Python integers."""


def integers(values: Sequence[int], shape: p.Shape) -> Integers:
    """Python integers as an array."""
    out = np.empty(len(values), object)
    out[:] = list(values)
    return out.reshape(shape)


def random_ring(bits: int, shape: p.Shape, seed: int) -> Integers:
    """Edges of the ring first, then uniform elements; signed."""
    size = int(np.prod(shape, dtype=np.int64))
    values = ring_values(bits, size, random.Random(seed))
    random.Random(seed).shuffle(values)
    return integers(values, shape)


def wrap(values: Integers, bits: int) -> Integers:
    """The signed representatives mod 2**bits."""
    half = 1 << (bits - 1)
    return (values + half) % (2 * half) - half


def to_ring(values: Integers, bits: int) -> NDArray[np.unsignedinteger]:
    """Ring words."""
    flat = [v % (1 << bits) for v in values.reshape(-1)]
    return np.array(flat, ring_dtype(bits)).reshape(values.shape)


def convolution(x: Integers, w: Integers, gate: p.Convolution) -> Integers:
    """[n, c, h, w] by [out, c/groups, kh, kw]."""
    patches = [
        np.stack([tap[:, group] for tap in _taps(x, gate)], axis=2)
        for group in np.split(np.arange(x.shape[1]), gate.groups)
    ]
    outs = []
    for patch, kernel in zip(patches, np.split(w, gate.groups), strict=True):
        flat = kernel.reshape(*kernel.shape[:2], -1)
        outs += [(patch * k[None, :, :, None, None]).sum(axis=(1, 2)) for k in flat]
    return np.stack(outs, axis=1)


def window_sum(x: Integers, gate: p.WindowSum) -> Integers:
    """Sums over windows of the last two axes."""
    taps = list(_taps(x, gate))
    total = taps[0].copy()
    for tap in taps[1:]:
        total = total + tap
    return total


def _taps(x: Integers, gate: p.Convolution | p.WindowSum) -> list[Integers]:
    """For every position in the kernel, the element under it in every window."""
    top, left, bottom, right = gate.pads
    padded = pad(x, [(0, 0)] * (x.ndim - 2) + [(top, bottom), (left, right)], 0)
    counts = [
        (padded.shape[axis - 2] - (gate.kernel[axis] - 1) * gate.dilations[axis] - 1)
        // gate.strides[axis]
        + 1
        for axis in range(2)
    ]
    taps = []
    for position in product(*map(range, gate.kernel)):
        window = tuple(
            slice(i * d, i * d + (count - 1) * s + 1, s)
            for i, d, s, count in zip(position, gate.dilations, gate.strides, counts, strict=True)
        )
        taps.append(padded[(Ellipsis, *window)])  # type: ignore[arg-type]
    return taps


def pad(x: Integers, around: Sequence[tuple[int, int]], value: int) -> Integers:
    """Surrounded by a Python integer, which numpy's own padding would turn into 64 bits."""
    shape = [
        before + extent + after for (before, after), extent in zip(around, x.shape, strict=True)
    ]
    out = np.full(shape, value, object)
    out[tuple(slice(b, b + e) for (b, _), e in zip(around, x.shape, strict=True))] = x
    return out


def rounded(y: Integers, shift: int) -> tuple[Integers, Integers]:
    """(floor(y / 2**shift), whether anything was cut off)."""
    return y >> shift, (y & ((1 << shift) - 1)) != 0


def infer_stored(
    deployment: LocalDeployment, images: NDArray[np.floating]
) -> tuple[Integers, LocalResult]:
    """The result's stored integers, exact beyond the 53 bits of a float, and the run."""
    with mock.patch.object(data_owner, "decode", lambda stored, scale: stored):
        run = deployment.infer(images)
    return integers([int(v) for v in run.outputs.reshape(-1)], run.outputs.shape), run


_BLOCK_BYTES = (1 << 19, 8, 48, 200)


class Bench:
    """A plan under test whose first value may be any ring element.

    Images are floats of at most 53 bits, so the value is a constant of the model owner plus a small
    image; value 1 of the plan is their sum. Results come back mod 2**``result_bits``. Layers are in
    bands of any size, from one row up, as the seed has it.
    """

    def __init__(
        self, ring_bits: int, values: Integers, seed: int, limit: int | None = None
    ) -> None:
        self.bits = ring_bits
        self._block_bytes = _BLOCK_BYTES[seed % len(_BLOCK_BYTES)]
        self.result_bits = min(ring_bits, 63)
        small = [random.Random(seed).randint(-(1 << 20), 1 << 20) for _ in range(values.size)]
        self._images = integers(small, values.shape)
        self.build = PlanBuilder(ring_bits, values.shape, 1 << 20)
        self._linear: dict[int, Integers] = {}
        self._constants: dict[int, Integers] = {}
        self.value = self.constant(0, values - self._images)
        if limit is not None:
            self.value = self.build.add(p.Combine((1,)), self.value, limit=limit)

    def constant(self, source: int, values: Integers) -> int:
        """Add a secret constant."""
        step = self.build.add(p.AddConstant(values.shape), source)
        self._constants[step] = values
        return step

    def linear(self, gate: p.Linear, source: int, weights: Integers, shape: p.Shape) -> int:
        """Apply a gate with secret weights."""
        step = self.build.add(gate, source, shape=shape)
        self._linear[step] = weights
        return step

    def run(self, bits: int | None = None, position: int = 0) -> tuple[Integers, LocalResult]:
        """Reveal the last value, by default all of its bits that an output may have."""
        weights = Weights(
            {gate: to_ring(w, self.bits) for gate, w in self._linear.items()},
            {gate: to_ring(c, self.bits) for gate, c in self._constants.items()},
        )
        deployment = LocalDeployment(self.build.finish(bits, position), weights)
        with mock.patch("radiopaque.graph.bands.BLOCK_BYTES", self._block_bytes):
            return infer_stored(deployment, self._images.astype(np.float64))

    def check(self, expected: Integers) -> LocalResult:
        """The last value is exactly this, mod 2**result_bits."""
        result, run = self.run()
        assert result.shape == expected.shape
        assert (result == wrap(expected, self.result_bits)).all()
        return run
