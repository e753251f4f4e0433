"""Products by 16-bit limbs and on several threads: the same numbers as by words on one."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from radiopaque.errors import ConfigError, TensorError
from radiopaque.graph.plan import Convolution
from radiopaque.kernels import convolution, linear_loops, tiles
from radiopaque.kernels.convolution import PackedConvolution, warm_up
from radiopaque.kernels.matmul import PackedMatrix, choose_limbs
from radiopaque.kernels.workers import LEAST_SHARED, Workers
from tests.unit.kernels.definitions import (
    convolution_by_definition,
    convolution_by_shifts,
    placements,
    ring_elements,
)

needs_limbs = pytest.mark.skipif(not tiles.HAS_LIMBS, reason="no 16-bit vector products here")
LEAST, MOST = -(1 << 15), (1 << 15) - 1


@pytest.fixture(scope="module", autouse=True)
def _compiled():
    warm_up(np.uint32)


@pytest.fixture
def workers(monkeypatch):
    """Three threads that share whatever there is."""
    monkeypatch.setattr("radiopaque.kernels.workers.LEAST_SHARED", 0)
    made = Workers(3)
    yield made
    made.close()


def short_elements(seed, shape):
    """Numbers of 16 bits, half of them edges, in two's complement."""
    generator = np.random.default_rng(seed)
    values = generator.integers(LEAST, MOST + 1, shape)
    edges = generator.choice([LEAST, MOST, -1, 0, 1], shape)
    return np.where(generator.integers(0, 2, shape) == 0, edges, values).astype(np.uint32)


@needs_limbs
@settings(max_examples=100, deadline=None)
@given(
    placement=placements(),
    groups=st.integers(1, 2),
    group_in=st.integers(1, 5),
    group_out=st.sampled_from([tiles.ROWS, tiles.ROWS + 1]),
    batch=st.integers(1, 2),
    seed=st.integers(0, 2**32),
)
def test_convolution_by_limbs_is_exact(placement, groups, group_in, group_out, batch, seed):
    kernel, strides, pads, dilations, size = placement
    spec = Convolution(groups * group_out, kernel, strides, pads, dilations, groups)
    x = ring_elements(seed, (batch, groups * group_in, *size), np.uint32)
    weights = short_elements(seed + 1, (groups * group_out, group_in, *kernel))
    np.testing.assert_array_equal(
        PackedConvolution(weights, spec, limbs=True)(x), convolution_by_definition(x, weights, spec)
    )


