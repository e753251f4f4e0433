"""The rules that every plan obeys, checked by every party before it takes part.

The data owner runs this too: a plan is public input from the vendor, and its privacy rests on the
structure (every mask used in one ring, multiplied values masked by streams that the crypto provider
knows) while its result rests on the ranges.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Protocol

import numpy as np

from radiopaque.errors import PlanError
from radiopaque.graph import plan as p
from radiopaque.graph.bands import band_count
from radiopaque.graph.preprocessing import check_extent, reachable
from radiopaque.graph.work import step_work

MAX_STEPS = 20_000
MAX_ELEMENTS = 1 << 28
"""Largest value; a plan that asks for more is refused before memory is taken."""
MAX_WEIGHTS = 1 << 30
"""All weights of a plan together, as the kernels pack them."""
MAX_LIVE_ELEMENTS = 1 << 30
"""Values that exist at one time."""
MAX_OPENED_ELEMENTS = 1 << 28
"""Elements truncated or compared in one session; each takes about 70 bytes at every party."""
MAX_WORK = 1 << 42
"""Work of a plan, at most some minutes on one core for each time that it is gone through: whoever
serves it must be able to finish."""
MAX_TURNS = 1 << 26
"""Bands times operands: at every band, of a value that communicates, a party looks which values
grow with it. Some minutes, before the image is sent."""
MAX_OUTPUTS = 1 << 18
"""Numbers of a result, a mask of 512 x 512 pixels: a report takes 300 bytes for each."""
MAX_BATCH = 1024
"""Images, or rows, of one inference."""
MAX_RANK = 8
MAX_TEXT = 1000
"""Characters of a name, class or statement."""
COMPARED_BITS = (18, 24, 30)
"""Windows of the comparison: 3, 4 or 5 chunks of 6 bits."""
MAX_FRACTION_BITS = 62


def validate_plan(plan: p.Plan) -> None:
    """Check the structure, shapes, windows and ranges of a plan. Raises PlanError."""
    if plan.ring_bits not in (32, 64):
        raise PlanError(f"the ring must have 32 or 64 bits, the plan says {plan.ring_bits}")
    if not 2 <= len(plan.steps) <= MAX_STEPS:
        raise PlanError(f"a plan has 2 to {MAX_STEPS} steps, this one {len(plan.steps)}")
    if not isinstance(plan.steps[0].gate, p.Input):
        raise PlanError("step 0 must be the input")
    if not isinstance(plan.steps[-1].gate, p.Output):
        raise PlanError("the last step must be the output")
    work = opened = 0
    for number, step in enumerate(plan.steps):
        try:
            _check_step(plan, number, step)
        except PlanError as error:
            raise PlanError(f"step {number} ({type(step.gate).__name__}): {error}") from None
        work += step_work(plan, step)
        opened += step.size if isinstance(step.gate, p.Relu | p.Truncate) else 0
    for what, found, most in (
        ("steps of work", work, MAX_WORK),
        ("truncated and compared elements", opened, MAX_OPENED_ELEMENTS),
        ("weights", packed_weights(plan), MAX_WEIGHTS),
        ("elements at one time", live_elements(plan), MAX_LIVE_ELEMENTS),
        ("bands times operands", _turns(plan), MAX_TURNS),
    ):
        if found > most:
            raise PlanError(f"the plan takes {found} {what}, over the limit of {most}")
    known = plan.dealer_knows()
    for number, step in enumerate(plan.steps):
        if isinstance(step.gate, p.LINEAR_GATES) and not known[step.inputs[0]]:
            raise PlanError(
                f"step {number} multiplies a value with a derived mask; it needs a Remask before it"
            )
    check_description(plan, plan.input_step.shape, plan.output_step.shape)
    if plan.preprocessing is not None:
        _check_reach(plan, plan.preprocessing)


def packed_weights(plan: p.Plan) -> int:
    """Weights as the kernels hold them.

    The channels of every group are rounded up to eight, the columns of a matrix to the widest panel
    there is, of 128 bytes.
    """
    total, panel = 0, 1024 // plan.ring_bits
    for number, shape in plan.weight_shapes():
        gate = plan.steps[number].gate
        if isinstance(gate, p.Convolution):
            channels = -(-shape[0] // gate.groups // 8) * 8
            total += gate.groups * max(channels, 8) * prod(shape[1:])
        elif isinstance(gate, p.MatrixProduct):
            total += prod(shape[:-1]) * -(-shape[-1] // panel) * panel
        else:
            total += prod(shape)
    return total


def live_elements(plan: p.Plan) -> int:
    """Most elements that a walk over the plan holds at one time."""
    most = live = 0
    for step, freed in zip(plan.steps, plan.last_uses(), strict=True):
        live += step.size
        most = max(most, live)
        live -= sum(plan.steps[value].size for value in freed)
    return most


def _turns(plan: p.Plan) -> int:
    """Bands in which values are sent, times operands that may grow with each."""
    sent = (p.Input, p.Relu, p.Truncate, p.Output)
    word_bytes = plan.ring_bits // 8
    bands = sum(
        band_count(step.shape, word_bytes) for step in plan.steps if isinstance(step.gate, sent)
    )
    return bands * sum(len(step.inputs) for step in plan.steps)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise PlanError(message)


def _check_step(plan: p.Plan, number: int, step: p.Step) -> None:
    gate = step.gate
    _require(len(step.shape) <= MAX_RANK, f"rank {len(step.shape)} is over {MAX_RANK}")
    _require(
        all(0 < d <= MAX_ELEMENTS for d in step.shape),
        f"shape {list(step.shape)} is empty or too large",
    )
    _require(step.size <= MAX_ELEMENTS, f"{step.size} elements are over {MAX_ELEMENTS}")
    _require(
        0 <= step.fraction_bits <= MAX_FRACTION_BITS,
        f"{step.fraction_bits} fraction bits are not in 0 to {MAX_FRACTION_BITS}",
    )
    _require(0 < step.divisor < 1 << 32, f"divisor {step.divisor} is out of range")
    _require(0 <= step.limit < 1 << 63, f"limit {step.limit} is out of range")
    _require(all(0 <= i < number for i in step.inputs), "inputs must be earlier steps")
    operands = [plan.steps[i] for i in step.inputs]
    many = isinstance(gate, p.Combine | p.Concatenate)
    wanted = 0 if isinstance(gate, p.Input) else 1
    _require(
        len(operands) >= 1 if many else len(operands) == wanted,
        f"takes {'at least 1' if many else wanted} inputs, has {len(operands)}",
    )
    _require(isinstance(gate, p.Input) == (number == 0), "the input is step 0 and no other")
    if isinstance(gate, p.Output):
        _require(number == len(plan.steps) - 1, "the output is the last step")
    expected = _expected_shape(gate, step, [o.shape for o in operands])
    _require(expected == step.shape, f"shape {list(step.shape)} should be {list(expected)}")
    _check_window(plan, step, operands)


def _expected_shape(gate: p.Gate, step: p.Step, inputs: Sequence[p.Shape]) -> p.Shape:
    if isinstance(gate, p.Input):
        _require(len(step.shape) >= 1, "the input's first axis is the batch")
        return step.shape
    first = inputs[0]
    if isinstance(gate, p.Convolution):
        return _convolution_shape(gate, first)
    if isinstance(gate, p.WindowSum):
        _require(len(first) >= 2, "window sums take at least two axes")
        return (*first[:-2], *_window_shape(gate, first[-2:]))
    if isinstance(gate, p.MatrixProduct):
        _require(len(first) >= 1, "a matrix product takes at least one axis")
        _require(0 < gate.columns <= p.MAX_DIMENSION, "columns out of range")
        weights = first[-1] * gate.columns
        _require(weights <= MAX_ELEMENTS, f"{weights} weights are over {MAX_ELEMENTS}")
        return (*first[:-1], gate.columns)
    if isinstance(gate, p.Multiply | p.AddConstant):
        shape = gate.weight_shape if isinstance(gate, p.Multiply) else gate.constant_shape
        _require(_broadcasts(shape, first), f"constant {list(shape)} does not fit {list(first)}")
        return first
    if isinstance(gate, p.Combine):
        _require(len(gate.coefficients) == len(inputs), "one coefficient an input")
        _require(all(map(_is_int64, gate.coefficients)), "a coefficient exceeds 64 bits")
        _require(all(shape == first for shape in inputs), "inputs differ in shape")
        return first
    if isinstance(gate, p.Reshape):
        _require(prod(first) == step.size, "element counts differ")
        return step.shape
    if isinstance(gate, p.Transpose | p.Pad):
        _require(len(first) >= 1, "takes at least one axis")
    if isinstance(gate, p.Transpose):
        _require(sorted(gate.permutation) == list(range(len(first))), "not a permutation")
        return tuple(first[axis] for axis in gate.permutation)
    if isinstance(gate, p.Slice):
        return _slice_shape(gate, step, first)
    if isinstance(gate, p.Pad):
        _require(len(gate.before) == len(gate.after) == len(first), "one padding an axis")
        _require(min(0, *gate.before, *gate.after) == 0, "padding must not be negative")
        _require(_is_int64(gate.value), "the padding's value exceeds 64 bits")
        return tuple(b + d + a for b, d, a in zip(gate.before, first, gate.after, strict=True))
    if isinstance(gate, p.Concatenate):
        return _concatenated_shape(gate, inputs)
    if isinstance(gate, p.Expand):
        _require(_broadcasts(first, step.shape), f"{list(first)} does not expand")
        return step.shape
    return first


def _window_shape(gate: p.Convolution | p.WindowSum, size: Sequence[int]) -> tuple[int, int]:
    _require(
        len(gate.kernel) == len(gate.strides) == len(gate.dilations) == 2 and len(gate.pads) == 4,
        "kernel, strides, dilations take 2 numbers, pads 4",
    )
    numbers = (*gate.kernel, *gate.strides, *gate.dilations)
    _require(all(0 < v <= p.MAX_DIMENSION for v in numbers), "window parameters out of range")
    out = []
    for axis in range(2):
        span = (gate.kernel[axis] - 1) * gate.dilations[axis] + 1
        pads = gate.pads[axis], gate.pads[axis + 2]
        _require(all(0 <= pad < p.MAX_DIMENSION for pad in pads), "pads out of range")
        room = size[axis] + sum(pads)
        _require(room >= span, f"window of {span} does not fit {room} positions")
        out.append((room - span) // gate.strides[axis] + 1)
    return out[0], out[1]


def _convolution_shape(gate: p.Convolution, first: p.Shape) -> p.Shape:
    _require(len(first) == 4, "a convolution takes [n, c, h, w]")
    _require(0 < gate.out_channels <= p.MAX_DIMENSION, "output channels out of range")
    _require(gate.groups > 0, "groups must be positive")
    _require(
        first[1] % gate.groups == 0 and gate.out_channels % gate.groups == 0,
        f"{gate.groups} groups do not divide {first[1]} and {gate.out_channels} channels",
    )
    # first of all that the kernel has two numbers: the product of a million would take minutes
    windows = _window_shape(gate, first[2:])
    weights = gate.out_channels * (first[1] // gate.groups) * prod(gate.kernel)
    _require(weights <= MAX_ELEMENTS, f"{weights} weights are over {MAX_ELEMENTS}")
    top, left, bottom, right = gate.pads
    padded = first[1] // gate.groups * (first[2] + top + bottom) * (first[3] + left + right)
    _require(padded <= MAX_ELEMENTS, f"{padded} padded elements are over {MAX_ELEMENTS}")
    return (first[0], gate.out_channels, *windows)


def _slice_shape(gate: p.Slice, step: p.Step, first: p.Shape) -> p.Shape:
    _require(
        len(gate.starts) == len(gate.strides) == len(first) == len(step.shape),
        "one start, stride and count an axis",
    )
    for start, stride, count, size in zip(
        gate.starts, gate.strides, step.shape, first, strict=True
    ):
        _require(
            start >= 0 and stride > 0 and start + (count - 1) * stride < size,
            f"{count} elements from {start} in steps of {stride} exceed {size}",
        )
    return step.shape


def _concatenated_shape(gate: p.Concatenate, inputs: Sequence[p.Shape]) -> p.Shape:
    first = inputs[0]
    _require(0 <= gate.axis < len(first), "axis out of range")
    rest = [(*s[: gate.axis], *s[gate.axis + 1 :]) for s in inputs]
    _require(
        all(len(s) == len(first) for s in inputs) and all(r == rest[0] for r in rest),
        "inputs differ outside the axis",
    )
    joined = sum(s[gate.axis] for s in inputs)
    return (*first[: gate.axis], joined, *first[gate.axis + 1 :])


def _is_int64(value: int) -> bool:
    return -(1 << 63) <= value < 1 << 63


def _broadcasts(shape: p.Shape, target: p.Shape) -> bool:
    if len(shape) > len(target):
        return False
    tail = target[len(target) - len(shape) :]
    return all(a in (1, b) for a, b in zip(shape, tail, strict=True))


def _check_window(plan: p.Plan, step: p.Step, operands: Sequence[p.Step]) -> None:
    gate = step.gate
    if isinstance(gate, p.Input):
        _require(0 < step.limit < 1 << (plan.ring_bits - 1), "the input's limit must fit the ring")
        return
    if not isinstance(gate, p.Relu | p.Truncate | p.Output):
        return
    limit = operands[0].limit
    _require(limit > 0, "the input must state its limit")
    if isinstance(gate, p.Output):
        _require(1 <= gate.bits <= 63, f"{gate.bits} output bits are not in 1 to 63")
        top = gate.position + gate.bits
        _require(
            gate.position >= 0 and top <= plan.ring_bits,
            f"output bits {gate.position} to {top} exceed the ring",
        )
        # the result is up to half a unit above the value and must not reach the sign bit
        allowed = (1 << (top - 1)) - 1 - (1 << gate.position >> 1)
        _require(limit <= allowed, f"limit {limit} exceeds the output window {allowed}")
        return
    bits, shift = gate.opened_bits, gate.shift
    _require(bits <= plan.ring_bits, f"{bits} opened bits exceed the ring's {plan.ring_bits}")
    _require(shift >= 0, f"shift {shift} is negative")
    if isinstance(gate, p.Relu):
        _require(
            gate.compared_bits in COMPARED_BITS,
            f"{gate.compared_bits} compared bits are not one of {COMPARED_BITS}",
        )
        allowed = (1 << (bits - 1)) - (1 << shift)
    else:
        _require(1 <= shift <= bits - 3, f"cannot truncate {shift} of {bits} opened bits")
        allowed = 1 << (bits - 2)
    _require(limit <= allowed, f"limit {limit} exceeds the window {allowed}")


class Described(Protocol):
    """What every plan says about its model, whichever engine it is for."""

    @property
    def name(self) -> str: ...
    @property
    def version(self) -> str: ...
    @property
    def classes(self) -> tuple[str, ...]: ...
    @property
    def preprocessing(self) -> p.Preprocessing | None: ...
    @property
    def intended_use(self) -> p.IntendedUse | None: ...


def check_description(plan: Described, image: p.Shape, output: p.Shape) -> None:
    """Check names, classes and preprocessing against the shapes of image and output.

    Raises PlanError.
    """
    _check_names(plan)
    if plan.preprocessing is not None and (not output or output[0] != image[0]):
        raise PlanError(f"the output {list(output)} is not one row for each of {image[0]} images")
    if plan.classes and (len(output) < 2 or prod(output[1:]) != len(plan.classes)):
        raise PlanError(
            f"{len(plan.classes)} classes do not match the output {list(output)}; name one for each"
        )
    if plan.preprocessing is not None:
        _check_preprocessing(plan.preprocessing, image[1:])
    if image and image[0] > MAX_BATCH:
        raise PlanError(f"a batch has at most {MAX_BATCH} images, this one {image[0]}")
    if prod(output) > MAX_OUTPUTS:
        raise PlanError(f"a result has at most {MAX_OUTPUTS} numbers, this one {prod(output)}")


def _check_names(plan: Described) -> None:
    use = plan.intended_use or p.IntendedUse()
    texts = (plan.name, plan.version, *plan.classes, use.statement)
    lists = (*use.modalities, *use.body_parts, *use.views)
    for text in (*texts, *lists):
        if not text.isprintable() or len(text) > MAX_TEXT:
            raise PlanError(
                f"a name or text of the plan has control characters or over {MAX_TEXT} characters"
            )


def _check_preprocessing(spec: p.Preprocessing, image: p.Shape) -> None:
    if image != (spec.channels, spec.height, spec.width):
        raise PlanError(
            f"preprocessing makes {[spec.channels, spec.height, spec.width]}, "
            f"the input takes {list(image)}"
        )
    check_extent(spec)
    if len(spec.mean) != spec.channels or len(spec.std) != spec.channels:
        raise PlanError("preprocessing needs one mean and one std a channel")
    if not all(0 < s < 1e6 for s in spec.std) or not all(abs(m) < 1e6 for m in spec.mean):
        raise PlanError("preprocessing mean or std is out of range")
    if spec.resize not in ("stretch", "fit", "crop"):
        raise PlanError(f"unknown resize {spec.resize!r}")
    if spec.interpolation not in ("bilinear", "bicubic", "nearest"):
        raise PlanError(f"unknown interpolation {spec.interpolation!r}")


def _check_reach(plan: p.Plan, spec: p.Preprocessing) -> None:
    """Every image must fit, or the vendor would learn which images were refused here."""
    reach = max(map(abs, reachable(spec)))
    # not where it is no number
    if not np.rint(reach * float(plan.input_step.scale)) <= plan.input_step.limit:
        raise PlanError(
            f"the input's limit {plan.input_step.limit} is below what preprocessing can reach, "
            f"{reach:.4g} at scale {float(plan.input_step.scale):.6g}"
        )
