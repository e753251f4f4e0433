"""Truncation and ReLU against plain integers: every window, both ends of the range, every border.

Both round stochastically: the result is floor(y / 2^s), or one more with probability
(y mod 2^s) / 2^s. So it is exact where nothing is cut off, never further than one unit anywhere in
the range, and right on average.
"""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from radiopaque.engine.local import LocalDeployment
from radiopaque.graph import plan as p
from radiopaque.graph.weights import Weights
from tests.plans import PlanBuilder
from tests.protocol.plain import Bench, Integers, integers, rounded

FALSE_ALARM = 1e-9
"""Chance that a right implementation fails one check of a mean."""

WINDOWS = [
    (k, compared + 1 + shift, shift)
    for k, shifts in ((32, (0, 1, 2, 7, 13)), (64, (0, 1, 16, 33, 45)))
    for compared in (18, 24, 30)
    for shift in shifts
    if compared + 1 + shift <= k
]
TRUNCATIONS = [
    (32, 32, 13),
    (32, 32, 29),
    (32, 4, 1),
    (32, 19, 8),
    (64, 64, 16),
    (64, 64, 61),
    (64, 33, 1),
    (64, 45, 16),
]


def relu_range(bits: int, shift: int) -> tuple[int, int]:
    """Smallest and largest value for which ReLU is exact."""
    return -(1 << (bits - 1)), (1 << (bits - 1)) - (1 << shift)


def truncate_range(bits: int, shift: int) -> tuple[int, int]:
    """Smallest and largest value for which truncation is exact."""
    return -(1 << (bits - 2)), 1 << (bits - 2)