LARGE = {
    "steps over two blocks": ((1, 63, 9, 9), Convolution(9, (3, 3), pads=(1, 1, 1, 1))),
    "positions over two blocks": ((1, 3, 40, 37), Convolution(8, (3, 3))),
    "batch of 2": ((2, 60, 30, 25), Convolution(34, (3, 3), (1, 1), (1, 2, 2, 1), (2, 1), 2)),
    "stride 2": ((1, 9, 64, 64), Convolution(16, (7, 7), (2, 2), (3, 3, 3, 3))),
    "1x1": ((2, 301, 7, 7), Convolution(33, (1, 1))),
    "1x1 with stride": ((1, 32, 28, 28), Convolution(64, (1, 1), (2, 2))),
    "half a panel": ((1, 16, 4, tiles.VECTOR_BYTES // 16), Convolution(24, (1, 1))),
    "one position": ((1, 512, 1, 1), Convolution(70, (1, 1))),
}


@needs_limbs
@pytest.mark.parametrize("case", LARGE)
def test_limbs_over_block_borders(case, workers):
    shape, spec = LARGE[case]
    x = ring_elements(1, shape, np.uint32)
    weights = short_elements(2, (spec.out_channels, shape[1] // spec.groups, *spec.kernel))
    expected = convolution_by_shifts(x, weights, spec)
    np.testing.assert_array_equal(PackedConvolution(weights, spec, limbs=True)(x), expected)
    np.testing.assert_array_equal(
        PackedConvolution(weights, spec, limbs=True, workers=workers)(x), expected
    )


@pytest.mark.parametrize("limbs", [False, pytest.param(True, marks=needs_limbs)])
@pytest.mark.parametrize("case", LARGE)
def test_bands_change_nothing(case, limbs, monkeypatch):
    """Bands of 1 and 2 rows: some lie in the padding alone."""
    shape, spec = LARGE[case]
    x = ring_elements(1, shape, np.uint32)
    for rows, pads in ((1, (9, 1, 8, 2)), (2, spec.pads)):
        monkeypatch.setattr(convolution, "BAND_BYTES", 1)
        monkeypatch.setattr(convolution, "LEAST_BAND_ROWS", rows)
        padded = replace(spec, pads=pads)
        weights = short_elements(2, (spec.out_channels, shape[1] // spec.groups, *spec.kernel))
        np.testing.assert_array_equal(
            PackedConvolution(weights, padded, limbs)(x), convolution_by_shifts(x, weights, padded)
        )


@needs_limbs
@pytest.mark.parametrize("weight", [LEAST, MOST, -1])
@pytest.mark.parametrize("word", [0x8000, 0x7FFF, 0x80008000, 0xFFFF8000, 0xFFFFFFFF, 0x80000000])
def test_the_largest_sums_of_pairs_wrap(weight, word):
    """2 * (-2^15)^2 = 2^31 is what a saturating instruction would get wrong."""
    weights = np.full((8, 600, 1, 1), weight).astype(np.uint32)
    x = np.full((1, 600, 3, 11), word, np.uint32)
    expected = 600 * weight * word % (1 << 32)
    assert (PackedConvolution(weights, Convolution(8, (1, 1)), limbs=True)(x) == expected).all()
    matrix = PackedMatrix(weights[:, :, 0, 0].T.copy(), limbs=True)
    for m in (1, 2):
        assert (matrix(np.full((m, 600), word, np.uint32)) == expected).all()


@needs_limbs
@settings(max_examples=100, deadline=None)
@given(
    m=st.sampled_from([0, 1, 2, tiles.ROWS, tiles.ROWS + 3]),
    k=st.sampled_from([1, 2, 7, linear_loops.DEPTH, linear_loops.DEPTH + 1]),
    n=st.sampled_from([1, 5, 16, 32, 35, 64]),
    seed=st.integers(0, 2**32),
)
def test_matrix_product_by_limbs_is_exact(m, k, n, seed):
    x = ring_elements(seed, (m, k), np.uint32)
    weights = short_elements(seed + 1, (k, n))
    expected = (x.astype(object) @ weights.astype(object)) % (1 << 32)
    np.testing.assert_array_equal(PackedMatrix(weights, limbs=True)(x), expected.astype(np.uint32))


@pytest.mark.parametrize("limbs", [False, pytest.param(True, marks=needs_limbs)])
@pytest.mark.parametrize("groups", [1, 2, 6])
def test_threads_change_nothing(groups, limbs, workers):
    spec = Convolution(18, (3, 2), (2, 1), (2, 1, 0, 1), (1, 2), groups)
    x = ring_elements(1, (2, 6, 13, 40), np.uint32)
    weights = short_elements(2, (18, 6 // groups, 3, 2))
    limbs = limbs and groups < 6
    np.testing.assert_array_equal(
        PackedConvolution(weights, spec, limbs, workers)(x),
        convolution_by_shifts(x, weights, spec),
    )
    matrix = short_elements(3, (50, 131))
    for m in (1, 4):
        rows = ring_elements(4, (m, 50), np.uint32)
        np.testing.assert_array_equal(PackedMatrix(matrix, limbs, workers)(rows), rows @ matrix)


@pytest.mark.parametrize("more_than_fits", [MOST + 1, LEAST - 1])
def test_limbs_are_taken_where_all_weights_fit(more_than_fits):
    weights = np.full((3, 8), LEAST).astype(np.uint32)
    assert choose_limbs(weights, None) == tiles.LIMBS_PAY
    assert not choose_limbs(weights, False)
    assert not choose_limbs(weights.astype(np.uint64), None)
    weights[2, 5] = np.int64(more_than_fits).astype(np.uint32)
    assert not choose_limbs(weights, None)
    with pytest.raises(TensorError, match="16 bits"):
        choose_limbs(weights, True)


def test_workers_share_every_part_once(workers):
    for size in range(8):
        parts: list[range] = []
        workers.share(size, 1, lambda begin, end, parts=parts: parts.append(range(begin, end)))
        assert sorted(i for part in parts for i in part) == list(range(size))


def test_little_work_is_not_shared():
    parts = []
    with closing(Workers(2)) as workers:
        workers.share(9, LEAST_SHARED - 1, lambda *part: parts.append(part))
    assert parts == [(0, 9)]


@pytest.mark.parametrize("bad", [0, 4])
def test_an_error_of_a_worker_is_raised(bad, workers):
    def work(begin, end):
        if begin <= bad < end:
            raise ValueError("part")

    with pytest.raises(ValueError, match="part"):
        workers.share(6, 1, work)


def test_no_workers_are_refused():
    with pytest.raises(ConfigError, match="0 threads"):
        Workers(0)
