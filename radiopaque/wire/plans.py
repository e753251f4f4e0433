"""Plans as bytes: strict protobuf encoding and decoding of :class:`radiopaque.graph.plan.Plan`.

A plan is stored and sent as the bytes that its compiler wrote; the digest is over those bytes.
Decoding checks the structure and every rule of :mod:`radiopaque.graph.validate`, whoever sent it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from google.protobuf.message import DecodeError

from radiopaque.errors import PlanDigestError, PlanError
from radiopaque.graph import plan as p
from radiopaque.graph.validate import MAX_STEPS, validate_plan
from radiopaque.wire.v1 import plan_pb2 as pb

MAX_PLAN_BYTES = 3 << 20
"""A larger plan is refused before it is parsed."""

TASKS: dict[p.Task, int] = {
    "raw": pb.TASK_RAW,
    "multiclass": pb.TASK_MULTICLASS,
    "multilabel": pb.TASK_MULTILABEL,
}
TASK_NAMES: dict[int, p.Task] = {number: name for name, number in TASKS.items()}

_FIELDS: dict[type, tuple[str, ...]] = {
    p.Input: (),
    p.Convolution: ("out_channels", "kernel", "strides", "pads", "dilations", "groups"),
    p.MatrixProduct: ("columns",),
    p.Multiply: ("weight_shape",),
    p.AddConstant: ("constant_shape",),
    p.Combine: ("coefficients",),
    p.Reshape: (),
    p.Transpose: ("permutation",),
    p.Slice: ("starts", "strides"),
    p.Pad: ("before", "after", "value"),
    p.Concatenate: ("axis",),
    p.Expand: (),
    p.WindowSum: ("kernel", "strides", "pads", "dilations"),
    p.Remask: (),
    p.Truncate: ("opened_bits", "shift"),
    p.Relu: ("opened_bits", "shift"),
    p.Output: ("bits", "position"),
}
_ONEOF: dict[type, str] = {
    p.MatrixProduct: "matrix_product",
    p.AddConstant: "add_constant",
    p.WindowSum: "window_sum",
}
_GATES: dict[str, type] = {_ONEOF.get(kind, kind.__name__.lower()): kind for kind in _FIELDS}


def encode_plan(plan: p.Plan) -> bytes:
    """The canonical bytes of a plan (deterministic protobuf)."""
    message = pb.Plan(
        format=p.PLAN_FORMAT,
        ring_bits=plan.ring_bits,
        name=plan.name,
        version=plan.version,
        classes=plan.classes,
        task=TASKS[plan.task],  # type: ignore[arg-type]
    )
    for step in plan.steps:
        kind = type(step.gate)
        out = message.steps.add(
            inputs=step.inputs,
            shape=step.shape,
            fraction_bits=step.fraction_bits,
            divisor=step.divisor,
            limit=step.limit,
        )
        gate = getattr(out, _ONEOF.get(kind, kind.__name__.lower()))
        gate.SetInParent()
        for field in _FIELDS[kind]:
            value = getattr(step.gate, field)
            if isinstance(value, tuple):
                getattr(gate, field).extend(value)
            else:
                setattr(gate, field, value)
    if plan.preprocessing is not None:
        message.preprocessing.CopyFrom(encode_preprocessing(plan.preprocessing))
    if plan.intended_use is not None:
        message.intended_use.CopyFrom(encode_intended_use(plan.intended_use))
    encoded: bytes = message.SerializeToString(deterministic=True)
    return encoded


def decode_plan(data: bytes) -> p.Plan:
    """A checked plan from its bytes.

    Raises PlanError for bytes that are not a plan, unknown fields, another format, or a plan that
    breaks a rule.
    """
    if len(data) > MAX_PLAN_BYTES:
        raise PlanError(f"a plan of {len(data)} bytes is over the limit of {MAX_PLAN_BYTES}")
    message = pb.Plan()
    try:
        message.ParseFromString(data)
    except DecodeError:
        raise PlanError("these bytes are not a plan; compile or fetch the model again") from None
    if message.format != p.PLAN_FORMAT:
        raise PlanError(
            f"plan format {message.format} is not {p.PLAN_FORMAT}; "
            "use the same radiopaque version for compiling and serving"
        )
    if len(message.steps) > MAX_STEPS:
        raise PlanError(f"a plan has at most {MAX_STEPS} steps, this one {len(message.steps)}")
    steps = tuple(_decode_step(number, step) for number, step in enumerate(message.steps))
    task = TASK_NAMES.get(message.task)
    if task is None:
        raise PlanError(f"plan states no known task (number {message.task})")
    plan = p.Plan(
        ring_bits=message.ring_bits,
        name=message.name,
        version=message.version,
        steps=steps,
        classes=tuple(message.classes),
        task=task,
        preprocessing=decode_preprocessing(message),
        intended_use=decode_intended_use(message),
    )
    validate_plan(plan)
    if encode_plan(plan) != data:
        raise PlanError("plan has unknown fields or is not in canonical form; compile it again")
    return plan


def load_plan(data: bytes, digest: bytes) -> p.Plan:
    """A checked plan whose digest is the expected one. Raises PlanError, PlanDigestError."""
    check_digest(data, digest)
    return decode_plan(data)


def check_digest(data: bytes, digest: bytes) -> None:
    """Raise PlanDigestError for the bytes of another plan than the expected one."""
    found = p.plan_digest(data)
    if found != digest:
        raise PlanDigestError(
            f"plan digest {found.hex()[:16]} is not {digest.hex()[:16]}; "
            "fetch the model again and check who serves it"
        )


def _decode_step(number: int, step: Any) -> p.Step:
    name = step.WhichOneof("gate")
    if name is None:
        raise PlanError(f"step {number} has no gate that this version knows")
    kind = _GATES[name]
    message = getattr(step, name)
    values = {}
    for field in _FIELDS[kind]:
        value = getattr(message, field)
        values[field] = value if isinstance(value, int) else tuple(value)
    return p.Step(
        gate=kind(**values),
        inputs=tuple(step.inputs),
        shape=tuple(step.shape),
        fraction_bits=step.fraction_bits,
        divisor=step.divisor,
        limit=step.limit,
    )


def encode_preprocessing(spec: p.Preprocessing) -> Any:
    """As a part of a plan of either kind; the next three likewise."""
    return pb.Preprocessing(
        channels=spec.channels,
        height=spec.height,
        width=spec.width,
        resize=spec.resize,
        interpolation=spec.interpolation,
        mean=spec.mean,
        std=spec.std,
    )


def encode_intended_use(use: p.IntendedUse) -> Any:
    return pb.IntendedUse(
        modalities=use.modalities,
        body_parts=use.body_parts,
        views=use.views,
        age_years=use.age_years or (),
        statement=use.statement,
    )


def decode_preprocessing(message: Any) -> p.Preprocessing | None:
    if not message.HasField("preprocessing"):
        return None
    spec = message.preprocessing
    return p.Preprocessing(
        spec.channels,
        spec.height,
        spec.width,
        spec.resize,
        spec.interpolation,
        tuple(spec.mean),
        tuple(spec.std),
    )


def decode_intended_use(message: Any) -> p.IntendedUse | None:
    if not message.HasField("intended_use"):
        return None
    use = message.intended_use
    ages: Sequence[float] = use.age_years
    if len(ages) not in (0, 2):
        raise PlanError("the intended age range needs two numbers, youngest and oldest")
    return p.IntendedUse(
        tuple(use.modalities),
        tuple(use.body_parts),
        tuple(use.views),
        (ages[0], ages[1]) if ages else None,
        use.statement,
    )
