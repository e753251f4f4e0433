"""A compiled artefact: one plan with one set of weights under one mask key.

key_B is drawn anew for every artefact, however similar two may be: under one key, F2 - F1 would be
W2 - W1. The artefact id stands in the streams' context where sessions have theirs.

Source: docs/protocol.md, sections 3, 4.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from radiopaque.errors import MessageSizeError
from radiopaque.gates.linear_maps import LinearMap, linear_maps
from radiopaque.graph.plan import Plan
from radiopaque.graph.weights import Weights
from radiopaque.kernels.cpu import CPU
from radiopaque.kernels.device import Device
from radiopaque.prg import SecretKey, Streams, new_id
from radiopaque.ring import RingArray, ring_dtype


@dataclass(frozen=True)
class ArtefactId:
    """What names an artefact everywhere: the plan's digest and a random id."""

    plan_digest: bytes
    artefact: bytes


@dataclass(frozen=True)
class ArtefactKey:
    """An artefact's id with key_B; the model owner makes it, the crypto provider gets it."""

    id: ArtefactId
    key_b: SecretKey = field(repr=False)

    @classmethod
    def generate(cls, plan_digest: bytes) -> ArtefactKey:
        """A fresh artefact of this plan."""
        return cls(ArtefactId(plan_digest, new_id()), SecretKey.generate())


def weight_masks(plan: Plan, artefact: ArtefactKey) -> Iterator[tuple[int, RingArray]]:
    """(gate, B) of every linear gate in plan order, each made when it is asked for."""
    streams = Streams(artefact.key_b, artefact.id.plan_digest, artefact.id.artefact, "artefact")
    dtype = ring_dtype(plan.ring_bits)
    for gate, shape in plan.weight_shapes():
        yield gate, streams.words(gate, "weights", shape, dtype)


def weight_mask_maps(
    plan: Plan, artefact: ArtefactKey, device: Device = CPU
) -> dict[int, LinearMap]:
    """The linear maps of B on a device, ready to deal with."""
    return linear_maps(plan, weight_masks(plan, artefact), device)


def mask_weights(plan: Plan, weights: Weights, artefact: ArtefactKey) -> bytes:
    """F = W - B of all linear gates in plan order, as the bytes that clinics receive."""
    word = ring_dtype(plan.ring_bits).newbyteorder("<")
    return b"".join(
        (weights.linear[gate] - mask).astype(word, copy=False).tobytes()
        for gate, mask in weight_masks(plan, artefact)
    )


def masked_weights_size(plan: Plan) -> int:
    """Bytes of F."""
    return sum(int(np.prod(shape, dtype=np.int64)) for _, shape in plan.weight_shapes()) * (
        plan.ring_bits // 8
    )


@dataclass(frozen=True)
class MaskedWeights:
    """F as the data owner uses it: the linear maps and the digest that sessions are bound to.

    ``device`` is where the maps are, and so where the data owner computes.
    """

    maps: Mapping[int, LinearMap] = field(repr=False)
    digest: bytes
    device: Device = CPU

    @classmethod
    def parse(cls, plan: Plan, data: bytes, device: Device = CPU) -> MaskedWeights:
        """From the bytes of :func:`mask_weights`. Raises MessageSizeError for another length."""
        if len(data) != masked_weights_size(plan):
            raise MessageSizeError(
                f"the masked weights take {masked_weights_size(plan)} bytes, got {len(data)}; "
                "fetch the model again"
            )
        return cls(linear_maps(plan, _parsed(plan, data), device), weights_digest(data), device)


def _parsed(plan: Plan, data: bytes) -> Iterator[tuple[int, RingArray]]:
    """(gate, F) from the bytes of :func:`mask_weights`."""
    word = ring_dtype(plan.ring_bits)
    flat: NDArray[np.unsignedinteger] = np.frombuffer(data, word.newbyteorder("<"))
    start = 0
    for gate, shape in plan.weight_shapes():
        size = int(np.prod(shape, dtype=np.int64))
        yield gate, flat[start : start + size].astype(word).reshape(shape)
        start += size


def weights_digest(data: bytes) -> bytes:
    """SHA-256 of F's bytes."""
    return hashlib.sha256(data).digest()


def binding_digest(artefact: ArtefactId, masked_weights_digest: bytes) -> bytes:
    """What a session's offline message is bound to: the plan, the artefact and F.

    Two offline messages of one session under F1 and F2 would differ by (F2 - F1) * A, and A unmasks
    the image; so the data owner stores this digest durably before it sends the only one.
    """
    parts = (
        b"radiopaque/1 binding",
        artefact.plan_digest,
        artefact.artefact,
        masked_weights_digest,
    )
    return hashlib.sha256(b"".join(len(p).to_bytes(2, "big") + p for p in parts)).digest()
