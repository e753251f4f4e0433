"""The loops on tensors against the compiled ones, word for word, on the processor.

What a GPU would compute is the same code on another device; the exactness of its matrix products
is argued in radiopaque/kernels/tensors/linear.py and tried at the bound here.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from radiopaque.errors import ConfigError, MessageSizeError, MessageValueError, TensorError
from radiopaque.graph.plan import Convolution, MatrixProduct, Multiply, WindowSum
from radiopaque.kernels.bits import packed_size
from radiopaque.kernels.comparison import tie_break_table
from radiopaque.kernels.cpu import CPU
from radiopaque.kernels.device import Device
from radiopaque.kernels.tensors import bits as bit_strings
from radiopaque.kernels.tensors import device as devices
from radiopaque.kernels.tensors import linear
from radiopaque.kernels.tensors.device import TensorDevice
from radiopaque.kernels.tensors.words import down, low, signed, wide
from tests.unit.kernels.definitions import placements, ring_elements

Words = NDArray[np.unsignedinteger]
TENSORS = TensorDevice(torch.device("cpu"))
RINGS = (np.uint32, np.uint64)
UNSIGNED = (np.uint8, np.uint16, np.uint32, np.uint64)
by_ring = pytest.mark.parametrize("ring", RINGS)


def same(result: Any, expected: Words) -> None:
    """A tensor's words, and its dtype as it would be sent."""
    words = TENSORS.download(result)
    assert words.dtype == expected.dtype
    np.testing.assert_array_equal(words, expected)


# --- words and bit strings ---------------------------------------------------------------------


@pytest.mark.parametrize("dtype", UNSIGNED)
def test_words_go_there_and_back(dtype: Any) -> None:
    words = ring_elements(1, (3, 5), dtype)
    here = TENSORS.upload(words)
    same(here, words)
    same(here.T, words.T)
    same(TENSORS.view(TENSORS.upload(words.reshape(-1).view(np.uint8)), dtype), words.reshape(-1))
    assert here.nbytes == words.nbytes


def test_an_uploaded_array_is_a_copy() -> None:
    words = np.zeros(4, np.uint32)
    here = TENSORS.upload(words)
    words[:] = 1
    same(here, np.zeros(4, np.uint32))


@pytest.mark.parametrize("places", [0, 1, 31])
@by_ring
def test_words_are_shifted_without_a_sign(ring: Any, places: int) -> None:
    words = ring_elements(2, (50,), ring)
    same(TENSORS.shifted(TENSORS.upload(words), places), words >> ring(places))
    assert torch.equal(wide(TENSORS.upload(words)), TENSORS.upload(words.astype(np.uint64)))


def test_helpers_at_their_ends() -> None:
    minus_one = torch.tensor([-1])
    assert low(minus_one, 64).tolist() == [-1]
    assert low(minus_one, 63).tolist() == [(1 << 63) - 1]
    assert down(minus_one, 0).tolist() == [-1]
    assert down(minus_one, 63).tolist() == [1]
    assert [signed(v, 32) for v in (0, 2**31 - 1, 2**31, 2**32 - 1, -1)] == [
        0,
        2**31 - 1,
        -(2**31),
        -1,
        -1,
    ]


@settings(max_examples=60, deadline=None)
@given(
    dtype=st.sampled_from(UNSIGNED),
    width=st.integers(1, 64),
    count=st.integers(0, 300),
    seed=st.integers(0, 2**32),
)
def test_bit_strings_are_those_of_the_processor(
    dtype: Any, width: int, count: int, seed: int
) -> None:
    width = min(width, 8 * np.dtype(dtype).itemsize)
    values = ring_elements(seed, (count,), dtype)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(bit_strings, "PIECE", 64)
        packed = TENSORS.pack(TENSORS.upload(values), width)
        np.testing.assert_array_equal(packed, CPU.pack(values, width))
        unpacked = TENSORS.unpack(packed, count, width, np.dtype(dtype))
    same(unpacked, CPU.unpack(packed, count, width, np.dtype(dtype)))


def test_bad_bit_strings() -> None:
    with pytest.raises(MessageSizeError):
        TENSORS.unpack(np.zeros(3, np.uint8), 3, 3, np.dtype(np.uint8))
    with pytest.raises(MessageValueError):
        TENSORS.unpack(np.array([0, 2], np.uint8), 3, 3, np.dtype(np.uint8))


