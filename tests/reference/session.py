"""One session, walked gate by gate with everything that each party holds side by side.

``m`` are the data owner's masks, ``h`` the model owner's values minus those masks, ``known`` those
masks that the crypto provider knows. Messages are collected in the order in which they are sent.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

from tests.reference import encoding
from tests.reference.streams import Streams
from tests.reference.tensors import Shape, Tensor, tensor


@dataclass(frozen=True)
class Message:
    """One online message."""

    gate: int
    kind: str
    block: int
    payload: bytes


@dataclass
class Session:
    """Inputs, and what the gates produce."""

    plan: dict[str, Any]
    d: Streams
    o: Streams
    b: Streams
    weights: dict[int, Tensor]
    constants: dict[int, Tensor]
    image: Tensor
    m: dict[int, Tensor] = field(default_factory=dict)
    h: dict[int, Tensor] = field(default_factory=dict)
    known: dict[int, Tensor | None] = field(default_factory=dict)
    corrections: dict[int, bytes] = field(default_factory=dict)
    offline: dict[int, bytes] = field(default_factory=dict)
    to_model_owner: list[Message] = field(default_factory=list)
    to_data_owner: list[Message] = field(default_factory=list)
    result: list[int] = field(default_factory=list)

    @property
    def bits(self) -> int:
        """Bits of the ring."""
        return int(self.plan["ring_bits"])

    def fresh(self, gate: int, shape: Shape) -> Tensor:
        """A, the fresh mask of a gate's output, from the data owner's streams."""
        return self.ring_words(self.d, gate, "mask", shape)

    def ring_words(self, streams: Streams, gate: int, quantity: str, shape: Shape) -> Tensor:
        """A stream of ring words as a tensor."""
        count = len(tensor_indices(shape))
        return tensor(shape, streams.words(gate, quantity, count, self.bits), self.bits)

    def true_value(self, gate: int) -> Tensor:
        """What no party knows: h + m."""
        return self.h[gate] + self.m[gate]


def tensor_indices(shape: Shape) -> range:
    """As many numbers as a tensor of this shape has elements."""
    count = 1
    for extent in shape:
        count *= extent
    return range(count)


def weight_shape(plan: dict[str, Any], gate: int) -> Shape | None:
    """Shape of a gate's secret weights, None where it has none."""
    step = plan["steps"][gate]
    kind = step["gate"]
    if kind["kind"] == "multiply":
        return tuple(kind["weight_shape"])
    if kind["kind"] not in ("convolution", "matrix_product"):
        return None
    source = plan["steps"][step["inputs"][0]]["shape"]
    if kind["kind"] == "matrix_product":
        return source[-1], kind["columns"]
    return kind["out_channels"], source[1] // kind["groups"], *kind["kernel"]


def start(inputs: dict[str, Any]) -> Session:
    """A session from a vector's inputs."""
    plan, keys = inputs["plan"], inputs["keys"]
    bits = plan["ring_bits"]
    digest = hashlib.sha256(encoding.encode_plan(plan)).digest()

    def streams(key: str, context: str, role: str) -> Streams:
        return Streams(bytes.fromhex(keys[key]), digest, bytes.fromhex(keys[context]), role)

    weights = {}
    constants = {}
    for gate, step in enumerate(plan["steps"]):
        shape = weight_shape(plan, gate)
        if shape is not None:
            weights[gate] = tensor(shape, inputs["weights"][str(gate)], bits)
        if step["gate"]["kind"] == "add_constant":
            constant = tuple(step["gate"]["constant_shape"])
            constants[gate] = tensor(constant, inputs["constants"][str(gate)], bits)
    return Session(
        plan,
        streams("key_d", "session", "data-owner"),
        streams("key_o", "session", "model-owner"),
        streams("key_b", "artefact", "artefact"),
        weights,
        constants,
        tensor(tuple(plan["steps"][0]["shape"]), inputs["image"], bits),
    )
