"""The plans, weights, images and keys of the vectors of gates and networks."""

from __future__ import annotations

import hashlib
import random
from typing import Any

from radiopaque.graph import plan as p
from tests.plans import PlanBuilder, edge_values, elements, ring_values
from tests.vectors.forms import plan_to_json

RINGS = (32, 64)
TRUNCATIONS = {32: ((32, 13), (20, 1), (32, 29)), 64: ((45, 16), (64, 30), (64, 61))}
COMPARISONS = {  # 18, 24 and 30 compared bits
    32: ((32, 13), (19, 0), (32, 7), (25, 0), (31, 0), (32, 1)),
    64: ((64, 45), (19, 0), (41, 16), (64, 39), (47, 16), (64, 33), (31, 0)),
}
OUTPUTS = {32: ((32, 0), (16, 4), (2, 0), (31, 1)), 64: ((63, 0), (63, 1), (16, 40))}


def keys(name: str) -> dict[str, str]:
    """Keys and ids that depend on a case's name alone. Real ones are drawn at random."""

    def derive(label: str, size: int) -> str:
        return hashlib.sha256(f"vector {name} {label}".encode()).digest()[:size].hex()

    return {
        "key_b": derive("key_b", 32),
        "key_d": derive("key_d", 32),
        "key_o": derive("key_o", 32),
        "artefact": derive("artefact", 16),
        "session": derive("session", 16),
    }


def case(name: str, plan: p.Plan, shift: int = 0) -> dict[str, Any]:
    """A vector's inputs: edge values in the image, weights and constants over the whole ring."""
    rng = random.Random(name)
    first = plan.input_step
    return {
        "name": name,
        "inputs": {
            "plan": plan_to_json(plan),
            "keys": keys(name),
            "weights": {
                str(gate): ring_values(plan.ring_bits, elements(shape), rng)
                for gate, shape in plan.weight_shapes()
            },
            "constants": {
                str(gate): ring_values(plan.ring_bits, elements(shape), rng)
                for gate, shape in plan.constant_shapes()
            },
            "image": edge_values(first.limit, shift, first.size, rng),
        },
    }


def input_cases() -> list[dict[str, Any]]:
    """The image in, all of its bits out."""
    return [
        case(f"input_{k}", PlanBuilder(k, shape, name=f"input_{k}").finish())
        for k, shape in ((32, (1, 1, 3, 5)), (64, (2, 1, 2, 4)))
    ]


def linear_cases() -> list[dict[str, Any]]:
    """Gates with secret weights."""
    gates: dict[str, tuple[tuple[int, ...], p.Gate, tuple[int, ...]]] = {
        "convolution": (
            (2, 2, 4, 4),
            p.Convolution(3, (2, 3), (2, 1), (1, 0, 0, 2), (1, 2), 1),
            (2, 3, 2, 2),
        ),
        "convolution_groups": (
            (1, 4, 3, 3),
            p.Convolution(2, (3, 3), (2, 2), (1, 1, 1, 1), (1, 1), 2),
            (1, 2, 2, 2),
        ),
        "convolution_depthwise": (
            (1, 3, 4, 4),
            p.Convolution(3, (2, 2), groups=3),
            (1, 3, 3, 3),
        ),
        "matrix_product": ((3, 5), p.MatrixProduct(4), (3, 4)),
        "matrix_product_batch": ((2, 2, 3), p.MatrixProduct(1), (2, 2, 1)),
        "multiply": ((2, 3, 2, 2), p.Multiply((3, 1, 1)), (2, 3, 2, 2)),
    }
    out = []
    for k in RINGS:
        for name, (shape, gate, result) in gates.items():
            build = PlanBuilder(k, shape, name=name)
            build.add(gate, 0, shape=result)
            out.append(case(f"{name}_{k}", build.finish()))
    return out