# --- linear maps -------------------------------------------------------------------------------


@settings(max_examples=80, deadline=None)
@given(
    placement=placements(),
    groups=st.integers(1, 3),
    group_in=st.integers(1, 3),
    group_out=st.integers(1, 3),
    batch=st.integers(1, 2),
    short=st.booleans(),
    gathered=st.sampled_from([1, 100, linear.MAX_GATHERED]),
    depth=st.sampled_from([2, linear.EXACT_DEPTH]),
    ring=st.sampled_from(RINGS),
    seed=st.integers(0, 2**32),
)
def test_convolution_is_that_of_the_processor(
    placement: Any,
    groups: int,
    group_in: int,
    group_out: int,
    batch: int,
    short: bool,
    gathered: int,
    depth: int,
    ring: Any,
    seed: int,
) -> None:
    """In bands of any height, with sums in parts, for weights of one limb and of all."""
    kernel, strides, pads, dilations, size = placement
    spec = Convolution(groups * group_out, kernel, strides, pads, dilations, groups)
    x = ring_elements(seed, (batch, groups * group_in, *size), ring)
    weights = ring_elements(seed + 1, (groups * group_out, group_in, *kernel), ring)
    if short:
        weights = weights.view(f"i{x.itemsize}") % (1 << 16) - (1 << 15)
        weights = weights.astype(f"i{x.itemsize}").view(ring)
    expected = CPU.linear_map(spec, weights)(x)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(linear, "MAX_GATHERED", gathered)
        monkeypatch.setattr(linear, "EXACT_DEPTH", depth)
        same(TENSORS.linear_map(spec, weights)(TENSORS.upload(x)), expected)


@pytest.mark.parametrize(("ring", "fitting", "masks"), [(np.uint32, 1, 2), (np.uint64, 4, 4)])
def test_how_many_limbs_are_multiplied_tells_nothing(ring: Any, fitting: int, masks: int) -> None:
    """Short weights are told from others only in the ring in which the compiler makes them so."""
    short = np.array([[[0, (1 << 15) - 1, -(1 << 15)]]]).astype(ring)
    long = short + ring(1)
    for words, limbs in ((short, fitting), (long, masks)):
        assert len(linear.LimbMatrix(TENSORS.upload(words))._limbs) == limbs


@pytest.mark.parametrize("shape", [(7,), (1, 7), (3, 7), (2, 3, 7)])
@by_ring
def test_matrix_product_is_that_of_the_processor(ring: Any, shape: tuple[int, ...]) -> None:
    x, weights = ring_elements(3, shape, ring), ring_elements(4, (7, 5), ring)
    result = TENSORS.linear_map(MatrixProduct(5), weights)(TENSORS.upload(x))
    same(result, CPU.linear_map(MatrixProduct(5), weights)(x))


@by_ring
def test_elementwise_product_is_that_of_the_processor(ring: Any) -> None:
    x, weights = ring_elements(5, (2, 3, 4, 4), ring), ring_elements(6, (3, 1, 1), ring)
    result = TENSORS.linear_map(Multiply((3, 1, 1)), weights)(TENSORS.upload(x))
    same(result, x * weights)


def largest(depth: int, ring: Any) -> tuple[Words, Words]:
    """[1, depth] and [depth, 1] of words whose limbs are all 65535, but for one weight."""
    weights = np.full((depth, 1), ~ring(0))
    weights[0] = 1 << 16
    return np.full((1, depth), ~ring(0)), weights


@pytest.mark.parametrize("depth", [linear.EXACT_DEPTH, linear.EXACT_DEPTH + 3])
@by_ring
def test_sums_at_the_bound_are_exact(ring: Any, depth: int) -> None:
    """Every product of limbs is 65535 squared: no sum of so many terms is larger."""
    assert linear.EXACT_DEPTH * 65535**2 < 2**53
    x, weights = largest(depth, ring)
    result = TENSORS.linear_map(MatrixProduct(1), weights)(TENSORS.upload(x))
    expected = (depth - 1 - (1 << 16)) % (1 << (8 * x.itemsize))
    same(result, np.array([[expected]], ring))


