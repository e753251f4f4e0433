"""Bits, frames and plans as bytes.

Plans are protobuf messages; their encoding here follows the wire format's description: fields in
ascending order, default values left out, repeated numbers packed.
"""

from __future__ import annotations

import struct
from typing import Any

KINDS = {
    "START": 1,
    "READY": 2,
    "CORRECTION": 3,
    "OFFLINE": 4,
    "IMAGE": 5,
    "TOP_BIT": 6,
    "OPENING": 7,
    "SELECTION": 8,
    "DECISION": 9,
    "RERANDOMISED": 10,
    "RESULT": 11,
    "DONE": 12,
    "SHARE": 13,
    "KEY": 14,
    "VERDICT": 15,
}
TASKS = {"raw": 1, "multiclass": 2, "multilabel": 3}

# (field number, name, type) of every gate's own fields, and the gate's number in a step
GATES: dict[str, tuple[int, tuple[tuple[int, str, str], ...]]] = {
    "input": (16, ()),
    "convolution": (
        17,
        (
            (1, "out_channels", "uint"),
            (2, "kernel", "uints"),
            (3, "strides", "uints"),
            (4, "pads", "uints"),
            (5, "dilations", "uints"),
            (6, "groups", "uint"),
        ),
    ),
    "matrix_product": (18, ((1, "columns", "uint"),)),
    "multiply": (19, ((1, "weight_shape", "uints"),)),
    "add_constant": (20, ((1, "constant_shape", "uints"),)),
    "combine": (21, ((1, "coefficients", "sints"),)),
    "reshape": (22, ()),
    "transpose": (23, ((1, "permutation", "uints"),)),
    "slice": (24, ((1, "starts", "uints"), (2, "strides", "uints"))),
    "pad": (25, ((1, "before", "uints"), (2, "after", "uints"), (3, "value", "sint"))),
    "concatenate": (26, ((1, "axis", "uint"),)),
    "expand": (27, ()),
    "window_sum": (
        28,
        (
            (1, "kernel", "uints"),
            (2, "strides", "uints"),
            (3, "pads", "uints"),
            (4, "dilations", "uints"),
        ),
    ),
    "remask": (29, ()),
    "truncate": (30, ((1, "opened_bits", "uint"), (2, "shift", "uint"))),
    "relu": (31, ((1, "opened_bits", "uint"), (2, "shift", "uint"))),
    "output": (32, ((1, "bits", "uint"), (2, "position", "uint"))),
}


def pack(values: list[int], width: int) -> bytes:
    """The low ``width`` bits of each value, one after the other, least significant bit first."""
    string = 0
    for position, value in enumerate(values):
        string |= (value % (1 << width)) << (position * width)
    return string.to_bytes((len(values) * width + 7) // 8, "little")


def unpack(data: bytes, count: int, width: int) -> list[int]:
    """The inverse of :func:`pack`; ValueError for anything that it would not write."""
    if len(data) != (count * width + 7) // 8:
        raise ValueError("wrong length")
    string = int.from_bytes(data, "little")
    if string >> (count * width):
        raise ValueError("bits after the last value")
    return [(string >> (position * width)) % (1 << width) for position in range(count)]


def words(values: list[int], bits: int) -> bytes:
    """Little-endian words."""
    return b"".join((value % (1 << bits)).to_bytes(bits // 8, "little") for value in values)


def encode_frame(session: bytes, gate: int, kind: str, block: int, payload: bytes) -> bytes:
    """The bytes of one frame."""
    return (
        _bytes(1, session)
        + _uint(2, gate)
        + _uint(3, KINDS[kind])
        + _uint(4, block)
        + _bytes(5, payload)
    )


def encode_plan(plan: dict[str, Any]) -> bytes:
    """The canonical bytes of a plan."""
    out = _uint(1, 5) + _uint(2, plan["ring_bits"])
    out += _bytes(3, plan["name"].encode()) + _bytes(4, plan["version"].encode())
    for step in plan["steps"]:
        out += _message(5, _step(step))
    if plan.get("preprocessing"):
        spec = plan["preprocessing"]
        out += _message(
            6,
            _uint(1, spec["channels"])
            + _uint(2, spec["height"])
            + _uint(3, spec["width"])
            + _bytes(4, spec["resize"].encode())
            + _bytes(5, spec["interpolation"].encode())
            + _doubles(6, spec["mean"])
            + _doubles(7, spec["std"]),
        )
    for name in plan["classes"]:
        out += _message(7, name.encode())
    out += _uint(8, TASKS[plan["task"]])
    if plan.get("intended_use"):
        use = plan["intended_use"]
        body = b""
        for number, field in ((1, "modalities"), (2, "body_parts"), (3, "views")):
            for entry in use[field]:
                body += _message(number, entry.encode())
        body += _doubles(4, use["age_years"] or []) + _bytes(5, use["statement"].encode())
        out += _message(9, body)
    return out


def _step(step: dict[str, Any]) -> bytes:
    out = _uints(1, step["inputs"]) + _uints(2, step["shape"])
    out += _uint(3, step["fraction_bits"]) + _uint(4, step["divisor"]) + _uint(5, step["limit"])
    number, fields = GATES[step["gate"]["kind"]]
    body = b""
    for field, name, form in fields:
        value = step["gate"][name]
        if form == "uint":
            body += _uint(field, value)
        elif form == "sint":
            body += _uint(field, _zigzag(value))
        elif form == "uints":
            body += _uints(field, value)
        else:
            body += _uints(field, [_zigzag(v) for v in value])
    return out + _message(number, body)


def _zigzag(value: int) -> int:
    return 2 * value if value >= 0 else -2 * value - 1


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value % 128 + 128)
        value //= 128
    out.append(value)
    return bytes(out)


def _uint(field: int, value: int) -> bytes:
    return _varint(8 * field) + _varint(value) if value else b""


def _message(field: int, body: bytes) -> bytes:
    return _varint(8 * field + 2) + _varint(len(body)) + body


def _bytes(field: int, value: bytes) -> bytes:
    return _message(field, value) if value else b""


def _uints(field: int, values: list[int]) -> bytes:
    return _bytes(field, b"".join(_varint(value) for value in values))


def _doubles(field: int, values: list[float]) -> bytes:
    return _bytes(field, struct.pack(f"<{len(values)}d", *values))
