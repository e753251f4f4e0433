"""The ring kernels against the definitions, in Python integers and in plain numpy."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from radiopaque.errors import TensorError
from radiopaque.graph.plan import Convolution, WindowSum
from radiopaque.kernels import linear_loops, tiles, window_loops
from radiopaque.kernels.convolution import PackedConvolution, warm_up, window_sum
from radiopaque.kernels.matmul import PackedMatrix
from tests.unit.kernels.definitions import (
    bits,
    convolution_by_definition,
    convolution_by_shifts,
    inside,
    output_size,
    placements,
    ring_elements,
)

DTYPES = (np.uint32, np.uint64)
by_dtype = pytest.mark.parametrize("dtype", DTYPES)


@pytest.fixture(scope="module", autouse=True)
def _compiled():
    for dtype in DTYPES:
        warm_up(dtype)


@settings(max_examples=150, deadline=None)
@given(
    placement=placements(),
    groups=st.integers(1, 3),
    group_in=st.integers(1, 3),
    group_out=st.sampled_from([1, 2, 3, tiles.ROWS, tiles.ROWS + 1]),
    batch=st.integers(1, 2),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**32),
)
def test_convolution_is_exact(placement, groups, group_in, group_out, batch, dtype, seed):
    kernel, strides, pads, dilations, size = placement
    spec = Convolution(groups * group_out, kernel, strides, pads, dilations, groups)
    x = ring_elements(seed, (batch, groups * group_in, *size), dtype)
    weights = ring_elements(seed + 1, (groups * group_out, group_in, *kernel), dtype)
    result = PackedConvolution(weights, spec)(x)
    expected = convolution_by_definition(x, weights, spec)
    assert result.dtype == x.dtype
    np.testing.assert_array_equal(result, expected)


LARGE = {
    "inner dimension over two blocks": ((1, 64, 9, 9), Convolution(9, (3, 3), pads=(1, 1, 1, 1))),
    "positions over two blocks": ((1, 3, 40, 37), Convolution(8, (3, 3))),
    "all at once, batch of 2": (
        (2, 60, 30, 25),
        Convolution(34, (3, 3), (1, 1), (1, 2, 2, 1), (2, 1), 2),
    ),
    "stem": ((1, 3, 64, 64), Convolution(16, (7, 7), (2, 2), (3, 3, 3, 3))),
    "stride over the kernel": ((1, 5, 33, 31), Convolution(11, (2, 2), (3, 4))),
    "1x1": ((2, 300, 7, 7), Convolution(33, (1, 1))),
    "1x1 with stride": ((1, 32, 28, 28), Convolution(64, (1, 1), (2, 2))),
    "one position": ((1, 512, 1, 1), Convolution(70, (1, 1))),
    "window as large as the image": ((3, 20, 7, 5), Convolution(17, (7, 5))),
    "depthwise": ((2, 40, 19, 23), Convolution(40, (3, 3), (1, 1), (1, 1, 1, 1), groups=40)),
    "depthwise, stride 2": (
        (1, 24, 21, 20),
        Convolution(24, (5, 3), (2, 2), (2, 1, 2, 1), groups=24),
    ),
    "depthwise, 3 outputs each": ((1, 7, 12, 12), Convolution(21, (3, 3), groups=7)),
    "depthwise, 9 outputs each": ((1, 5, 12, 12), Convolution(45, (3, 3), groups=5)),
    "wide row": ((1, 2, 1, 600), Convolution(3, (1, 9), (1, 2), (0, 4, 0, 4))),
}


@by_dtype
@pytest.mark.parametrize("case", LARGE)
def test_convolution_over_block_borders(case, dtype):
    shape, spec = LARGE[case]
    x = ring_elements(1, shape, dtype)
    weights = ring_elements(2, (spec.out_channels, shape[1] // spec.groups, *spec.kernel), dtype)
    np.testing.assert_array_equal(
        PackedConvolution(weights, spec)(x), convolution_by_shifts(x, weights, spec)
    )


@by_dtype
@pytest.mark.parametrize("groups", [1, 6])
def test_products_wrap_at_the_edges(dtype, groups):
    """(-1) * (-1) = 1: the result counts the window's elements inside the image."""
    spec = Convolution(6, (3, 3), pads=(1, 1, 1, 1), groups=groups)
    minus_one = (1 << bits(dtype)) - 1
    x = np.full((1, 6, 4, 4), minus_one, dtype)
    weights = np.full((6, 6 // groups, 3, 3), minus_one, dtype)
    row = np.array([2, 3, 3, 2])
    expected = np.broadcast_to(row[:, None] * row * (6 // groups), (1, 6, 4, 4))
    np.testing.assert_array_equal(PackedConvolution(weights, spec)(x), expected)
    half = np.full_like(x, 1 << (bits(dtype) - 1))
    assert not PackedConvolution(weights * dtype(2), spec)(half).any()


@by_dtype
def test_no_images_give_no_results(dtype):
    convolution = PackedConvolution(np.ones((4, 2, 3, 3), dtype), Convolution(4, (3, 3)))
    assert convolution(np.ones((0, 2, 5, 6), dtype)).shape == (0, 4, 3, 4)


@settings(max_examples=100, deadline=None)
@given(
    leading=st.lists(st.integers(0, 4), max_size=2),
    m=st.sampled_from([1, 2, tiles.ROWS, tiles.ROWS + 3]),
    k=st.sampled_from([1, 2, 7, linear_loops.DEPTH, linear_loops.DEPTH + 1]),
    n=st.sampled_from([1, 5, 16, 32, 35, 64]),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**32),
)
def test_matrix_product_is_exact(leading, m, k, n, dtype, seed):
    x = ring_elements(seed, (*leading, m, k), dtype)
    weights = ring_elements(seed + 1, (k, n), dtype)
    result = PackedMatrix(weights)(x)
    expected = (x.astype(object) @ weights.astype(object)) % (1 << bits(dtype))
    assert result.dtype == dtype
    assert result.shape == (*leading, m, n)
    np.testing.assert_array_equal(result, expected.astype(dtype))


@by_dtype
def test_matrix_product_of_a_vector(dtype):
    x = ring_elements(1, (530,), dtype)
    weights = ring_elements(2, (530, 45), dtype)
    np.testing.assert_array_equal(PackedMatrix(weights)(x), x @ weights)


@settings(max_examples=100, deadline=None)
@given(
    placement=placements(),
    leading=st.lists(st.integers(0, 3), max_size=3),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**32),
)
def test_window_sum_is_exact(placement, leading, dtype, seed):
    kernel, strides, pads, dilations, (h, w) = placement
    spec = WindowSum(kernel, strides, pads, dilations)
    x = ring_elements(seed, (*leading, h, w), dtype)
    expected = np.zeros((*leading, *output_size(spec, h, w)), dtype)
    for index in np.ndindex(*leading):
        plane = x[index].tolist()
        for oy, ox in np.ndindex(*expected.shape[-2:]):
            total = sum(plane[y][column] for _, (y, column) in inside(spec, h, w, oy, ox))
            expected[(*index, oy, ox)] = total % (1 << bits(dtype))
    result = window_sum(x, spec)
    assert result.dtype == dtype
    np.testing.assert_array_equal(result, expected)


def read_only(x):
    copy = x.copy()
    copy.flags.writeable = False
    return copy


def unaligned(x):
    return np.frombuffer(b"\0" + x.tobytes(), x.dtype, offset=1).reshape(x.shape)


def strided(x):
    wide = np.zeros((*x.shape[:-1], 2 * x.shape[-1]), x.dtype)
    wide[..., ::2] = x
    return wide[..., ::2]


def fortran(x):
    return np.asfortranarray(x)


@by_dtype
@pytest.mark.parametrize("layout", [read_only, unaligned, strided, fortran])
def test_any_layout_gives_the_same_and_compiles_nothing(layout, dtype):
    spec = Convolution(3, (3, 3))
    x = ring_elements(1, (2, 4, 6, 6), dtype)
    weights = ring_elements(2, (3, 4, 3, 3), dtype)
    matrix = ring_elements(3, (6, 5), dtype)
    results = (
        PackedConvolution(weights, spec)(x),
        PackedMatrix(matrix)(x),
        window_sum(x, WindowSum((2, 2))),
    )
    compiled = (
        linear_loops.pack_rows,
        linear_loops.pack_columns,
        linear_loops.convolve,
        linear_loops.multiply,
        window_loops.convolve_channels,
        window_loops.add_window_sums,
    )
    before = [len(function.signatures) for function in compiled]
    again = (
        PackedConvolution(layout(weights), spec)(layout(x)),
        PackedMatrix(layout(matrix))(layout(x)),
        window_sum(layout(x), WindowSum((2, 2))),
    )
    for result, expected in zip(again, results, strict=True):
        np.testing.assert_array_equal(result, expected)
    assert [len(function.signatures) for function in compiled] == before


@by_dtype
def test_weights_are_copied_and_inputs_left_alone(dtype):
    for out_channels, groups in ((9, 1), (4, 4)):
        weights = ring_elements(1, (out_channels, 4 // groups, 3, 3), dtype)
        x = ring_elements(2, (1, 4, 5, 5), dtype)
        kept = x.copy()
        convolution = PackedConvolution(weights, Convolution(out_channels, (3, 3), groups=groups))
        first = convolution(x)
        weights[:] = 0
        np.testing.assert_array_equal(convolution(x), first)
        np.testing.assert_array_equal(x, kept)
    matrix = ring_elements(3, (5, 7), dtype)
    product = PackedMatrix(matrix)
    first = product(x)
    matrix[:] = 0
    np.testing.assert_array_equal(product(x), first)


def test_threads_may_share_a_packed_convolution():
    spec = Convolution(40, (3, 3), pads=(1, 1, 1, 1))
    convolution = PackedConvolution(ring_elements(1, (40, 30, 3, 3), np.uint32), spec)
    images = [ring_elements(seed, (1, 30, 24, 24), np.uint32) for seed in range(16)]
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(convolution, images))
    for image, result in zip(images, results, strict=True):
        np.testing.assert_array_equal(result, convolution(image))


def test_repr_shows_shape_and_dtype_alone():
    weights = np.full((2, 1, 3, 3), 123456789, np.uint32)
    shown = repr(PackedConvolution(weights, Convolution(2, (3, 3))))
    assert shown == "<PackedConvolution [2, 1, 3, 3] uint32>"
    assert repr(PackedMatrix(weights.reshape(6, 3))) == "<PackedMatrix [6, 3] uint32>"


WEIGHTS = np.ones((4, 2, 3, 3), np.uint32)
IMAGE = np.ones((1, 2, 8, 8), np.uint32)


@pytest.mark.parametrize(
    ("weights", "spec", "message"),
    [
        (WEIGHTS.astype(np.float32), Convolution(4, (3, 3)), "float32"),
        (WEIGHTS.astype(np.int32), Convolution(4, (3, 3)), "int32"),
        (WEIGHTS.astype(">u4"), Convolution(4, (3, 3)), ">u4"),
        (WEIGHTS, Convolution(5, (3, 3)), r"\[4, 2, 3, 3\]"),
        (WEIGHTS, Convolution(4, (3, 2)), r"\[4, ci / 1, 3, 2\]"),
        (WEIGHTS[0], Convolution(4, (3, 3)), r"\[2, 3, 3\]"),
        (WEIGHTS[:, :0], Convolution(4, (3, 3)), r"\[4, 0, 3, 3\]"),
        (WEIGHTS, Convolution(4, (3, 3), groups=3), "3 groups"),
        (WEIGHTS, Convolution(4, (3, 3), groups=0), "0 groups"),
        (WEIGHTS, Convolution(4, (3, 3), strides=(0, 1)), "strides"),
        (WEIGHTS, Convolution(4, (3, 3), dilations=(1, 0)), "dilations"),
        (WEIGHTS, Convolution(4, (3, 3), pads=(0, 0, -1, 0)), "negative"),
        (WEIGHTS, Convolution(4, (3, 3), pads=(0, 0)), "pads"),  # type: ignore[arg-type]
    ],
)
def test_unusable_weights_are_refused(weights, spec, message):
    with pytest.raises(TensorError, match=message):
        PackedConvolution(weights, spec)


@pytest.mark.parametrize(
    ("x", "pads", "message"),
    [
        (IMAGE.astype(np.uint64), 0, "uint64"),
        (IMAGE.astype(np.int32), 0, "int32"),
        (IMAGE[0], 0, r"\[2, 8, 8\]"),
        (IMAGE[:, :1], 0, r"\[n, 2, h, w\]"),
        (IMAGE[:, :, :2], 0, "window of 3 does not fit"),
        (IMAGE[:, :, :, :0], 3, "window of 3 does not fit"),
        (IMAGE, 1 << 14, "padded"),
    ],
)
def test_unusable_images_are_refused(x, pads, message):
    convolution = PackedConvolution(WEIGHTS, Convolution(4, (3, 3), (1, 1), (pads,) * 4))
    with pytest.raises(TensorError, match=message):
        convolution(x)


def test_unusable_matrices_are_refused():
    with pytest.raises(TensorError, match="float64"):
        PackedMatrix(np.ones((3, 3)))  # type: ignore[arg-type]
    with pytest.raises(TensorError, match=r"\[3\]"):
        PackedMatrix(np.ones(3, np.uint32))
    with pytest.raises(TensorError, match=r"\[0, 3\]"):
        PackedMatrix(np.ones((0, 3), np.uint32))
    product = PackedMatrix(np.ones((3, 2), np.uint32))
    with pytest.raises(TensorError, match=r"\[\.\.\., 3\]"):
        product(np.ones((3, 2), np.uint32))
    with pytest.raises(TensorError, match=r"input is \[\]"):
        product(np.ones((), np.uint32))
    with pytest.raises(TensorError, match="uint64"):
        product(np.ones((2, 3), np.uint64))


def test_unusable_window_sums_are_refused():
    with pytest.raises(TensorError, match="int64"):
        window_sum(np.ones((3, 3), np.int64), WindowSum((2, 2)))
    with pytest.raises(TensorError, match=r"\[3\]"):
        window_sum(np.ones(3, np.uint32), WindowSum((2, 2)))
    with pytest.raises(TensorError, match="window of 4 does not fit"):
        window_sum(np.ones((3, 3), np.uint32), WindowSum((4, 1)))
    with pytest.raises(TensorError, match="strides"):
        window_sum(np.ones((3, 3), np.uint32), WindowSum((1, 1), (1, -1)))
