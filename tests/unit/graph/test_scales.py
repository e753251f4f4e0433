"""Scales, windows and limits: what is promised fits, and what does not fit is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from radiopaque.errors import ModelRangeError
from radiopaque.graph import plan as p
from radiopaque.graph.compile import Compiled, compile_model
from radiopaque.graph.intervals import LEAST_LIMIT
from radiopaque.graph.ranges import calibrate
from radiopaque.graph.validate import validate_plan
from tests.reference import plan_integers
from tests.unit.graph.support import (
    Floats,
    assert_matches,
    assert_within_limits,
    compile_for,
    gates,
    make_model,
    node,
    plaintext,
    rng,
    run_plan,
)

IMAGE = (1, 3, 8, 8)
UNREASONABLE = {32: 2.0**20, 64: 2.0**28}
"""Activations, margin included, that a ring may refuse."""


def chain(seed: int, magnitudes: list[float], pool: bool) -> onnx.ModelProto:
    """Convolutions without bias, so that the network of 4x is 4 times that of x."""
    nodes, constants, value, channels = [], {}, "x", 3
    for number, magnitude in enumerate(magnitudes):
        constants[f"w{number}"] = magnitude * rng(seed + number).normal(size=(4, channels, 3, 3))
        nodes.append(node("Conv", f"{value} w{number}", f"c{number}", pads=[1, 1, 1, 1]))
        nodes.append(node("Relu", f"c{number}", f"r{number}"))
        value, channels = f"r{number}", 4
        if pool and number == 0:
            nodes.append(
                node(
                    "MaxPool",
                    value,
                    "pooled",
                    kernel_shape=[3, 3],
                    strides=[2, 2],
                    pads=[1, 1, 1, 1],
                )
            )
            value = "pooled"
    nodes.append(node("GlobalAveragePool", value))
    return make_model(nodes, IMAGE, constants)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 1000),
    exponents=st.lists(st.floats(-3, 2), min_size=1, max_size=4),
    image=st.floats(-3, 3),
    margin=st.floats(2, 16),
    ring_bits=st.sampled_from([32, 64]),
    pool=st.booleans(),
)
def test_what_is_promised_is_computed(
    seed: int, exponents: list[float], image: float, margin: float, ring_bits: int, pool: bool
) -> None:
    """An image near the margin of the calibrated range overflows nothing."""
    model = chain(seed, [10.0**e for e in exponents], pool)
    x = (10.0**image * rng(seed).normal(size=IMAGE)).astype(np.float32)
    ranges = calibrate(model, [x])
    try:
        compiled = compile_model(model, ranges=ranges, ring_bits=ring_bits, margin=margin)
    except ModelRangeError:
        most = margin * max(abs(v) for ends in ranges.values() for v in ends)
        assert most > UNREASONABLE[ring_bits]
        return
    validate_plan(compiled.plan)
    largest = x * np.float32(margin * 0.9)
    assert_within_limits(compiled, largest)
    expected = plaintext(model, largest)
    actual = plan_integers.outputs(compiled.plan, compiled.weights, largest)
    # Tensors below LEAST_LIMIT get the scale of one that reaches it.
    scale = max(float(np.abs(expected).max()), LEAST_LIMIT)
    # A wrapped value is off by twice the limit. Weights of a layer that takes 1e5 to 1 are coarse
    # in the 32-bit ring; how exact ordinary networks are is tested elsewhere.
    assert float(np.abs(actual - expected).max()) <= (0.5 if ring_bits == 32 else 2e-3) * scale


def matrices(*factors: float, relu: bool = True) -> onnx.ModelProto:
    """Matrix products, each followed by a ReLU."""
    nodes, constants, value = [], {}, "x"
    for number, factor in enumerate(factors):
        constants[f"w{number}"] = factor * rng(number).normal(size=(16, 16))
        nodes.append(node("MatMul", f"{value} w{number}", f"m{number}"))
        value = f"m{number}"
        if relu:
            nodes.append(node("Relu", value, f"r{number}"))
            value = f"r{number}"
    constants["w"] = rng(99).normal(size=(16, 4))
    nodes.append(node("MatMul", f"{value} w"))
    return make_model(nodes, (2, 16), constants)


def vectors(magnitude: float = 1.0) -> Floats:
    return (magnitude * rng(5).normal(size=(2, 16))).astype(np.float32)


def compared(compiled: Compiled) -> list[int]:
    return [gate.compared_bits for gate in gates(compiled, p.Relu)]


@pytest.mark.parametrize("factor", [2.0**-12, 1.0, 37.0])
def test_weights_of_the_32_bit_ring_fit_16_bits(factor: float) -> None:
    """Whatever they are, and one that a power of two would take to 2**15, just beyond."""
    model = matrices(factor, 0.01, 3.0)
    exact = matrices(1.0)
    for proto in (model, exact):
        for tensor in proto.graph.initializer:
            weights = onnx.numpy_helper.to_array(tensor).copy()
            weights.flat[0] = 2.0 ** np.ceil(np.log2(np.abs(weights).max()))
            tensor.CopyFrom(onnx.numpy_helper.from_array(weights, tensor.name))
        compiled = compile_model(proto, ranges=calibrate(proto, [vectors()]), ring_bits=32)
        for stored in compiled.weights.linear.values():
            assert np.abs(stored.view(np.int32).astype(np.int64)).max() < 1 << 15


@pytest.mark.parametrize(("magnitude", "bits"), [(1, 18), (100, 18), (3e3, 24), (2e5, 30)])
def test_wider_windows_where_the_range_needs_them(magnitude: float, bits: int) -> None:
    """6 fraction bits and the 2 of the margin in 18 bits: up to about 1024."""
    model = matrices(0.25)
    compiled = compile_for(model, vectors(magnitude), 32)
    assert compared(compiled) == [bits]
    assert_within_limits(compiled, vectors(magnitude))


def test_the_64_bit_ring_keeps_16_fraction_bits() -> None:
    """18, 24 and 30 compared bits leave 2, 8 and 14 for the range with its margin."""
    for magnitude, bits in ((0.1, 18), (5, 24), (300, 30)):
        compiled = assert_matches(matrices(0.25), vectors(magnitude))
        assert compared(compiled) == [bits]
        (relu,) = (step for step in compiled.plan.steps if isinstance(step.gate, p.Relu))
        assert relu.fraction_bits >= 16


def test_without_ranges_the_64_bit_ring_assumes_a_maximum() -> None:
    model = matrices(0.25, 0.25)
    compiled = compile_model(model, ring_bits=64, output_bits=40)
    assert compared(compiled) == [30, 30]
    assert not compiled.report.calibrated
    for magnitude in (1, 500):
        x = vectors(magnitude)
        assert_within_limits(compiled, x)
        expected = plaintext(model, x)
        error = float(np.abs(run_plan(compiled, x) - expected).max())
        assert error <= 2.0**-13 * max(1.0, float(np.abs(expected).max()))


def test_without_ranges_the_32_bit_ring_is_refused() -> None:
    with pytest.raises(ModelRangeError, match=r"--calibration DIR.*--ring 64"):
        compile_model(matrices(1))


@pytest.mark.parametrize("ring_bits", [32, 64])
def test_a_range_too_large_for_the_ring_names_the_tensor(ring_bits: int) -> None:
    model = matrices(1, 1)
    ranges = dict.fromkeys(calibrate(model, [vectors()]), (-1e18, 1e18))
    with pytest.raises(ModelRangeError, match=r"tensor '(x|[mr][01])' may reach 4e\+18"):
        compile_model(model, ranges=ranges, ring_bits=ring_bits)


def test_ranges_of_another_model_name_what_is_missing() -> None:
    ranges = calibrate(matrices(1, 1), [vectors()])
    with pytest.raises(ModelRangeError, match=r"no range is known for tensors 'm2'.*calibrate"):
        compile_model(matrices(1, 1, 1), ranges=ranges)


@pytest.mark.parametrize("broken", [(np.nan, 1.0), (0.0, np.inf), (2.0, 1.0)])
def test_ranges_that_are_none(broken: tuple[float, float]) -> None:
    model = matrices(1)
    ranges = {**calibrate(model, [vectors()]), "m0": broken}
    with pytest.raises(ModelRangeError, match="'m0'"):
        compile_model(model, ranges=ranges)


@pytest.mark.parametrize(
    ("option", "value", "text"),
    [
        ("ring_bits", 48, "32 or 64 bits"),
        ("output_bits", 0, "1 to 63"),
        ("output_bits", 64, "1 to 63"),
        ("margin", 0.5, "1 to 1024"),
        ("margin", float("nan"), "1 to 1024"),
        ("batch", 0, "a batch of 0"),
    ],
)
def test_options_out_of_range(option: str, value: Any, text: str) -> None:
    options = {"ring_bits": 64, option: value}
    with pytest.raises(ModelRangeError, match=text):
        compile_model(matrices(1), **options)


def test_products_in_a_row_truncate_between() -> None:
    compiled = assert_matches(matrices(0.3, 0.3, relu=False), vectors(), 32, 2.0**-9)
    assert len(gates(compiled, p.Truncate)) == 2
    assert not gates(compiled, p.Relu)


def test_a_mask_is_exchanged_where_bits_are_to_spare() -> None:
    """64 bits hold the scales of two products in a row: a remask instead of a round trip."""
    compiled = assert_matches(matrices(0.3, relu=False), vectors(), 64)
    assert len(gates(compiled, p.Remask)) == 1
    assert compiled.report.round_trips == 1


def average(kernel: int) -> onnx.ModelProto:
    """A convolution behind the average of what a ReLU gives."""
    nodes = [
        node("Relu", "x", "r"),
        node("AveragePool", "r", "a", kernel_shape=[kernel, kernel]),
        node("Conv", "a w"),
    ]
    return make_model(nodes, (1, 2, 16, 16), {"w": rng().normal(size=(3, 2, 1, 1))})


def test_small_averages_take_their_bits_from_the_gate_before() -> None:
    """7 x 7, as at the end of a ResNet: no truncation. 16 x 16: one, of few elements."""
    x = rng(3).normal(size=(1, 2, 16, 16)).astype(np.float32)
    small = assert_matches(average(7), x, 32, 2.0**-9)
    assert not gates(small, p.Truncate)
    (relu,) = (step for step in small.plan.steps if isinstance(step.gate, p.Relu))
    assert relu.fraction_bits < 11
    large = assert_matches(average(16), x, 32, 2.0**-9)
    assert [step.size for step in large.plan.steps if isinstance(step.gate, p.Truncate)] == [2]


def test_averages_over_different_counts_are_brought_to_one_scale() -> None:
    """9, 25 and 49 have no common scale that the ring holds: a product with 1 over the count."""
    nodes = [node("Relu", "x", "r")]
    for kernel in (3, 5, 7):
        pads = [kernel // 2] * 4
        nodes.append(
            node(
                "AveragePool",
                "r",
                f"a{kernel}",
                kernel_shape=[kernel] * 2,
                pads=pads,
                count_include_pad=1,
            )
        )
    nodes += [
        node("Concat", "a3 a5 a7", "c", axis=1),
        node("Conv", "c w"),
    ]
    model = make_model(nodes, (1, 2, 16, 16), {"w": rng().normal(size=(3, 6, 1, 1))})
    x = rng(3).normal(size=(1, 2, 16, 16)).astype(np.float32)
    assert_matches(model, x, 64)
    compiled = assert_matches(model, x, 32, 2.0**-8)
    assert gates(compiled, p.Multiply)


def test_batch_norm_of_the_input_goes_into_the_first_convolution() -> None:
    """(x - mean) / std inside the file: the padding of the convolution still pads zeros of that."""
    constants = {
        "mean": np.array([0.4, 0.5, 0.6]).reshape(3, 1, 1),
        "std": np.array([0.2, 0.25, 0.3]).reshape(3, 1, 1),
        "w": rng().normal(size=(4, 3, 3, 3)),
    }
    nodes = [
        node("Sub", "x mean", "centred"),
        node("Div", "centred std", "normalised"),
        node("Conv", "normalised w", pads=[1, 1, 1, 1]),
    ]
    model = make_model(nodes, IMAGE, constants)
    x = rng(1).uniform(size=IMAGE).astype(np.float32)
    compiled = assert_matches(model, x)
    kinds = [type(step.gate).__name__ for step in compiled.plan.steps]
    assert kinds == ["Input", "AddConstant", "Convolution", "Output"]


@settings(max_examples=40, deadline=None)
@given(bits=st.integers(4, 31), magnitude=st.floats(1e-3, 1e3))
def test_the_output_covers_the_logits_and_no_more(bits: int, magnitude: float) -> None:
    model = matrices(0.1)
    x = vectors(magnitude)
    compiled = compile_for(model, x, 32, output_bits=bits)
    gate = compiled.plan.output_step.gate
    assert isinstance(gate, p.Output)
    assert gate.bits <= bits
    limit = compiled.plan.output_step.limit
    top = gate.bits + gate.position
    assert limit <= (1 << (top - 1)) - 1 - (1 << gate.position >> 1)
    if gate.position:
        assert limit > (1 << (top - 2)) - 1 - (1 << gate.position >> 2)
    exact = plan_integers.outputs(compiled.plan, compiled.weights, x)
    unit = (1 << gate.position) / float(compiled.plan.output_step.scale)
    # The result is half a unit off at most; the truncation before it rounds up or down.
    assert float(np.abs(run_plan(compiled, x) - exact).max()) <= unit + 0.05 * magnitude


def test_a_convolution_takes_over_the_divisor_of_an_average() -> None:
    """Concatenated with an average of 9, it gets a scale of 9 times a power of two, for free."""
    nodes = [
        node("Relu", "x", "r"),
        node("AveragePool", "r", "a", kernel_shape=[3, 3]),
        node("Conv", "r w", "c"),
        node("Concat", "a c", "j", axis=1),
        node("Relu", "j"),
    ]
    model = make_model(nodes, IMAGE, {"w": rng().normal(size=(2, 3, 3, 3))})
    x = rng(3).normal(size=IMAGE).astype(np.float32)
    compiled = assert_matches(model, x, 32, 2.0**-9)
    (convolution,) = (s for s in compiled.plan.steps if isinstance(s.gate, p.Convolution))
    assert convolution.divisor == 9
    assert not gates(compiled, p.Multiply)
    assert not gates(compiled, p.Truncate)
