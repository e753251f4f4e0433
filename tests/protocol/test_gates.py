"""Linear and local gates against plain integer arithmetic, on edge and random ring elements."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from radiopaque.graph import plan as p
from tests.protocol import plain
from tests.protocol.plain import Bench, Integers, integers, random_ring, wrap

RINGS = st.sampled_from((32, 64))
SEEDS = st.integers(0, 1 << 30)
quickly = settings(max_examples=60, deadline=None)


@st.composite
def windows(draw: st.DrawFn) -> tuple[dict[str, tuple[int, ...]], tuple[int, int]]:
    """Window parameters, and an image size into which at least one window fits."""
    pair = st.tuples(st.integers(1, 3), st.integers(1, 3))
    kernel, strides, dilations = draw(pair), draw(pair), draw(pair)
    pads = draw(st.tuples(*[st.integers(0, 2)] * 4))
    size = []
    for axis in range(2):
        span = (kernel[axis] - 1) * dilations[axis] + 1
        least = max(1, span - pads[axis] - pads[axis + 2])
        size.append(draw(st.integers(least, least + 4)))
    parameters = {"kernel": kernel, "strides": strides, "pads": pads, "dilations": dilations}
    return parameters, (size[0], size[1])


shapes = st.lists(st.integers(1, 4), min_size=1, max_size=4).map(tuple)


@quickly
@given(RINGS, windows(), st.integers(1, 3), st.integers(1, 2), st.integers(1, 3), SEEDS)
def test_convolution(
    k: int,
    window: tuple[dict[str, tuple[int, ...]], tuple[int, int]],
    groups: int,
    group_in: int,
    batch: int,
    seed: int,
) -> None:
    parameters, size = window
    group_out = seed % 3 + 1
    gate = p.Convolution(group_out * groups, groups=groups, **parameters)  # type: ignore[arg-type]
    x = random_ring(k, (batch, group_in * groups, *size), seed)
    w = random_ring(k, (group_out * groups, group_in, *gate.kernel), seed + 1)
    expected = plain.convolution(x, w, gate)
    bench = Bench(k, x, seed)
    bench.linear(gate, bench.value, w, expected.shape)
    bench.check(expected)


@quickly
@given(RINGS, shapes, st.integers(1, 5), SEEDS)
def test_matrix_product(k: int, shape: tuple[int, ...], columns: int, seed: int) -> None:
    x = random_ring(k, shape, seed)
    w = random_ring(k, (shape[-1], columns), seed + 1)
    expected = (x[..., :, None] * w).sum(axis=-2)
    bench = Bench(k, x, seed)
    bench.linear(p.MatrixProduct(columns), bench.value, w, expected.shape)
    bench.check(expected)


@quickly
@given(RINGS, shapes, st.data(), SEEDS)
def test_multiply(k: int, shape: tuple[int, ...], data: st.DataObject, seed: int) -> None:
    narrow = data.draw(broadcast_to(shape))
    x, w = random_ring(k, shape, seed), random_ring(k, narrow, seed + 1)
    bench = Bench(k, x, seed)
    bench.linear(p.Multiply(narrow), bench.value, w, shape)
    bench.check(x * w)


@st.composite
def broadcast_to(draw: st.DrawFn, shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape that numpy broadcasts to another."""
    kept = shape[draw(st.integers(0, len(shape))) :]
    return tuple(draw(st.sampled_from((1, extent))) for extent in kept)


@quickly
@given(RINGS, shapes, st.data(), SEEDS)
def test_add_constant(k: int, shape: tuple[int, ...], data: st.DataObject, seed: int) -> None:
    x = random_ring(k, shape, seed)
    c = random_ring(k, data.draw(broadcast_to(shape)), seed + 1)
    bench = Bench(k, x, seed)
    bench.constant(bench.value, c)
    bench.check(x + c)


