"""A small network that uses every message of the protocol, images for it, and its plain result."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from radiopaque.engine.model_owner import Model
from radiopaque.gates import halves, sites
from radiopaque.gates.base import Evaluating, Site
from radiopaque.graph import plan as p
from radiopaque.graph.validate import validate_plan
from radiopaque.graph.weights import Weights
from radiopaque.ring import RingArray, ring_dtype, signed

SIZE = 24
SAMPLES = Path(__file__).parents[2] / "samples" / "labelled"


def small_plan(ring_bits: int = 32) -> p.Plan:
    """Stem, truncation, max-pool, ReLUs of every window, residual, pooling, re-mask, output.

    With all-zero images every value but the last is zero, so that whatever a missing mask leaves
    visible is as far from uniform as it can be.
    """
    n, half, quarter = 1, SIZE // 2, SIZE // 4
    conv = p.Convolution(6, (3, 3), pads=(1, 1, 1, 1))
    pooled = (n, 6, half, half)
    steps = (
        p.Step(p.Input(), (), (n, 1, SIZE, SIZE), 8, limit=1 << 9),
        p.Step(conv, (0,), (n, 6, SIZE, SIZE), 16, limit=1 << 22),
        p.Step(p.Truncate(24, 8), (1,), (n, 6, SIZE, SIZE), 8, limit=1 << 14),
        p.Step(_every_other(3, 0), (2,), (n, 6, SIZE, half), 8),
        p.Step(_every_other(3, 1), (2,), (n, 6, SIZE, half), 8),
        p.Step(p.Combine((1, -1)), (3, 4), (n, 6, SIZE, half), 8, limit=1 << 15),
        p.Step(p.Relu(19, 0), (5,), (n, 6, SIZE, half), 8),
        p.Step(p.Combine((1, 1)), (6, 4), (n, 6, SIZE, half), 8),
        p.Step(_every_other(2, 0), (7,), pooled, 8),
        p.Step(_every_other(2, 1), (7,), pooled, 8),
        p.Step(p.Combine((1, -1)), (8, 9), pooled, 8, limit=1 << 15),
        p.Step(p.Relu(19, 0), (10,), pooled, 8),
        p.Step(p.Combine((1, 1)), (11, 9), pooled, 8, limit=1 << 14),
        p.Step(p.Relu(19, 0), (12,), pooled, 8),
        p.Step(conv, (13,), pooled, 16, limit=1 << 25),
        p.Step(p.Relu(27, 8), (14,), pooled, 8),
        p.Step(conv, (15,), pooled, 16),
        p.Step(p.Combine((1, 256)), (16, 13), pooled, 16, limit=1 << 26),
        p.Step(p.Relu(32, 7), (17,), pooled, 9),
        p.Step(p.Multiply((1, 6, 1, 1)), (18,), pooled, 12, limit=1 << 28),
        p.Step(p.Relu(32, 1), (19,), pooled, 11),
        p.Step(p.Convolution(8, (1, 1)), (20,), (n, 8, half, half), 17),
        p.Step(p.WindowSum((2, 2), (2, 2)), (21,), (n, 8, quarter, quarter), 17, 4),
        p.Step(p.Remask(), (22,), (n, 8, quarter, quarter), 17, 4),
        p.Step(p.Reshape(), (23,), (n, 8 * quarter**2), 17, 4),
        p.Step(p.MatrixProduct(128), (24,), (n, 128), 23, 4),
        p.Step(p.AddConstant((128,)), (25,), (n, 128), 23, 4, limit=1 << 28),
        p.Step(p.Output(16, 14), (26,), (n, 128), 23, 4),
    )
    plan = p.Plan(ring_bits, "small", "1", steps)
    validate_plan(plan)
    return plan


def _every_other(axis: int, start: int) -> p.Slice:
    starts, strides = [0, 0, 0, 0], [1, 1, 1, 1]
    starts[axis], strides[axis] = start, 2
    return p.Slice(tuple(starts), tuple(strides))


@cache
def small_weights(ring_bits: int = 32) -> Weights:
    """Fixed weights of :func:`small_plan`; small, so that no window overflows."""
    plan = small_plan(ring_bits)
    generator = np.random.default_rng(5)
    bounds = {1: 48, 14: 24, 16: 24, 19: 12, 21: 24, 25: 6}

    def draw(gate: int, shape: p.Shape) -> RingArray:
        values = generator.integers(-bounds.get(gate, 1 << 24), bounds.get(gate, 1 << 24), shape)
        return values.astype(np.uint64).astype(ring_dtype(ring_bits))

    return Weights(
        {gate: draw(gate, shape) for gate, shape in plan.weight_shapes()},
        {gate: draw(gate, shape) for gate, shape in plan.constant_shapes()},
    )


@cache
def images() -> dict[str, NDArray[np.float64]]:
    """A black image, a real chest X-ray where samples are at hand (else texture), and noise."""
    generator = np.random.default_rng(6)
    found = sorted(SAMPLES.rglob("*.jpeg"))
    if found:
        with Image.open(found[0]) as picture:
            grey = np.asarray(picture.convert("L").resize((SIZE, SIZE)), np.float64) / 255
    else:
        rows, columns = np.mgrid[0:SIZE, 0:SIZE]
        grey = 0.5 + 0.4 * np.sin(rows / 3) * np.cos(columns / 5)
    shape = (1, 1, SIZE, SIZE)
    return {
        "black": np.zeros(shape),
        "x-ray": grey.reshape(shape),
        "noise": generator.uniform(0, 1, shape),
    }


def ideal_functionality(
    model: Model, encoded: RingArray, coins: Callable[[Site], RingArray] | None = None
) -> RingArray:
    """What a trusted party would compute: the network on ring words, rounding coins and all.

    ``coins`` [size] of a gate are uniform below 2**shift; a value is rounded up where its low bits
    and its coin carry. Left out, they are drawn here; no party sees them in the protocol either.
    """
    plan = model.plan
    generator = np.random.default_rng()
    context = Evaluating(None, model.maps, model.constants)  # type: ignore[arg-type]
    values: dict[int, RingArray] = {}
    for site in sites(plan):
        gate, inputs = site.step.gate, [values[i] for i in site.step.inputs]
        if isinstance(gate, p.Input):
            value = encoded
        elif isinstance(gate, p.Truncate | p.Relu):
            y = signed(inputs[0], plan.ring_bits)
            if coins is None:
                coin = generator.integers(0, 1 << gate.shift, y.shape)
            else:
                coin = coins(site).astype(np.int64).reshape(y.shape)
            z = (y + coin) >> gate.shift
            if isinstance(gate, p.Relu):
                z = np.maximum(z, 0)
            value = z.astype(np.uint64).astype(site.dtype)
        elif isinstance(gate, p.Remask | p.Output):
            value = inputs[0]
        else:
            value = halves(gate).evaluate(context, site, site.dtype.type(0), inputs)
        values[site.number] = value
    return values[len(plan.steps) - 1]