def probes(low: int, high: int, shift: int, count: int, seed: int) -> list[int]:
    """Range ends, zero, rounding borders everywhere, and random values of every magnitude."""
    rng = random.Random(seed)
    unit = 1 << shift
    centres = [low, high, 0, unit, -unit, low // 2, high // 2, 2 * unit, -2 * unit, 64 * unit]
    offsets = [0, 1, -1, 2, -2, unit - 1, 1 - unit, unit, -unit, unit // 2, -(unit // 2)]
    values = [c + o for c in centres for o in offsets]
    while len(values) < count:
        values.append(rng.randint(low, high) >> rng.randrange((high - low).bit_length()))
    return [v for v in values if low <= v <= high]


def apply(gate: p.Relu | p.Truncate, k: int, values: Integers, seed: int) -> Integers:
    """One gate on any values in its range, the lower end included."""
    bits, shift = gate.opened_bits, gate.shift
    relu = isinstance(gate, p.Relu)
    # the compiler promises a symmetric range; the gate also takes the value below it
    limit = relu_range(bits, shift)[1] if relu else truncate_range(bits, shift)[1]
    bench = Bench(k, values, seed, limit)
    bench.build.add(gate, bench.build.last, limit=(limit >> shift) + 1)
    result, run = bench.run()
    assert run.counters.round_trips == (3 if relu else 2)
    return result


def check(y: Integers, z: Integers, shift: int) -> None:
    """Floor, or one more where anything was cut off."""
    floor, inexact = rounded(y, shift)
    up = z - floor
    assert ((up == 0) | ((up == 1) & inexact)).all()


@pytest.mark.parametrize(("k", "bits", "shift"), WINDOWS)
def test_relu(k: int, bits: int, shift: int) -> None:
    y = integers(probes(*relu_range(bits, shift), shift, 3000, bits), (1, -1))
    z = apply(p.Relu(bits, shift), k, y, shift)
    check(np.maximum(y, 0), z, shift)
    assert (z[y <= 0] == 0).all()


@pytest.mark.parametrize(("k", "bits", "shift"), TRUNCATIONS)
def test_truncate(k: int, bits: int, shift: int) -> None:
    y = integers(probes(*truncate_range(bits, shift), shift, 3000, bits), (1, -1))
    check(y, apply(p.Truncate(bits, shift), k, y, shift), shift)


@pytest.mark.parametrize("compared", [18, 24, 30])
def test_every_chunk_border_of_the_comparison(compared: int) -> None:
    """Values around every power of two, where one chunk decides and those above it are equal."""
    borders = [1 << power for power in range(compared)]
    low, high = relu_range(compared + 1, 0)
    values = [s * b + o for b in borders for s in (1, -1) for o in (-2, -1, 0, 1, 2)]
    y = integers([v for v in values if low <= v <= high] * 20, (1, -1))
    z = apply(p.Relu(compared + 1, 0), 32, y, 7)
    assert (z == np.maximum(y, 0)).all()


@settings(max_examples=60, deadline=None)
@given(st.data(), st.sampled_from((32, 64)), st.sampled_from((18, 24, 30)))
def test_relu_of_any_window(data: st.DataObject, k: int, compared: int) -> None:
    shift = data.draw(st.integers(0, k - 1 - compared))
    bits = compared + 1 + shift
    low, high = relu_range(bits, shift)
    y = data.draw(st.lists(st.integers(low, high), min_size=1, max_size=30))
    shape = (1, len(y)) if len(y) % 2 else (2, len(y) // 2)
    values = integers(y, shape)
    check(np.maximum(values, 0), apply(p.Relu(bits, shift), k, values, bits), shift)


@settings(max_examples=60, deadline=None)
@given(st.data(), st.sampled_from((32, 64)))
def test_truncate_of_any_window(data: st.DataObject, k: int) -> None:
    bits = data.draw(st.integers(4, k))
    shift = data.draw(st.integers(1, bits - 3))
    y = data.draw(st.lists(st.integers(*truncate_range(bits, shift)), min_size=1, max_size=30))
    values = integers(y, (len(y),))
    check(values, apply(p.Truncate(bits, shift), k, values, bits), shift)


@pytest.mark.parametrize("k", [32, 64])
@pytest.mark.parametrize("gate", [p.Relu(32, 13), p.Truncate(32, 13)])
def test_rounding_is_right_on_average(k: int, gate: p.Relu | p.Truncate) -> None:
    """Hoeffding: N coins of mean q are off by t with probability at most 2 exp(-2 N t^2).

    With N = 40000 and a false alarm in 1e9 checks, t = 0.0164 units. A rounding that always goes
    down would be off by q, one to nearest by min(q, 1 - q).
    """
    count, unit = 40_000, 1 << gate.shift
    bound = math.sqrt(math.log(2 / FALSE_ALARM) / (2 * count))
    assert bound < 0.0165
    relu = isinstance(gate, p.Relu)
    low, high = (relu_range if relu else truncate_range)(gate.opened_bits, gate.shift)
    build = PlanBuilder(k, (1, count), high)
    build.add(gate, 0, limit=(high >> gate.shift) + 1)
    deployment = LocalDeployment(build.finish(), Weights({}, {}))
    for part in (1, unit // 16, unit // 4, unit // 2, 3 * unit // 4, unit - unit // 16, unit - 1):
        rng = np.random.default_rng(part)
        floors = rng.integers(0 if relu else low // unit, high // unit, (1, count))
        up = deployment.infer((floors * unit + part).astype(np.float64)).outputs - floors
        assert set(np.unique(up)) <= {0, 1}
        mean_error = float(up.mean()) - part / unit
        assert abs(mean_error) < bound, f"bias of {mean_error:.4f} units at fraction {part / unit}"


def test_coins_of_one_value_are_fresh() -> None:
    """One value in every element, twice: coins differ between elements and between sessions.

    Half of 20000 coins agree, give or take 6 sigma (a false alarm in 5e8 runs each).
    """
    count = 20_000
    y = integers([4096] * count, (1, count))
    first, second = (apply(p.Relu(32, 13), 32, y, 1).reshape(-1) for _ in range(2))
    sigma = math.sqrt(count) / 2
    for one, other in ((first, second), (first[1:], first[:-1])):
        agreeing = int((one == other).sum())
        assert abs(agreeing - len(one) / 2) < 6 * sigma


@pytest.mark.parametrize("k", [32, 64])
def test_gates_of_a_batch_in_a_row(k: int) -> None:
    """Batch of 3, [n, c, h, w]: a truncation, a max by ReLU of a difference, a ReLU on top."""
    shape = (3, 2, 4, 5)
    y = integers(probes(-(1 << 28), 1 << 28, 12, 300, 1)[: math.prod(shape)], shape)
    bench = Bench(k, y, 2, 1 << 28)
    small = bench.build.add(p.Truncate(30, 12), bench.build.last, limit=(1 << 16) + 1)
    half = (3, 2, 4, 2)
    a = bench.build.add(p.Slice((0, 0, 0, 0), (1, 1, 1, 2)), small, shape=half)
    b = bench.build.add(p.Slice((0, 0, 0, 1), (1, 1, 1, 2)), small, shape=half)
    difference = bench.build.add(p.Combine((1, -1)), a, b, limit=(1 << 17) + 2)
    positive = bench.build.add(p.Relu(19, 0), difference)
    larger = bench.build.add(p.Combine((1, 1)), b, positive, limit=(1 << 16) + 1)
    bench.build.add(p.Relu(19, 0), larger)
    z, run = bench.run()
    floor, inexact = rounded(y, 12)
    lowest = np.maximum(np.maximum(floor[..., 0:4:2], floor[..., 1:4:2]), 0)
    upper = floor + inexact
    highest = np.maximum(np.maximum(upper[..., 0:4:2], upper[..., 1:4:2]), 0)
    assert ((lowest <= z) & (z <= highest)).all()
    assert run.counters.round_trips == 1 + 2 + 2 + 1
