"""Plans for CrypTen as bytes: strict protobuf, exactly one encoding of each plan.

Source: proto/radiopaque/v1/crypten.proto.
"""

from __future__ import annotations

from typing import Any

from google.protobuf.message import DecodeError

from radiopaque.engine.crypten.plan import (
    MAX_REQUESTS,
    PLAN_FORMAT,
    CryptenPlan,
    validate,
)
from radiopaque.engine.crypten.program import MAX_OPERATIONS, Operation, Program
from radiopaque.engine.crypten.tuples import Request, TupleKind
from radiopaque.errors import PlanError
from radiopaque.wire.plans import (
    MAX_PLAN_BYTES,
    TASK_NAMES,
    TASKS,
    decode_intended_use,
    decode_preprocessing,
    encode_intended_use,
    encode_preprocessing,
)
from radiopaque.wire.v1 import crypten_pb2 as pb


def encode_plan(plan: CryptenPlan) -> bytes:
    """The canonical bytes of a plan (deterministic protobuf)."""
    message = pb.CryptenPlan(
        format=PLAN_FORMAT,
        name=plan.name,
        version=plan.version,
        classes=plan.classes,
        task=TASKS[plan.task],  # type: ignore[arg-type]
        gross_errors=plan.gross_errors,
        largest_output=plan.largest_output,
    )
    for operation in plan.program.operations:
        message.operations.add(
            name=operation.name,
            inputs=operation.inputs,
            shape=operation.shape,
            integers=operation.integers,
            reals=operation.reals,
        )
    for request in plan.requests:
        message.requests.add(
            tuple=int(request.kind),  # type: ignore[arg-type]
            left=request.left,
            right=request.right,
            integers=request.integers,
        )
    if plan.preprocessing is not None:
        message.preprocessing.CopyFrom(encode_preprocessing(plan.preprocessing))
    if plan.intended_use is not None:
        message.intended_use.CopyFrom(encode_intended_use(plan.intended_use))
    encoded: bytes = message.SerializeToString(deterministic=True)
    return encoded


def decode_plan(data: bytes) -> CryptenPlan:
    """A checked plan from its bytes.

    Raises PlanError for bytes that are not a plan, unknown fields, another format, or a plan that
    breaks a rule.
    """
    if len(data) > MAX_PLAN_BYTES:
        raise PlanError(f"a plan of {len(data)} bytes is over the limit of {MAX_PLAN_BYTES}")
    message = pb.CryptenPlan()
    try:
        message.ParseFromString(data)
    except DecodeError:
        raise PlanError("these bytes are not a plan; compile or fetch the model again") from None
    if message.format != PLAN_FORMAT:
        raise PlanError(
            f"plan format {message.format} is not {PLAN_FORMAT}; "
            "use the same radiopaque version for compiling and serving"
        )
    if len(message.operations) > MAX_OPERATIONS or len(message.requests) > MAX_REQUESTS:
        raise PlanError(
            f"a plan has at most {MAX_OPERATIONS} operations and {MAX_REQUESTS} tuples, this one "
            f"{len(message.operations)} and {len(message.requests)}"
        )
    task = TASK_NAMES.get(message.task)
    if task is None:
        raise PlanError(f"plan states no known task (number {message.task})")
    plan = CryptenPlan(
        message.name,
        message.version,
        Program(tuple(_decode_operation(one) for one in message.operations)),
        tuple(_decode_request(number, one) for number, one in enumerate(message.requests)),
        tuple(message.classes),
        task,
        decode_preprocessing(message),
        decode_intended_use(message),
        message.gross_errors,
        message.largest_output,
    )
    validate(plan)
    if encode_plan(plan) != data:
        raise PlanError("plan has unknown fields or is not in canonical form; compile it again")
    return plan


def _decode_operation(message: Any) -> Operation:
    return Operation(
        message.name,
        tuple(message.inputs),
        tuple(message.shape),
        tuple(message.integers),
        tuple(message.reals),
    )


def _decode_request(number: int, message: Any) -> Request:
    try:
        kind = TupleKind(message.tuple)
    except ValueError:
        raise PlanError(f"tuple {number} is of a kind that this version does not know") from None
    return Request(kind, tuple(message.left), tuple(message.right), tuple(message.integers))
