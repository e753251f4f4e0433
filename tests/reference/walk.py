"""A whole plan, from a vector's inputs to its outputs."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

from tests.reference import encoding
from tests.reference.comparison import relu, truncate
from tests.reference.linear import SECRET_WEIGHTS, public, secret_weights, weight_mask
from tests.reference.session import Message, Session, start

Gate = Callable[[Session, int, dict[str, Any]], None]


def image(run: Session, gate: int, step: dict[str, Any]) -> None:
    """The data owner sends x - A."""
    fresh = run.fresh(gate, tuple(step["shape"]))
    run.m[gate] = run.known[gate] = fresh
    run.h[gate] = run.image - fresh
    payload = encoding.words(run.h[gate].values, run.bits)
    run.to_model_owner.append(Message(gate, "IMAGE", 0, payload))


def remask(run: Session, gate: int, step: dict[str, Any]) -> None:
    """The data owner sends m - A offline, the model owner adds it."""
    (source,) = step["inputs"]
    fresh = run.fresh(gate, tuple(step["shape"]))
    difference = run.m[source] - fresh
    run.offline[gate] = encoding.words(difference.values, run.bits)
    run.m[gate] = run.known[gate] = fresh
    run.h[gate] = run.h[source] + difference


def output(run: Session, gate: int, step: dict[str, Any]) -> None:
    """b bits of h from bit q up; the data owner computes (h_bits 2^q + 2^(q-1) + m), signed."""
    (source,) = step["inputs"]
    b, q = step["gate"]["bits"], step["gate"]["position"]
    run.m[gate], run.h[gate], run.known[gate] = run.m[source], run.h[source], run.known[source]
    revealed = [(h >> q) % (1 << b) for h in run.h[source].values]
    run.to_data_owner.append(Message(gate, "RESULT", 0, encoding.pack(revealed, b)))
    half_unit = 1 << (q - 1) if q else 0
    modulus = 1 << (q + b)
    for bits, mask in zip(revealed, run.m[source].values, strict=True):
        value = ((bits << q) + half_unit + mask) % modulus
        run.result.append(value - modulus if value >= modulus // 2 else value)


def walk(inputs: dict[str, Any]) -> Session:
    """Run every gate of the plan."""
    gates: dict[str, Gate] = {
        "input": image,
        "remask": remask,
        "truncate": truncate,
        "relu": relu,
        "output": output,
        **dict.fromkeys(SECRET_WEIGHTS, secret_weights),
    }
    run = start(inputs)
    for gate, step in enumerate(run.plan["steps"]):
        gates.get(step["gate"]["kind"], public)(run, gate, step)
    return run


def derive(inputs: dict[str, Any]) -> dict[str, Any]:
    """A vector's outputs from its inputs."""
    run = walk(inputs)
    encoded = encoding.encode_plan(run.plan)
    session = bytes.fromhex(inputs["keys"]["session"])
    masked = b"".join(
        encoding.words((w - weight_mask(run, gate)).values, run.bits)
        for gate, w in run.weights.items()
    )

    def listed(messages: list[Message]) -> list[dict[str, Any]]:
        return [
            {"gate": m.gate, "kind": m.kind, "block": m.block, "payload": m.payload.hex()}
            for m in messages
        ]

    def digest(messages: list[Message]) -> str:
        frames = [
            encoding.encode_frame(session, m.gate, m.kind, m.block, m.payload) for m in messages
        ]
        return hashlib.sha256(b"".join(frames)).hexdigest()

    return {
        "plan_bytes": encoded.hex(),
        "plan_digest": hashlib.sha256(encoded).hexdigest(),
        "masked_weights": masked.hex(),
        "corrections": {str(gate): data.hex() for gate, data in run.corrections.items()},
        "offline": {str(gate): data.hex() for gate, data in run.offline.items()},
        "data_owner_to_model_owner": listed(run.to_model_owner),
        "model_owner_to_data_owner": listed(run.to_data_owner),
        "data_owner_frames_sha256": digest(run.to_model_owner),
        "model_owner_frames_sha256": digest(run.to_data_owner),
        "result": run.result,
    }
