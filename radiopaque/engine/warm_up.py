"""Compiles every kernel before the first session, so that no inference pays for it.

A miniature network runs through all three parties in memory, once for each ring and window. The
compiled code is cached on disk, so that later processes only load it.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from radiopaque.engine.local import LocalDeployment
from radiopaque.graph import plan as p
from radiopaque.graph.weights import Weights
from radiopaque.ring import ring_dtype


def warm_up(plans: Iterable[p.Plan] = ()) -> None:
    """Compile for these plans' rings and windows; without plans, for the default ones."""
    wanted = {
        (plan.ring_bits, step.gate.compared_bits)
        for plan in plans
        for step in plan.steps
        if isinstance(step.gate, p.Relu)
    }
    for ring_bits, compared_bits in sorted(wanted or {(32, 18), (64, 24)}):
        plan = miniature(ring_bits, compared_bits)
        word = ring_dtype(ring_bits)
        weights = Weights(
            {number: np.ones(shape, word) for number, shape in plan.weight_shapes()}, {}
        )
        LocalDeployment(plan, weights).infer(np.zeros(plan.input_step.shape))


def miniature(ring_bits: int, compared_bits: int) -> p.Plan:
    """Convolution, truncation, comparison, window sum, matrix product, output."""
    shape = (1, 2, 4, 4)
    relu_bits = compared_bits + 1
    steps = (
        p.Step(p.Input(), (), shape, 0, 1, 1),
        p.Step(p.Convolution(2, (3, 3), pads=(1, 1, 1, 1)), (0,), shape, 2, 1, 64),
        p.Step(p.Truncate(19, 1), (1,), shape, 1, 1, 32),
        p.Step(p.Relu(relu_bits, 0), (2,), shape, 1, 1, 32),
        p.Step(p.WindowSum((4, 4)), (3,), (1, 2, 1, 1), 1, 16, 512),
        p.Step(p.Reshape(), (4,), (1, 2), 1, 16, 512),
        p.Step(p.MatrixProduct(2), (5,), (1, 2), 1, 16, 1024),
        p.Step(p.Output(16, 0), (6,), (1, 2), 1, 16),
    )
    return p.Plan(ring_bits, "warm-up", "1", steps)