@quickly
@given(RINGS, shapes, st.lists(st.integers(-(1 << 63), (1 << 63) - 1), max_size=3), SEEDS)
def test_combine(k: int, shape: tuple[int, ...], coefficients: list[int], seed: int) -> None:
    coefficients = [*coefficients, 1, -1, 0, -(1 << (k - 1))]
    np.random.default_rng(seed).shuffle(coefficients)
    x = random_ring(k, shape, seed)
    bench = Bench(k, x, seed)
    values: dict[int, Integers] = {bench.value: x}
    for position in range(2):
        c = random_ring(k, shape, seed + 1 + position)
        step = bench.constant(bench.value, c)
        values[step] = x + c
    chosen = [list(values)[i % 3] for i in range(len(coefficients))]
    bench.build.add(p.Combine(tuple(coefficients)), *chosen)
    expected = x * 0
    for coefficient, value in zip(coefficients, chosen, strict=True):
        expected = expected + coefficient * values[value]
    bench.check(expected)


@quickly
@given(RINGS, shapes, st.data(), SEEDS)
def test_moves(k: int, shape: tuple[int, ...], data: st.DataObject, seed: int) -> None:
    """Reshape, transpose, slice, pad and expand, one after the other."""
    x = random_ring(k, shape, seed)
    bench = Bench(k, x, seed)
    axes = tuple(data.draw(st.permutations(range(len(shape)))))
    turned = x.transpose(axes)
    value = bench.build.add(p.Transpose(axes), bench.value, shape=turned.shape)
    starts, strides, index = [], [], []
    for extent in turned.shape:
        start, stride = data.draw(st.integers(0, extent - 1)), data.draw(st.integers(1, 3))
        count = data.draw(st.integers(1, (extent - 1 - start) // stride + 1))
        starts.append(start)
        strides.append(stride)
        index.append(slice(start, start + (count - 1) * stride + 1, stride))
    cut = turned[tuple(index)]
    value = bench.build.add(p.Slice(tuple(starts), tuple(strides)), value, shape=cut.shape)
    around = [(data.draw(st.integers(0, 2)), data.draw(st.integers(0, 2))) for _ in shape]
    filling = data.draw(st.integers(-(1 << 63), (1 << 63) - 1))
    padded = plain.pad(cut, around, filling)
    before, after = zip(*around, strict=True)
    value = bench.build.add(p.Pad(before, after, filling), value, shape=padded.shape)
    column = padded.reshape(-1, 1)
    value = bench.build.add(p.Reshape(), value, shape=column.shape)
    wide = np.broadcast_to(column, (2, column.shape[0], 3))
    bench.build.add(p.Expand(), value, shape=wide.shape)
    bench.check(wide)


@quickly
@given(RINGS, windows(), st.lists(st.integers(1, 3), max_size=2), SEEDS)
def test_window_sum(
    k: int,
    window: tuple[dict[str, tuple[int, ...]], tuple[int, int]],
    leading: list[int],
    seed: int,
) -> None:
    parameters, size = window
    gate = p.WindowSum(**parameters)  # type: ignore[arg-type]
    x = random_ring(k, (*leading, *size), seed)
    expected = plain.window_sum(x, gate)
    bench = Bench(k, x, seed)
    bench.build.add(gate, bench.value, shape=expected.shape)
    bench.check(expected)


@quickly
@given(RINGS, st.integers(0, 2), st.integers(1, 3), SEEDS)
def test_remask_of_joined_derived_and_fresh_masks(k: int, axis: int, batch: int, seed: int) -> None:
    """Concatenations of both kinds of mask are multiplied again after a re-mask, twice over."""
    x = random_ring(k, (batch, 3, 2), seed)
    w = [random_ring(k, (2, 2), seed + i) for i in range(1, 4)]
    bench = Bench(k, x, seed)
    derived = bench.linear(p.MatrixProduct(2), bench.value, w[0], x.shape)
    expected = (x[..., :, None] * w[0]).sum(axis=-2)
    value = bench.value
    for matrix in w[1:]:
        expected = np.concatenate([expected, x, expected], axis)
        value = bench.build.add(p.Concatenate(axis), derived, value, derived, shape=expected.shape)
        fresh = bench.build.add(p.Remask(), value, shape=expected.shape)
        again = expected.reshape(-1, 2)
        flat = bench.build.add(p.Reshape(), fresh, shape=again.shape)
        expected = (again[..., :, None] * matrix).sum(axis=-2)
        derived = bench.linear(p.MatrixProduct(2), flat, matrix, expected.shape)
        # the next round joins this derived value with the fresh one that it was made from
        x, value, axis = again, flat, axis % 2
    bench.check(expected)


@quickly
@given(RINGS, st.lists(st.integers(0, 7), min_size=1, max_size=8), SEEDS)
def test_chains_of_random_gates(k: int, kinds: list[int], seed: int) -> None:
    """Any order of gates, values used again later; a re-mask wherever the rules ask for one."""
    rng = np.random.default_rng(seed)
    shape = (2, 2, 3, 3)
    start = random_ring(k, shape, seed)
    bench = Bench(k, start, seed)
    values, derived = {bench.value: start}, {bench.value: False}
    for position, kind in enumerate(kinds):
        source = int(rng.choice(list(values)))
        other = int(rng.choice(list(values)))
        x = values[source]
        if kind <= 2 and derived[source]:
            fresh = bench.build.add(p.Remask(), source)
            values[fresh], derived[fresh] = x, False
            source = fresh
        w = random_ring(k, (2, 2, 3, 3), seed + position + 1)
        if kind == 0:
            conv = p.Convolution(2, (3, 3), pads=(1, 1, 1, 1))
            new = bench.linear(conv, source, w, shape)
            made = plain.convolution(x, w, conv)
        elif kind == 1:
            new = bench.linear(p.Multiply((2, 1, 1)), source, w[0, :, :1, :1], shape)
            made = x * w[0, :, :1, :1]
        elif kind == 2:
            new = bench.linear(p.MatrixProduct(3), source, w[0, 0], shape)
            made = (x[..., :, None] * w[0, 0]).sum(axis=-2)
        elif kind == 3:
            new, made = bench.build.add(p.Combine((3, -1)), source, other), 3 * x - values[other]
        elif kind == 4:
            new = bench.build.add(p.Transpose((1, 0, 3, 2)), source)
            made = x.transpose(1, 0, 3, 2)
        elif kind == 5:
            pooling = p.WindowSum((3, 2), pads=(1, 0, 1, 1))
            new, made = bench.build.add(pooling, source), plain.window_sum(x, pooling)
        elif kind == 6:
            new, made = bench.constant(source, w), x + w
        else:
            new, made = bench.build.add(p.Remask(), source), x
        values[new] = wrap(made, k)
        combined = derived[source] or (kind == 3 and derived[other])
        derived[new] = kind <= 2 or (kind != 7 and combined)
        last = new
    bench.check(values[last])


@pytest.mark.parametrize("k", [32, 64])
def test_ends_pass_every_ring_element(k: int) -> None:
    values = random_ring(k, (2, 1, 40, 50), 3)
    run = Bench(k, values, 4).check(values)
    assert run.counters.round_trips == 1


@pytest.mark.parametrize(
    ("k", "bits", "position"),
    [(32, 16, 4), (32, 8, 24), (32, 2, 0), (32, 31, 1), (64, 16, 48), (64, 63, 1), (64, 20, 17)],
)
def test_output_window(k: int, bits: int, position: int) -> None:
    """Both ends of the window come out right, whatever the mask: at most half a unit off."""
    half_unit = 1 << position >> 1
    limit = (1 << (bits + position - 1)) - 1 - half_unit
    edges = [limit, -limit, limit - 1, 1 - limit, 0, 1, -1, half_unit, -half_unit]
    values = integers([v for v in edges if abs(v) <= limit] * 100, (1, -1))
    result, _ = Bench(k, values, 5, limit).run(bits, position)
    difference = result - values
    assert abs(difference).max() <= half_unit
    if position > 3:
        # spread over the unit by the mask, of which 900 elements miss half with chance 2**-800
        assert len(set(difference.reshape(-1))) > 8