def test_sums_beyond_the_bound_would_not_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test above can fail: an odd sum above 2^53 is no float64."""
    depth = 2 * linear.EXACT_DEPTH + 2
    x, weights = largest(depth, np.uint32)
    monkeypatch.setattr(linear, "EXACT_DEPTH", 2 * depth)
    result = TENSORS.linear_map(MatrixProduct(1), weights)(TENSORS.upload(x))
    assert TENSORS.download(result)[0, 0] != depth - 1 - (1 << 16)


@settings(max_examples=40, deadline=None)
@given(
    placement=placements(),
    outer=st.sampled_from([(), (3,), (2, 3)]),
    ring=st.sampled_from(RINGS),
    seed=st.integers(0, 2**32),
)
def test_window_sum_is_that_of_the_processor(
    placement: Any, outer: tuple[int, ...], ring: Any, seed: int
) -> None:
    kernel, strides, pads, dilations, size = placement
    spec = WindowSum(kernel, strides, pads, dilations)
    x = ring_elements(seed, (*outer, *size), ring)
    same(TENSORS.window_sum(TENSORS.upload(x), spec), CPU.window_sum(x, spec))


def refused(device: Device, what: str) -> None:
    """One mistake, on a device."""
    x = np.zeros((1, 2, 4, 4), np.uint32)
    weights = np.zeros((2, 2, 3, 3), np.uint32)
    spec = Convolution(2, (3, 3))
    if what == "another ring":
        x = x.astype(np.uint64)
    elif what == "channels":
        x = x[:, :1].copy()
    elif what == "too small":
        x = x[:, :, :2].copy()
    elif what == "weights":
        weights = weights[:1]
    elif what == "groups":
        spec = Convolution(2, (3, 3), groups=3)
    elif what == "columns":
        device.linear_map(MatrixProduct(2), weights[0, 0])(device.upload(x))
    elif what == "no matrix":
        device.linear_map(MatrixProduct(2), weights)
    elif what == "window":
        device.window_sum(device.upload(x), WindowSum((5, 5)))
    elif what == "no image":
        device.window_sum(device.upload(x[0, 0, 0]), WindowSum((1, 1)))
    device.linear_map(spec, weights)(device.upload(x))


@pytest.mark.parametrize("device", [CPU, TENSORS], ids=["processor", "tensors"])
@pytest.mark.parametrize(
    "what",
    [
        "another ring",
        "channels",
        "too small",
        "weights",
        "groups",
        "columns",
        "no matrix",
        "window",
        "no image",
    ],
)
def test_what_does_not_fit_is_refused(device: Device, what: str) -> None:
    with pytest.raises(TensorError):
        refused(device, what)


# --- comparison and truncation -----------------------------------------------------------------

WINDOWS = [(32, 19, 0), (32, 32, 13), (32, 25, 0), (32, 31, 0), (32, 32, 1)]
WINDOWS += [(64, 32, 13), (64, 64, 45), (64, 64, 39), (64, 41, 16), (64, 64, 33)]
SIZE, FIRST, STOP = 700, 130, 641


def draw(seed: int, shape: int | tuple[int, ...], dtype: Any) -> Words:
    limits = np.iinfo(dtype)
    return np.random.default_rng(seed).integers(0, limits.max, shape, dtype, endpoint=True)


def both(loop: str, arguments: list[Any]) -> None:
    """A loop on both devices with the same arguments: afterwards all arrays are the same."""
    own = [a.copy() if isinstance(a, np.ndarray) else a for a in arguments]
    there = [TENSORS.upload(a) if isinstance(a, np.ndarray) else a for a in arguments]
    getattr(CPU, loop)(*own)
    getattr(TENSORS, loop)(*there)
    changed = 0
    for before, expected, result in zip(arguments, own, there, strict=True):
        if isinstance(expected, np.ndarray):
            same(result, expected)
            changed += not np.array_equal(before, expected)
    assert changed


@pytest.mark.parametrize(("k", "opened_bits", "shift"), WINDOWS)
def test_comparison_is_that_of_the_processor(k: int, opened_bits: int, shift: int) -> None:
    """Every loop on uniform words, which is what all of its operands are; a block in a layer."""
    ring: Any = np.dtype(f"uint{k}").type
    n = opened_bits - 1 - shift
    chunks = n // 6
    index_bits = 2 * chunks - 1
    octets = (n + 1 + index_bits) // 8
    word = np.uint32 if octets <= 4 else np.uint64
    reply = np.uint8 if index_bits < 8 else np.uint16
    length = STOP - FIRST
    level1, level2 = (
        draw(1, (chunks, SIZE), np.uint64),
        draw(2, ((1 << index_bits) // 32, SIZE), np.uint32),
    )
    assert level2.shape[0] == tie_break_table(chunks).size
    products = draw(3, (5, SIZE), ring)
    masks = [
        draw(4 + i, SIZE, t) for i, t in enumerate((ring, ring, *[np.uint16] * 2, *[np.uint8] * 2))
    ]
    both("deal_comparison", [*masks, opened_bits, shift, level1, level2, products])
    mu, offset, h = masks[2], masks[1], masks[0][FIRST:STOP]
    masked = np.zeros(length, word)
    message = np.zeros((octets, length), np.uint8)
    both(
        "open_comparison",
        [h, offset, mu, level1, FIRST, opened_bits, shift, masked, message],
    )
    heard = draw(20, (octets, length), np.uint8)
    both(
        "select_comparison",
        [heard, mu, level1, level2, FIRST, n, masked, masks[4][:length], np.zeros(length, reply)],
    )
    masked = (draw(21, length, np.uint64) >> np.uint64(64 - 8 * octets)).astype(word)
    answer = draw(22, length, reply) & reply((1 << (index_bits + 1)) - 1)
    both(
        "decide_comparison",
        [
            masked,
            answer,
            level2,
            FIRST,
            n,
            index_bits,
            np.zeros(length, np.uint8),
            masks[4][:length],
        ],
    )
    opened = draw(23, length, np.uint8) & np.uint8(1)
    for model_owner in (False, True):
        both(
            "finish_comparison",
            [
                masked,
                opened,
                products,
                draw(24, length, ring),
                FIRST,
                n,
                model_owner,
                np.zeros(length, ring),
            ],
        )


@pytest.mark.parametrize(
    ("k", "opened_bits", "shift"),
    [(32, 32, 13), (32, 4, 1), (32, 32, 29), (64, 64, 1), (64, 64, 61), (64, 45, 16), (64, 33, 1)],
)
def test_truncation_is_that_of_the_processor(k: int, opened_bits: int, shift: int) -> None:
    ring: Any = np.dtype(f"uint{k}").type
    length = STOP - FIRST
    h, offset, products = draw(1, SIZE, ring), draw(2, SIZE, ring), draw(3, (2, SIZE), ring)
    both("deal_truncation", [h, offset, opened_bits, shift, products])
    top = np.full(length, 7, np.uint8)
    both(
        "open_truncation",
        [h[FIRST:STOP], offset, products, FIRST, opened_bits, shift, top, np.zeros(length, ring)],
    )
    top = draw(4, length, np.uint8) & np.uint8(1)
    both("finish_truncation", [top, products, h, FIRST, np.zeros(length, ring)])


# --- the device itself -------------------------------------------------------------------------


def test_exact_products_are_found_exact() -> None:
    TENSORS.check_exactness()


def test_a_device_with_inexact_products_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A library that multiplies in another format is found out before anything is computed."""

    def rounded(left: torch.Tensor, right: torch.Tensor) -> list[torch.Tensor]:
        return [torch.matmul(left.float(), right.float()).to(torch.int64)]

    monkeypatch.setattr(linear, "_products", rounded)
    with pytest.raises(ConfigError, match=r"not exact on cpu.*device = .cpu."):
        TENSORS.check_exactness()


def test_no_gpu_is_a_configuration_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"finds no CUDA GPU.*driver.*device = .cpu."):
        devices.open_cuda()


def test_a_device_shows_no_words() -> None:
    assert repr(TENSORS) == "TensorDevice(cpu)"
    assert TENSORS.name == CPU.name == "cpu"
    weights = ring_elements(1, (2, 2, 1, 1), np.uint32)
    for gate, shape in ((Convolution(2, (1, 1)), (2, 2, 1, 1)), (MatrixProduct(2), (2, 2))):
        shown = repr(TENSORS.linear_map(gate, weights.reshape(-1)[: np.prod(shape)].reshape(shape)))
        assert shown.startswith("<Tensor")
        assert not any(str(word) in shown for word in weights.reshape(-1) if word > 99)


def test_what_is_packed_has_its_size() -> None:
    assert TENSORS.pack(TENSORS.upload(np.zeros(13, np.uint32)), 19).size == packed_size(13, 19)
