"""Plans that each break one rule, by name, with the text of the refusal."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from radiopaque.graph import plan as p
from tests.plans import PlanBuilder
from tests.vectors.plan_forms import full_plan

BIG = 1 << 14
"""Two axes of this extent are as many elements as a value may have."""


def network() -> p.Plan:
    """0 input, 1 convolution, 2 ReLU, 3 window sum, 4 slice, 5 concatenation, 6 combination,
    7 pad, 8 transposition, 9 reshaping, 10 truncation, 11 matrix product, 12 re-mask, 13 product,
    14 constant, 15 expansion, 16 output.
    """
    build = PlanBuilder(32, (1, 2, 6, 6), 1 << 10)
    build.add(p.Convolution(4, (3, 3), groups=2), 0, shape=(1, 4, 4, 4), limit=1 << 24)
    build.add(p.Relu(32, 13), 1, limit=1 << 12)
    build.add(p.WindowSum((2, 2), (2, 2)), 2, shape=(1, 4, 2, 2), limit=1 << 14)
    build.add(p.Slice((0, 1, 0, 0), (1, 2, 1, 1)), 3, shape=(1, 2, 2, 2))
    build.add(p.Concatenate(1), 3, 4, shape=(1, 6, 2, 2))
    build.add(p.Combine((1, -1)), 5, 5, limit=1 << 15)
    build.add(p.Pad((0, 0, 1, 0), (0, 0, 0, 1), 5), 6, shape=(1, 6, 3, 3))
    build.add(p.Transpose((0, 2, 3, 1)), 7, shape=(1, 3, 3, 6))
    build.add(p.Reshape(), 8, shape=(1, 54))
    build.add(p.Truncate(20, 4), 9, limit=1 << 12)
    build.add(p.MatrixProduct(3), 10, shape=(1, 3), limit=1 << 20)
    build.add(p.Remask(), 11)
    build.add(p.Multiply((3,)), 12, limit=1 << 22)
    build.add(p.AddConstant((3,)), 13)
    build.add(p.Expand(), 14, shape=(2, 3))
    return build.finish(20, 10)


def stepwise(number: int, **changes: Any) -> p.Plan:
    """The network with one step changed; fields of the gate by its own names."""
    plan = network()
    step = plan.steps[number]
    own = {field.name for field in dataclasses.fields(step.gate)}
    gate = dataclasses.replace(step.gate, **{k: v for k, v in changes.items() if k in own})
    rest = {k: v for k, v in changes.items() if k not in own}
    return with_step(plan, number, dataclasses.replace(step, **({"gate": gate} | rest)))


def with_step(plan: p.Plan, number: int, step: p.Step) -> p.Plan:
    """A plan with another step in one place."""
    steps = (*plan.steps[:number], step, *plan.steps[number + 1 :])
    return dataclasses.replace(plan, steps=steps)


def full(**changes: Any) -> p.Plan:
    """The plan with every optional part, its preprocessing changed."""
    plan = full_plan()
    assert plan.preprocessing is not None
    spec = dataclasses.replace(plan.preprocessing, **changes)
    return dataclasses.replace(plan, preprocessing=spec)


def simple(*steps: tuple[p.Gate, p.Shape], shape: p.Shape = (1, 1), bits: int = 16) -> p.Plan:
    """Gates in a row."""
    build = PlanBuilder(32, shape, 100)
    for gate, result in steps:
        build.add(gate, build.last, shape=result)
    return build.finish(bits)


def pictured(shape: p.Shape) -> p.Plan:
    """Gives back a pixel of each of the pictures that it takes."""
    channels, height, width = shape[1:]
    ones = (1.0,) * channels
    spec = p.Preprocessing(channels, height, width, "fit", "bilinear", ones, ones)
    pixel = (p.Slice((0, 0, 0, 0), (1, 1, 1, 1)), (shape[0], 1, 1, 1))
    return dataclasses.replace(simple(pixel, shape=shape), preprocessing=spec)


def joined(gate: p.Gate, shape: p.Shape, other: p.Shape) -> p.Plan:
    """A value and its reshaped self."""
    build = PlanBuilder(32, shape, 100)
    build.add(p.Reshape(), 0, shape=other)
    build.add(gate, 0, 1)
    return build.finish(16)


def labelled(name: str) -> p.Plan:
    """The full plan with another first class."""
    plan = full_plan()
    return dataclasses.replace(plan, classes=(name, *plan.classes[1:]))


def with_output_of_two_rows() -> p.Plan:
    """One image, two rows of results."""
    plan = full_plan()
    last = plan.output_step
    reshaped = p.Step(p.Reshape(), last.inputs, (2, 1), last.fraction_bits, limit=1 << 18)
    steps = (
        *plan.steps[:-1],
        reshaped,
        dataclasses.replace(last, inputs=(len(plan.steps) - 1,), shape=(2, 1)),
    )
    return dataclasses.replace(plan, steps=steps)


def many(gate: p.Gate, count: int, shape: p.Shape, source: int | None = None) -> p.Plan:
    """One gate many times, each on the one before or all on the same value."""
    build = PlanBuilder(32, shape, 100)
    for _ in range(count):
        build.add(gate, build.last if source is None else source)
    return build.finish(16)


def many_operands(count: int) -> p.Plan:
    """A row of a value in 2048 bands, added up with itself."""
    build = PlanBuilder(32, (1, 1, 1 << 28, 1), 100)
    row = build.add(p.Slice((0, 0, 0, 0), (1, 1, 1, 1)), 0, shape=(1, 1, 1, 1))
    build.add(p.Combine((1,) * count), *[row] * count)
    return build.finish(16)


def replaced(**changes: Any) -> p.Plan:
    """The network with other fields of its own."""
    return dataclasses.replace(network(), **changes)


Make = Callable[[], p.Plan]
RULES: dict[str, tuple[Make, str]] = {
    "ring_of_16_bits": (lambda: replaced(ring_bits=16), "32 or 64 bits, the plan says 16"),
    "one_step": (lambda: replaced(steps=network().steps[:1]), "2 to 20000 steps, this one 1"),
    "too_many_steps": (
        lambda: replaced(steps=network().steps[:1] * 20_001),
        "2 to 20000 steps, this one 20001",
    ),
    "no_input": (lambda: replaced(steps=network().steps[1:]), "step 0 must be the input"),
    "no_output": (lambda: replaced(steps=network().steps[:-1]), "last step must be the output"),
    "work_in_all": (
        lambda: simple(
            (p.Convolution(1, (4096, 4096)), (1, 1, 4097, 4097)), shape=(1, 1, 8192, 8192)
        ),
        "steps of work, over the limit of 4398046511104",
    ),
    "work_of_window_sums": (
        lambda: many(p.WindowSum((4095, 1), pads=(2047, 0, 2047, 0)), 5, (1, BIG, BIG)),
        "steps of work, over the limit",
    ),
    "work_of_additions": (
        lambda: many(p.Combine((1,)), 140, (1, BIG, BIG)),
        "steps of work, over the limit",
    ),
    "work_of_single_numbers": (
        lambda: many(p.MatrixProduct(1), 40, (1 << 27, 1)),
        "steps of work, over the limit",
    ),
    "work_of_single_pixels": (
        lambda: many(p.Convolution(1 << 20, (1, 1), groups=1 << 20), 400, (1, 1 << 20, 1, 1)),
        "steps of work, over the limit",
    ),
    "work_of_windows_far_apart": (
        lambda: many(
            p.Convolution(64, (2, 1), pads=(4096, 0, 0, 0), dilations=(4096, 1)),
            4,
            (1, 64, 8192, 64),
        ),
        "steps of work, over the limit",
    ),
    "openings_in_all": (
        lambda: many(p.Relu(19, 0), 3, (1, BIG, BIG // 2)),
        "402653184 truncated and compared elements, over the limit of 268435456",
    ),
    "weights_in_all": (
        lambda: many(p.MatrixProduct(BIG), 5, (1, BIG), 0),
        "1342177280 weights, over the limit of 1073741824",
    ),
    "depthwise_weights_as_packed": (
        lambda: simple(
            (p.Convolution(512, (512, 520), groups=512), (1, 512, 1, 1)), shape=(1, 512, 512, 520)
        ),
        "1090519040 weights, over the limit of 1073741824",
    ),
    "weights_of_a_single_column_as_packed": (
        lambda: simple((p.MatrixProduct(1), (1, 1)), shape=(1, 1 << 26)),
        "2147483648 weights, over the limit of 1073741824",
    ),
    "live_values": (
        lambda: many(p.Reshape(), 4, (1, BIG, BIG), 0),
        "1342177280 elements at one time, over the limit of 1073741824",
    ),
    "padding_of_a_single_number": (
        lambda: simple((p.Reshape(), ()), (p.Pad((), ()), ())),
        "step 2 (Pad): takes at least one axis",
    ),
    "transposition_of_a_single_number": (
        lambda: simple((p.Reshape(), ()), (p.Transpose(()), ())),
        "step 2 (Transpose): takes at least one axis",
    ),
    "rows_to_look_for": (
        lambda: many_operands(40_000),
        "bands times operands, over the limit of 67108864",
    ),
    "derived_mask": (
        lambda: stepwise(13, inputs=(11,)),
        "step 13 multiplies a value with a derived mask; it needs a Remask",
    ),
    "derived_through_local_gates": (
        lambda: simple(
            (p.MatrixProduct(1), (1, 1)), (p.Combine((1,)), (1, 1)), (p.Multiply((1,)), (1, 1))
        ),
        "step 3 multiplies a value with a derived mask",
    ),
    "rank": (lambda: stepwise(9, shape=(1, 2, 3, 3, 3, 1, 1, 1, 1)), "rank 9 is over 8"),
    "no_element": (lambda: stepwise(9, shape=(1, 0)), "shape [1, 0] is empty or too large"),
    "negative_extent": (lambda: stepwise(9, shape=(-1, -54)), "is empty or too large"),
    "axis_too_large": (lambda: stepwise(9, shape=(1, (1 << 28) + 1)), "is empty or too large"),
    "value_too_large": (
        lambda: simple(shape=(1, BIG, BIG + 1)),
        "268451840 elements are over 268435456",
    ),
    "fraction_bits": (lambda: stepwise(3, fraction_bits=63), "63 fraction bits are not in 0 to 62"),
    "fraction_bits_negative": (lambda: stepwise(3, fraction_bits=-1), "-1 fraction bits"),
    "divisor_zero": (lambda: stepwise(3, divisor=0), "divisor 0 is out of range"),
    "divisor_large": (lambda: stepwise(3, divisor=1 << 32), "divisor 4294967296"),
    "limit_large": (lambda: stepwise(3, limit=1 << 63), "limit 9223372036854775808 is out"),
    "limit_negative": (lambda: stepwise(3, limit=-1), "limit -1 is out of range"),
    "own_value": (lambda: stepwise(3, inputs=(3,)), "step 3 (WindowSum): inputs must be earlier"),
    "later_value": (lambda: stepwise(3, inputs=(9,)), "inputs must be earlier steps"),
    "negative_value": (lambda: stepwise(3, inputs=(-1,)), "inputs must be earlier steps"),
    "output_read": (
        lambda: replaced(
            steps=(*network().steps, p.Step(p.Output(8, 0), (16,), (2, 3), 0, limit=1))
        ),
        "the output is the last step",
    ),
    "two_inputs_for_one": (lambda: stepwise(2, inputs=(1, 1)), "takes 1 inputs, has 2"),
    "no_inputs_for_one": (lambda: stepwise(2, inputs=()), "takes 1 inputs, has 0"),
    "no_inputs_for_many": (
        lambda: stepwise(6, inputs=(), coefficients=()),
        "takes at least 1 inputs, has 0",
    ),
    "inputs_for_the_input": (lambda: stepwise(0, inputs=(0,)), "inputs must be earlier steps"),
    "second_input": (
        lambda: with_step(network(), 3, p.Step(p.Input(), (), (1, 4, 2, 2), 0, limit=5)),
        "the input is step 0 and no other",
    ),
    "wrong_shape": (lambda: stepwise(2, shape=(1, 4, 4, 5)), "[1, 4, 4, 5] should be [1, 4, 4, 4]"),
    "input_without_batch": (lambda: simple(shape=()), "the input's first axis is the batch"),
    "window_sum_of_one_axis": (
        lambda: simple((p.WindowSum((1, 1)), (5,)), shape=(5,)),
        "window sums take at least two axes",
    ),
    "matrix_product_of_a_scalar": (
        lambda: simple((p.Reshape(), ()), (p.MatrixProduct(1), (1,)), shape=(1,)),
        "a matrix product takes at least one axis",
    ),
    "columns_zero": (lambda: stepwise(11, columns=0), "columns out of range"),
    "columns_many": (lambda: stepwise(11, columns=(1 << 24) + 1), "columns out of range"),
    "matrix_too_large": (
        lambda: stepwise(11, columns=1 << 24, shape=(1, 1 << 24)),
        "905969664 weights are over 268435456",
    ),
    "weights_do_not_broadcast": (
        lambda: stepwise(13, weight_shape=(2,)),
        "constant [2] does not fit [1, 3]",
    ),
    "weights_of_higher_rank": (
        lambda: stepwise(13, weight_shape=(1, 1, 3)),
        "constant [1, 1, 3] does not fit [1, 3]",
    ),
    "constant_does_not_broadcast": (
        lambda: stepwise(14, constant_shape=(3, 1)),
        "constant [3, 1] does not fit [1, 3]",
    ),
    "coefficients": (lambda: stepwise(6, coefficients=(1,)), "one coefficient an input"),
    "coefficient_large": (
        lambda: stepwise(6, coefficients=(1, 1 << 63)),
        "a coefficient exceeds 64 bits",
    ),
    "combined_shapes": (lambda: stepwise(6, inputs=(5, 4)), "inputs differ in shape"),
    "reshape": (lambda: stepwise(9, shape=(1, 55)), "element counts differ"),
    "permutation_repeats": (lambda: stepwise(8, permutation=(0, 2, 2, 1)), "not a permutation"),
    "permutation_short": (lambda: stepwise(8, permutation=(0, 1, 2)), "not a permutation"),
    "padding_of_other_rank": (lambda: stepwise(7, before=(0, 0, 1)), "one padding an axis"),
    "padding_negative": (lambda: stepwise(7, after=(0, 0, -1, 1)), "padding must not be negative"),
    "padding_value": (lambda: stepwise(7, value=1 << 63), "the padding's value exceeds 64 bits"),
    "expansion": (lambda: stepwise(15, shape=(2, 4)), "[1, 3] does not expand"),
    "expansion_to_lower_rank": (lambda: stepwise(15, shape=(3,)), "[1, 3] does not expand"),
    "kernel_of_one_number": (
        lambda: stepwise(3, kernel=(2,)),
        "kernel, strides, dilations take 2 numbers, pads 4",
    ),
    "pads_of_two_numbers": (lambda: stepwise(3, pads=(0, 0)), "pads 4"),
    "stride_zero": (lambda: stepwise(3, strides=(0, 1)), "window parameters out of range"),
    "dilation_zero": (lambda: stepwise(3, dilations=(1, 0)), "window parameters out of range"),
    "kernel_large": (lambda: stepwise(3, kernel=(1, (1 << 24) + 1)), "window parameters"),
    "pads_negative": (lambda: stepwise(3, pads=(0, -1, 0, 0)), "pads out of range"),
    "pads_large": (lambda: stepwise(3, pads=(0, 0, 1 << 24, 0)), "pads out of range"),
    "window_too_large": (lambda: stepwise(3, kernel=(5, 2)), "window of 5 does not fit 4"),
    "dilated_window_too_large": (
        lambda: stepwise(3, dilations=(1, 4)),
        "window of 5 does not fit 4 positions",
    ),
    "convolution_of_three_axes": (
        lambda: simple((p.Convolution(1, (1, 1)), (1, 2, 2)), shape=(1, 2, 2)),
        "a convolution takes [n, c, h, w]",
    ),
    "channels_zero": (lambda: stepwise(1, out_channels=0), "output channels out of range"),
    "groups_zero": (lambda: stepwise(1, groups=0), "groups must be positive"),
    "groups_of_input": (lambda: stepwise(1, groups=4), "4 groups do not divide 2 and 4 channels"),
    "groups_of_output": (lambda: stepwise(1, out_channels=3), "2 groups do not divide 2 and 3"),
    "kernel_weights": (
        lambda: simple(
            (p.Convolution(1 << 16, (64, 128)), (1, 1 << 16, 1, 1)), shape=(1, 1, 64, 128)
        ),
        "536870912 weights are over 268435456",
    ),
    "padded_image": (
        lambda: simple(
            (p.Convolution(1, (1, 1), (1 << 20, 1 << 20), (0, 0, BIG, BIG)), (1, 1, 1, 1)),
            shape=(1, 1, 2, 2),
        ),
        "268500996 padded elements are over",
    ),
    "slice_of_other_rank": (
        lambda: stepwise(4, starts=(0, 1)),
        "one start, stride and count an axis",
    ),
    "slice_stride_zero": (lambda: stepwise(4, strides=(1, 0, 1, 1)), "in steps of 0 exceed 4"),
    "slice_start_negative": (lambda: stepwise(4, starts=(0, -1, 0, 0)), "2 elements from -1"),
    "slice_too_far": (lambda: stepwise(4, strides=(1, 3, 1, 1)), "2 elements from 1 in steps of 3"),
    "axis": (lambda: stepwise(5, axis=4), "axis out of range"),
    "axis_negative": (lambda: stepwise(5, axis=-1), "axis out of range"),
    "concatenated_ranks": (
        lambda: joined(p.Concatenate(0), (2, 3), (2, 3, 1)),
        "inputs differ outside the axis",
    ),
    "concatenated_shapes": (
        lambda: stepwise(5, inputs=(3, 2), shape=(1, 8, 2, 2)),
        "inputs differ outside the axis",
    ),
    "input_limit_missing": (lambda: stepwise(0, limit=0), "input's limit must fit the ring"),
    "input_limit_large": (lambda: stepwise(0, limit=1 << 31), "input's limit must fit the ring"),
    "relu_of_unknown_range": (lambda: stepwise(1, limit=0), "the input must state its limit"),
    "truncation_of_unknown_range": (lambda: stepwise(9, limit=0), "must state its limit"),
    "output_of_unknown_range": (lambda: stepwise(15, limit=0), "must state its limit"),
    "output_bits_none": (lambda: stepwise(16, bits=0), "0 output bits are not in 1 to 63"),
    "output_bits_all": (lambda: stepwise(16, bits=64), "64 output bits are not in 1 to 63"),
    "output_over_the_ring": (lambda: stepwise(16, position=13), "bits 13 to 33 exceed the ring"),
    "output_below_the_ring": (lambda: stepwise(16, position=-1), "bits -1 to 19 exceed the ring"),
    "output_window": (
        lambda: stepwise(15, limit=(1 << 29) - 512),
        "limit 536870400 exceeds the output window 536870399",
    ),
    "opened_bits_of_relu": (
        lambda: stepwise(2, opened_bits=33),
        "33 opened bits exceed the ring's 32",
    ),
    "opened_bits_of_truncation": (lambda: stepwise(10, opened_bits=33), "exceed the ring's 32"),
    "shift_negative": (lambda: stepwise(2, opened_bits=18, shift=-1), "shift -1 is negative"),
    "compared_bits": (lambda: stepwise(2, shift=12), "19 compared bits are not one of"),
    "relu_window": (
        lambda: stepwise(1, limit=(1 << 31) - (1 << 13) + 1),
        "limit 2147475457 exceeds the window 2147475456",
    ),
    "truncation_of_nothing": (lambda: stepwise(10, shift=0), "cannot truncate 0 of 20"),
    "truncation_of_all": (lambda: stepwise(10, shift=18), "cannot truncate 18 of 20 opened bits"),
    "truncation_window": (
        lambda: stepwise(9, limit=(1 << 18) + 1),
        "limit 262145 exceeds the window 262144",
    ),
    "classes": (lambda: replaced(classes=("a", "b")), "2 classes do not match the output [2, 3]"),
    "classes_of_a_vector": (
        lambda: dataclasses.replace(simple(shape=(2,)), classes=("a", "b")),
        "2 classes do not match the output [2]",
    ),
    "name_with_controls": (
        lambda: replaced(name="model\x1b[2J"),
        "a name or text of the plan has control characters or over 1000 characters",
    ),
    "version_with_newline": (lambda: replaced(version="1\n2"), "has control characters"),
    "name_too_long": (lambda: replaced(name="x" * 1001), "over 1000 characters"),
    "class_with_controls": (lambda: labelled("\u202e"), "has control characters"),
    "statement_with_controls": (
        lambda: replaced(intended_use=p.IntendedUse(statement="\x00")),
        "has control characters",
    ),
    "modality_with_controls": (
        lambda: replaced(intended_use=p.IntendedUse(modalities=("DX", "\r"))),
        "has control characters",
    ),
    "body_part_with_controls": (
        lambda: replaced(intended_use=p.IntendedUse(body_parts=("\t",))),
        "has control characters",
    ),
    "view_with_controls": (
        lambda: replaced(intended_use=p.IntendedUse(views=("\x7f",))),
        "has control characters",
    ),
    "output_rows": (
        lambda: with_output_of_two_rows(),
        "the output [2, 1] is not one row for each of 1 images",
    ),
    "image_beyond_the_limit": (
        lambda: full(std=(1.0, 0.01, 1.0)),
        "limit 4096 is below what preprocessing can reach, 75 at scale 256",
    ),
    "image_size": (lambda: full(height=9), "preprocessing makes [3, 9, 8], the input takes"),
    "image_side": (
        lambda: pictured((1, 1, 1, p.MAX_SIDE + 1)),
        "the input is [1, 1, 16385], over 16384 pixels a side or 134217728 values",
    ),
    "image_values": (
        lambda: pictured((1, 2, p.MAX_SIDE, p.MAX_SIDE // 4 + 1)),
        "the input is [2, 16384, 4097], over 16384 pixels a side or 134217728 values",
    ),
    "images_of_a_batch": (
        lambda: pictured((1025, 1, 1, 1)),
        "a batch has at most 1024 images, this one 1025",
    ),
    "numbers_of_a_result": (
        lambda: simple(shape=(1, 1 + (1 << 18))),
        "a result has at most 262144 numbers, this one 262145",
    ),
    "means": (lambda: full(mean=(0.5,)), "needs one mean and one std a channel"),
    "stds": (lambda: full(std=(0.5, 0.5)), "needs one mean and one std a channel"),
    "std_zero": (lambda: full(std=(1.0, 0.0, 1.0)), "mean or std is out of range"),
    "std_nan": (lambda: full(std=(1.0, float("nan"), 1.0)), "mean or std is out of range"),
    "std_infinite": (lambda: full(std=(1.0, float("inf"), 1.0)), "mean or std is out of range"),
    "mean_nan": (lambda: full(mean=(0.0, float("nan"), 0.0)), "mean or std is out of range"),
    "mean_large": (lambda: full(mean=(0.0, -1e6, 0.0)), "mean or std is out of range"),
    "resize": (lambda: full(resize="squash"), "unknown resize 'squash'"),
    "interpolation": (lambda: full(interpolation="cubic"), "unknown interpolation 'cubic'"),
}