def local_cases() -> list[dict[str, Any]]:
    """Gates that each party applies to its own half."""
    unary: dict[str, tuple[tuple[int, ...], p.Gate, tuple[int, ...]]] = {
        "add_constant": ((2, 3, 2, 2), p.AddConstant((3, 1, 1)), (2, 3, 2, 2)),
        "reshape": ((2, 3, 4), p.Reshape(), (4, 6)),
        "transpose": ((2, 3, 4), p.Transpose((2, 0, 1)), (4, 2, 3)),
        "slice": ((1, 5, 6), p.Slice((0, 1, 5), (1, 2, 1)), (1, 2, 1)),
        "pad": ((1, 2, 3), p.Pad((0, 1, 0), (1, 0, 2), -7), (2, 3, 5)),
        "expand": ((3, 1, 2), p.Expand(), (2, 3, 4, 2)),
        "window_sum": (
            (1, 2, 4, 4),
            p.WindowSum((3, 2), (1, 2), (1, 0, 1, 1), (1, 2)),
            (1, 2, 4, 2),
        ),
    }
    out = []
    for k in RINGS:
        for name, (shape, gate, result) in unary.items():
            build = PlanBuilder(k, shape, name=name)
            build.add(gate, 0, shape=result)
            out.append(case(f"{name}_{k}", build.finish()))
        build = PlanBuilder(k, (2, 3, 3), name="combine")
        build.add(p.Transpose((0, 2, 1)), 0)
        build.add(p.Combine((1, -1)), 0, 1)
        build.add(p.Combine((-(1 << (k // 2)), 3, 0, 1)), 2, 1, 0, 2)
        out.append(case(f"combine_{k}", build.finish()))
        build = PlanBuilder(k, (2, 2, 3), name="concatenate")
        build.add(p.Slice((0, 1, 0), (1, 1, 2)), 0, shape=(2, 1, 2))
        build.add(p.Slice((0, 0, 1), (1, 1, 1)), 0, shape=(2, 2, 2))
        build.add(p.Concatenate(1), 1, 2, 1, shape=(2, 4, 2))
        out.append(case(f"concatenate_{k}", build.finish()))
    return out


def remask_cases() -> list[dict[str, Any]]:
    """A derived mask, alone and joined with a fresh one, is exchanged and multiplied again."""
    out = []
    for k in RINGS:
        build = PlanBuilder(k, (1, 2, 3, 3), name="remask")
        build.add(p.Convolution(2, (2, 2)), 0, shape=(1, 2, 2, 2))
        build.add(p.Slice((0, 0, 1, 1), (1, 1, 1, 1)), 0, shape=(1, 2, 2, 2))
        build.add(p.Concatenate(1), 1, 2, shape=(1, 4, 2, 2))
        build.add(p.Remask(), 3)
        build.add(p.Multiply((4, 1, 1)), 4)
        out.append(case(f"remask_{k}", build.finish()))
    return out


def truncate_cases() -> list[dict[str, Any]]:
    """Truncation alone, up to both ends of its range."""
    out = []
    for k in RINGS:
        for bits, shift in TRUNCATIONS[k]:
            build = PlanBuilder(k, (1, 33), 1 << (bits - 2), name="truncate")
            build.add(p.Truncate(bits, shift), 0, limit=(1 << (bits - 2) >> shift) + 1)
            out.append(case(f"truncate_{k}_{bits}_{shift}", build.finish(), shift))
    return out


def relu_cases() -> list[dict[str, Any]]:
    """ReLU with 18, 24 and 30 compared bits, up to both ends of its range."""
    out = []
    for k in RINGS:
        for bits, shift in COMPARISONS[k]:
            limit = (1 << (bits - 1)) - (1 << shift)
            build = PlanBuilder(k, (1, 27), limit, name="relu")
            build.add(p.Relu(bits, shift), 0, limit=limit >> shift)
            out.append(case(f"relu_{k}_{bits}_{shift}", build.finish(), shift))
    return out


def output_cases() -> list[dict[str, Any]]:
    """Some bits of the result; the image stays inside the window."""
    out = []
    for k in RINGS:
        for bits, position in OUTPUTS[k]:
            limit = (1 << (position + bits - 1)) - 1 - (1 << position >> 1)
            build = PlanBuilder(k, (1, 13), limit, name="output")
            out.append(
                case(f"output_{k}_{bits}_{position}", build.finish(bits, position), position)
            )
    return out


def network_cases() -> list[dict[str, Any]]:
    """Convolution with ReLU, max-pooling by tournament, a fully connected layer."""
    return [_network(32, 32, 13), _network(64, 41, 16)]


def _network(k: int, opened: int, shift: int) -> dict[str, Any]:
    name = f"network_{k}"
    rng = random.Random(name)
    bits = 8
    image_limit = 4 << bits
    # 2 * 9 products of at most 4 * 1/4 at scale 2^(8 + weight bits), and a bias of at most 1
    weight_bits = opened - 2 - 5 - bits
    product_limit = (1 << (opened - 1)) - (1 << shift)
    build = PlanBuilder(k, (2, 2, 5, 5), image_limit, bits, name)
    build.add(
        p.Convolution(3, (3, 3), pads=(1, 1, 0, 0)), 0, shape=(2, 3, 4, 4), limit=product_limit
    )
    build.add(p.AddConstant((3, 1, 1)), 1)
    activations = build.add(p.Relu(opened, shift), 2, limit=(product_limit >> shift) + 1)
    compared = opened - shift
    for axis, half in ((2, (2, 3, 2, 4)), (3, (2, 3, 2, 2))):
        even = tuple(2 if i == axis else 1 for i in range(4))
        odd_start = tuple(int(i == axis) for i in range(4))
        a = build.add(p.Slice((0, 0, 0, 0), even), activations, shape=half)
        b = build.add(p.Slice(odd_start, even), activations, shape=half)
        # activations are not negative, so a difference stays within their limit
        limit = (1 << (compared - 1)) - 1
        difference = build.add(p.Combine((1, -1)), a, b, limit=limit)
        positive = build.add(p.Relu(compared, 0), difference)
        activations = build.add(p.Combine((1, 1)), b, positive)
    flat = build.add(p.Reshape(), activations, shape=(2, 12))
    product = build.add(p.MatrixProduct(3), flat, shape=(2, 3))
    build.add(p.AddConstant((3,)), product)
    plan = build.finish(16 if k == 32 else 20, 10, fraction_bits=0)
    made = case(name, plan)
    unit = 1 << weight_bits
    for gate, values in made["inputs"]["weights"].items():
        small = unit // 4 if gate == "1" else 40
        made["inputs"]["weights"][gate] = [rng.randint(-small, small) for _ in values]
    for gate, values in made["inputs"]["constants"].items():
        small = unit if gate == "2" else 4000
        made["inputs"]["constants"][gate] = [rng.randint(-small, small) for _ in values]
    return made


FILES = {
    "gate_input": input_cases,
    "gate_linear": linear_cases,
    "gate_local": local_cases,
    "gate_remask": remask_cases,
    "gate_truncate": truncate_cases,
    "gate_relu": relu_cases,
    "gate_output": output_cases,
    "network": network_cases,
}
