"""No inference compiles a loop after the warm-up."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from numba.core.dispatcher import Dispatcher

from radiopaque.engine.local import LocalDeployment
from radiopaque.engine.warm_up import miniature, warm_up
from radiopaque.graph import plan as p
from radiopaque.graph.bands import BLOCK_BYTES
from radiopaque.graph.validate import COMPARED_BITS, validate_plan
from radiopaque.graph.weights import Weights
from radiopaque.ring import ring_dtype
from tests.plans import PlanBuilder

SHAPE = (1, 8, 8, 8)
SMALL = (1, 8, 8, 4)


def compiled() -> dict[str, int]:
    """Variants of every compiled loop in this process."""
    return {
        f"{name}.{attribute}": len(value.signatures)
        for name, module in sorted(sys.modules.items())
        if name.startswith("radiopaque.kernels")
        for attribute, value in vars(module).items()
        if isinstance(value, Dispatcher)
    }


def every_gate(ring_bits: int, windows: tuple[int, ...]) -> p.Plan:
    """Convolutions of few and many channels, dense, grouped and depthwise; all other gates."""
    build = PlanBuilder(ring_bits, (1, 2, 8, 8), limit=1)
    pads = (1, 1, 1, 1)
    build.add(p.Convolution(8, (3, 3), pads=pads), 0, shape=SHAPE)
    build.add(p.Truncate(20, 1), build.last)
    for convolution in (
        p.Convolution(8, (3, 3), pads=pads),
        p.Convolution(8, (1, 1), groups=4),
        p.Convolution(8, (3, 3), pads=pads, groups=8),
        p.Convolution(8, (5, 5), pads=(4, 4, 4, 4), dilations=(2, 2)),
    ):
        build.add(convolution, build.last)
        build.add(p.Remask(), build.last)
    for bits in windows:
        build.add(p.Relu(bits + 1, 0), build.last)
        if bits + 5 < ring_bits:
            build.add(p.Relu(bits + 5, 4), build.last)
    whole = build.last
    for start in range(2):
        build.add(p.Slice((0, 0, 0, start), (1, 1, 1, 2)), whole, shape=SMALL)
        build.add(p.Relu(windows[0] + 1, 0), build.last)
        build.add(p.Truncate(20, 1), build.last - 1)
    build.add(p.Combine((1, 1)), build.last - 3, build.last)
    build.add(p.Multiply((1, 8, 1, 1)), build.last)
    build.add(p.AddConstant((1, 8, 1, 1)), build.last)
    build.add(p.Remask(), build.last)
    build.add(p.Transpose((0, 1, 3, 2)), build.last, shape=(1, 8, 4, 8))
    build.add(p.Truncate(20, 1), build.last)
    build.add(p.Transpose((0, 1, 3, 2)), build.last, shape=SMALL)
    build.add(p.Relu(windows[0] + 1, 0), build.last)
    build.add(p.Concatenate(3), build.last, build.last, shape=SHAPE)
    build.add(p.Pad((0, 0, 1, 1), (0, 0, 1, 1)), build.last, shape=(1, 8, 10, 10))
    build.add(p.Convolution(16, (3, 3), (2, 2)), build.last, shape=(1, 16, 4, 4))
    build.add(p.WindowSum((4, 4)), build.last, shape=(1, 16, 1, 1))
    build.add(p.Remask(), build.last)
    build.add(p.Expand(), build.last, shape=(1, 16, 2, 2))
    build.add(p.Relu(windows[0] + 1, 0), build.last)
    build.add(p.Reshape(), build.last, shape=(2, 32))
    build.add(p.MatrixProduct(5), build.last, shape=(2, 5))
    build.add(p.Remask(), build.last)
    build.add(p.Reshape(), build.last, shape=(1, 10))
    build.add(p.MatrixProduct(3), build.last, shape=(1, 3))
    return build.finish(bits=16)


def weights_of(plan: p.Plan, wide: bool) -> Weights:
    word = ring_dtype(plan.ring_bits)
    value = 1 << 20 if wide else 1
    return Weights(
        {number: np.full(shape, value, word) for number, shape in plan.weight_shapes()},
        {number: np.ones(shape, word) for number, shape in plan.constant_shapes()},
    )


def infer_all(plans: list[p.Plan], announced: list[p.Plan]) -> None:
    """Fails where an inference compiles; for a process in which nothing has been compiled.

    Every plan runs in whole layers and in blocks, which begin at other places.
    """
    assert len(compiled()) > 10
    assert not any(compiled().values())
    warm_up(announced)
    before = compiled()
    for plan in plans:
        for wide in (False, True):
            deployment = LocalDeployment(plan, weights_of(plan, wide))
            for block_bytes in (BLOCK_BYTES, 296):
                with mock.patch("radiopaque.graph.bands.BLOCK_BYTES", block_bytes):
                    deployment.infer(np.zeros(plan.input_step.shape))
    after = compiled()
    new = {name: count for name, count in after.items() if count != before.get(name)}
    assert not new, f"compiled after the warm-up: {new}"


def infer_after_warm_up_without_plans() -> None:
    infer_all([every_gate(ring_bits, COMPARED_BITS) for ring_bits in (32, 64)], [])


def infer_after_warm_up_for_plans() -> None:
    plans = [every_gate(32, (18,)), every_gate(64, (24, 30))]
    infer_all(plans, plans)


@pytest.mark.parametrize(
    "function", [infer_after_warm_up_without_plans, infer_after_warm_up_for_plans]
)
def test_no_inference_compiles_anything(function):
    script = f"from {__name__} import {function.__name__} as run; run()"
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("ring_bits", [32, 64])
@pytest.mark.parametrize("windows", [(), (18,), COMPARED_BITS])
def test_the_miniature_is_a_plan(ring_bits, windows):
    plan = miniature(ring_bits, *windows)
    validate_plan(plan)
    found = tuple(s.gate.compared_bits for s in plan.steps if isinstance(s.gate, p.Relu))
    assert found == windows
