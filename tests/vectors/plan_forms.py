"""What the vectors of plans are made from: a full plan, and plans with one defect each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from radiopaque.graph import plan as p
from radiopaque.wire.plans import encode_plan
from radiopaque.wire.v1 import plan_pb2 as pb
from tests.plans import PlanBuilder
from tests.vectors.forms import plan_to_json

Change = Callable[[Any], Any]


def full_plan() -> p.Plan:
    """Every optional part present."""
    build = PlanBuilder(32, (1, 3, 8, 8), 1 << 12, 8, "chest-xray")
    build.add(p.Convolution(2, (3, 3), (2, 2), (1, 1, 1, 1)), 0, shape=(1, 2, 4, 4), limit=1 << 20)
    build.add(p.AddConstant((2, 1, 1)), 1)
    build.add(p.Relu(32, 13), 2, limit=1 << 8)
    build.add(p.WindowSum((4, 4), (4, 4)), 3, shape=(1, 2, 1, 1), limit=1 << 12)
    build.add(p.Reshape(), 4, shape=(1, 2))
    build.add(p.MatrixProduct(2), 5, limit=1 << 18)
    body = build.finish(16, 4, fraction_bits=10)
    return p.Plan(
        32,
        "chest-xray",
        "1.0.0",
        body.steps,
        ("normal", "pneumonia – any"),
        "multilabel",
        p.Preprocessing(3, 8, 8, "fit", "bilinear", (0.5, 0.25, 0.125), (0.25, 0.5, 1.0)),
        p.IntendedUse(("DX", "CR"), ("CHEST",), ("PA", "AP"), (1.0, 5.5), "children"),
    )


def small_plan() -> p.Plan:
    """A convolution and a ReLU, to be broken."""
    build = PlanBuilder(32, (1, 1, 4, 4), 1 << 20, name="small")
    build.add(p.Convolution(2, (3, 3)), 0, shape=(1, 2, 2, 2), limit=1 << 24)
    build.add(p.Relu(32, 13), 1, limit=1 << 12)
    return build.finish(16, 0)


def _changed(change: Change) -> bytes:
    message = pb.Plan.FromString(encode_plan(small_plan()))
    change(message)
    return bytes(message.SerializeToString(deterministic=True))


def _step(number: int, **fields: Any) -> bytes:
    """The small plan with other fields in one step."""

    def change(message: Any) -> None:
        step = message.steps[number]
        for name, value in fields.items():
            if isinstance(value, list):
                step.ClearField(name)
                getattr(step, name).extend(value)
            elif isinstance(value, dict):
                getattr(step, name).SetInParent()
                for key, inner in value.items():
                    setattr(getattr(step, name), key, inner)
            else:
                setattr(step, name, value)

    return _changed(change)


def _message(**fields: Any) -> bytes:
    """The small plan with other fields of its own."""

    def change(message: Any) -> None:
        for name, value in fields.items():
            setattr(message, name, value)

    return _changed(change)


def _multiplied_twice(message: Any) -> None:
    message.steps[2].ClearField("relu")
    message.steps[2].multiply.weight_shape.append(1)


def _unpacked_shape(encoded: bytes) -> bytes:
    """Shapes written one number at a time: the same plan to a protobuf parser."""
    packed = bytes.fromhex("120401020202")  # field 2, four bytes: 1, 2, 2, 2
    assert packed in encoded
    plan = pb.Plan.FromString(encoded)
    out = b""
    for field, body in _fields(encoded):
        if field == 5 and packed in body:
            body = body.replace(packed, bytes.fromhex("1001100210021002"))
        out += _field(field, body)
    assert pb.Plan.FromString(out) == plan
    return out


def _fields(encoded: bytes) -> list[tuple[int, Any]]:
    """Top-level fields of a plan; its numbers and lengths all take one byte."""
    fields: list[tuple[int, Any]] = []
    position = 0
    while position < len(encoded):
        tag, value = encoded[position], encoded[position + 1]
        assert tag < 128
        assert value < 128
        position += 2
        if tag % 8 == 2:
            fields.append((tag // 8, encoded[position : position + value]))
            position += value
        else:
            fields.append((tag // 8, value))
    return fields


def _field(number: int, value: Any) -> bytes:
    if isinstance(value, int):
        return bytes([8 * number, value])
    return bytes([8 * number + 2, len(value), *value])


def bad_plans() -> dict[str, tuple[bytes, str]]:
    """Bytes and a piece of the error's text, by defect."""
    encoded = encode_plan(small_plan())
    canonical = "not in canonical form"
    ring, name = bytes([0x10, 32]), bytes([0x1A, 5]) + b"small"
    assert encoded.startswith(b"\x08\x05" + ring + name)
    empty_relu = bytes.fromhex("fa0100")  # field 31, no fields of its own
    return {
        "empty": (b"", "format 0 is not 5"),
        "not_a_plan": (b"\xff\xff\xff\xff", "not a plan"),
        "truncated": (encoded[:-1], "not a plan"),
        "trailing_byte": (encoded + b"\x00", "not a plan"),
        "trailing_unknown_field": (encoded + bytes([8 * 15, 1]), canonical),
        "unknown_field_in_step": (
            b"".join(
                _field(n, body + bytes([8 * 6, 1]) if n == 5 else body)
                for n, body in _fields(encoded)
            ),
            canonical,
        ),
        "duplicate_field_ring_bits": (b"\x10\x40" + encoded, canonical),
        "duplicate_gate_in_step": (
            b"".join(
                _field(n, empty_relu + body if n == 5 else body) for n, body in _fields(encoded)
            ),
            canonical,
        ),
        "duplicate_input_step": (_step(1, input={}, inputs=[]), "the input is step 0 and no other"),
        "duplicate_output_step": (
            _step(2, output={"bits": 32, "position": 0}, shape=[1, 2, 2, 2]),
            "the output is the last step",
        ),
        "padded_number": (b"\x08\x85\x00" + encoded[2:], canonical),
        "explicit_zero": (encoded + bytes([8 * 8, 0]), "no known task"),
        "fields_unordered": (ring + encoded[:2] + encoded[4:], canonical),
        "unpacked_shape": (_unpacked_shape(encoded), canonical),
        "name_not_utf8": (encoded.replace(b"small", b"sm\xff\xffl"), "not a plan"),
        "format_1": (_message(format=1), "format 1 is not 5"),
        "format_3": (_message(format=3), "format 3 is not 5"),
        "ring_48_bits": (_message(ring_bits=48), "32 or 64 bits"),
        "task_unknown": (_message(task=9), "no known task"),
        "no_steps": (_changed(lambda m: m.ClearField("steps")), "2 to"),
        "no_gate": (_changed(lambda m: m.steps[2].ClearField("relu")), "no gate that this version"),
        "no_output": (_changed(lambda m: m.steps.pop()), "last step must be the output"),
        "input_missing": (_changed(lambda m: m.steps.pop(0)), "step 0 must be the input"),
        "input_of_itself": (_step(2, inputs=[2]), "earlier steps"),
        "input_of_the_future": (_step(1, inputs=[2]), "earlier steps"),
        "inputs_too_many": (_step(2, inputs=[0, 1]), "takes 1 inputs, has 2"),
        "multiplied_derived_mask": (_changed(_multiplied_twice), "needs a Remask"),
        "opened_bits_over_ring": (
            _step(2, relu={"opened_bits": 64, "shift": 45}),
            "exceed the ring's 32",
        ),
        "window_of_20_bits": (_step(2, relu={"opened_bits": 32, "shift": 11}), "20 compared bits"),
        "limit_over_window": (_step(1, limit=1 << 31), "exceeds the window"),
        "shape_wrong": (_step(1, shape=[1, 2, 2, 3]), "should be [1, 2, 2, 2]"),
        "shape_huge": (_step(0, shape=[1, 1, 1 << 15, 1 << 14]), "elements are over"),
        "age_of_one_number": (
            _changed(lambda m: m.intended_use.age_years.append(3.0)),
            "needs two numbers",
        ),
    }


def plans() -> dict[str, Any]:
    """The content of plans.json."""
    good = [
        {"name": f"plan_{name}", "plan": plan_to_json(plan), "bytes": encode_plan(plan).hex()}
        for name, plan in (("full", full_plan()), ("small", small_plan()))
    ]
    bad = [
        {"name": f"plan_bad_{defect}", "bytes": data.hex(), "error": "PlanError", "says": says}
        for defect, (data, says) in bad_plans().items()
    ]
    return {"good": good, "bad": bad}
