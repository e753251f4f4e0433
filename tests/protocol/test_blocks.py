"""Layers of one block, of several, and one element to either side: a block is 2^19 bytes of words.

A plan with every gate that sends: image, truncation, ReLU, re-mask, result.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from radiopaque.engine.local import Devices, LocalDeployment
from radiopaque.gates import plan_cost
from radiopaque.graph import plan as p
from radiopaque.graph.weights import Weights
from radiopaque.kernels.tensors.device import TensorDevice
from radiopaque.ring import ring_dtype
from tests.plans import PlanBuilder

BLOCK = {32: 1 << 17, 64: 1 << 16}
"""Ring words in a block of 2**19 bytes."""


def plan_of(k: int, size: int) -> p.Plan:
    """x -> max(3 * (x >> 2), 0) >> 1 on a vector."""
    limit = 1 << 16
    build = PlanBuilder(k, (1, size), limit)
    build.add(p.Truncate(20, 2), 0, limit=limit // 4 + 1)
    build.add(p.Multiply((1,)), 1, limit=limit)
    build.add(p.Relu(20, 1), 2, limit=limit // 2)
    build.add(p.Multiply((1,)), 3, limit=limit // 2)
    build.add(p.Remask(), 4)
    build.add(p.Multiply((1,)), 5)
    return build.finish(18)


def weights_of(plan: p.Plan) -> Weights:
    """3, then 1 and 1."""
    gates = [gate for gate, _ in plan.weight_shapes()]
    dtype = ring_dtype(plan.ring_bits)
    values = zip(gates, (3, 1, 1), strict=True)
    return Weights({gate: np.array([value], dtype) for gate, value in values}, {})


@pytest.mark.parametrize("k", [32, 64])
@pytest.mark.parametrize(
    ("blocks", "more"), [(0, 1), (0, 7), (1, -1), (1, 0), (1, 1), (2, 0), (2, 1), (3, -1)]
)
def test_blocks(k: int, blocks: int, more: int) -> None:
    check_blocks(k, blocks, more, Devices())


@pytest.mark.parametrize("k", [32, 64])
@pytest.mark.parametrize(("blocks", "more"), [(0, 1), (1, 0), (2, 1)])
def test_blocks_on_tensors(k: int, blocks: int, more: int) -> None:
    check_blocks(k, blocks, more, Devices.all(TensorDevice(torch.device("cpu"))))


def check_blocks(k: int, blocks: int, more: int, devices: Devices) -> None:
    size = blocks * BLOCK[k] + more
    plan = plan_of(k, size)
    rng = np.random.default_rng(size)
    x = rng.integers(-(1 << 16), (1 << 16) + 1, (1, size)).astype(np.float64)
    # the last elements are exact: nothing is cut off, so no rounding hides a slip by one place
    x[0, -min(size, 20) :] = 8 * rng.integers(-(1 << 13), 1 << 13, min(size, 20))
    run = LocalDeployment(plan, weights_of(plan), devices).infer(x)
    low = np.maximum(3 * np.floor(x / 4), 0) // 2
    high = np.ceil(np.maximum(3 * np.ceil(x / 4), 0) / 2)
    assert ((low <= run.outputs) & (run.outputs <= high)).all()
    exact = x % 8 == 0
    assert (run.outputs[exact] == np.maximum(3 * x[exact] / 8, 0)).all()
    cost = plan_cost(plan)
    assert run.counters.round_trips == cost.round_trips == 1 + 2 + 1
    frames = -(-size // BLOCK[k])
    # data owner: image, truncation's reply, selection, share; back: top bit, opening, bit, result
    assert run.counters.sent_messages == 4 * frames
    assert run.counters.received_messages == 4 * frames
    headers = 64 * 4 * frames
    assert 0 < run.counters.sent_bytes - cost.to_model_owner_bytes < headers
    assert 0 < run.counters.received_bytes - cost.to_data_owner_bytes < headers
