"""Compiles every kernel before the first session, so that no inference pays for it.

The linear kernels have variants that depend on the weights; their own warm-up knows them. The
others run as a miniature network makes all three parties call them, in memory, once for each ring.
The compiled code is cached on disk, so that later processes only load it.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from radiopaque.engine.local import Devices, LocalDeployment
from radiopaque.graph import plan as p
from radiopaque.graph.validate import COMPARED_BITS
from radiopaque.graph.weights import Weights
from radiopaque.kernels.cpu import CPU
from radiopaque.kernels.device import Device
from radiopaque.ring import ring_dtype


def warm_up(plans: Iterable[p.Plan] = (), device: Device = CPU) -> None:
    """Compile for these plans' rings and windows; without plans, for all that there are.

    On a device that compiles nothing, this loads its libraries.
    """
    wanted: dict[int, set[int]] = {}
    for plan in plans:
        windows = {step.gate.compared_bits for step in plan.steps if isinstance(step.gate, p.Relu)}
        wanted.setdefault(plan.ring_bits, set()).update(windows)
    every = set(COMPARED_BITS)
    for ring_bits, windows in sorted((wanted or {32: every, 64: every}).items()):
        word = ring_dtype(ring_bits)
        device.warm_up(word)
        plan = miniature(ring_bits, *sorted(windows))
        weights = Weights(
            {number: np.ones(shape, word) for number, shape in plan.weight_shapes()}, {}
        )
        deployment = LocalDeployment(plan, weights, Devices.all(device))
        deployment.infer(np.zeros(plan.input_step.shape))


def miniature(ring_bits: int, *windows: int) -> p.Plan:
    """Convolution, truncation, a comparison of each window, window sum, matrix product, output.

    What is compared has 128 elements: 64 are packed together.
    """
    shape = (1, 2, 8, 8)
    steps = [
        p.Step(p.Input(), (), shape, 0, 1, 1),
        p.Step(p.Convolution(2, (3, 3), pads=(1, 1, 1, 1)), (0,), shape, 2, 1, 64),
        p.Step(p.Truncate(19, 1), (1,), shape, 1, 1, 32),
    ]
    for compared_bits in windows:
        steps.append(p.Step(p.Relu(compared_bits + 1, 0), (len(steps) - 1,), shape, 1, 1, 32))
    last = len(steps) - 1
    steps += [
        p.Step(p.WindowSum((8, 8)), (last,), (1, 2, 1, 1), 1, 64, 2048),
        p.Step(p.Reshape(), (last + 1,), (1, 2), 1, 64, 2048),
        p.Step(p.MatrixProduct(2), (last + 2,), (1, 2), 1, 64, 4096),
        p.Step(p.Output(16, 0), (last + 3,), (1, 2), 1, 64),
    ]
    return p.Plan(ring_bits, "warm-up", "1", tuple(steps))
