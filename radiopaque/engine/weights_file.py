"""The model owner's private file: weights, constants and key_B of one artefact.

Layout, all sizes known from the plan: magic (8 bytes), plan digest (32), artefact id (16), key_B
(32), the weights of every linear gate in plan order, the constants of every AddConstant gate in
plan order (little-endian ring words, row-major), SHA-256 of all that (32).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import TypeVar

import numpy as np

from radiopaque.engine.artefact import ArtefactId, ArtefactKey
from radiopaque.errors import PlanDigestError, PlanError, WeightsFileError
from radiopaque.files import check_private, remove_leftovers, write_atomically
from radiopaque.graph.plan import Plan, Shape, plan_digest
from radiopaque.graph.weights import Weights
from radiopaque.prg import ID_BYTES, KEY_BYTES, SecretKey
from radiopaque.ring import RingArray, ring_dtype
from radiopaque.wire.plans import MAX_PLAN_BYTES, decode_plan, encode_plan

MAGIC = b"RPQWGT01"
PLAN_FILE = "plan.pb"
WEIGHTS_FILE = "weights.bin"
_DIGEST_BYTES = 32
_HEADER_BYTES = len(MAGIC) + _DIGEST_BYTES + ID_BYTES + KEY_BYTES
_Plan = TypeVar("_Plan")


@dataclass(frozen=True)
class CompiledModel:
    """A compiled model as the model owner stores it. The plan is public, the rest is not."""

    plan: Plan
    plan_bytes: bytes = field(repr=False)
    weights: Weights = field(repr=False)
    key: ArtefactKey


def write_compiled(directory: Path, plan: Plan, weights: Weights) -> CompiledModel:
    """Store a compiled model under a fresh artefact id and key_B; each file whole or not at all."""
    encoded = encode_plan(plan)
    key = ArtefactKey.generate(plan_digest(encoded))
    directory.mkdir(parents=True, exist_ok=True)
    remove_leftovers(directory)
    write_atomically(directory / WEIGHTS_FILE, _encode(plan, weights, key))
    write_atomically(directory / PLAN_FILE, encoded, mode=0o644)
    return CompiledModel(plan, encoded, weights, key)


def read_compiled(directory: Path) -> CompiledModel:
    """Load a compiled model.

    Raises WeightsFileError or PlanError for files that are missing, cut, or do not belong together.
    """
    plan, plan_bytes, body = read_folder(directory, decode_plan, MAGIC, _file_size)
    digest = plan_digest(plan_bytes)
    position = len(MAGIC) + _DIGEST_BYTES
    artefact = body[position : position + ID_BYTES]
    key_b = SecretKey(body[position + ID_BYTES : _HEADER_BYTES])
    words = np.frombuffer(body, ring_dtype(plan.ring_bits).newbyteorder("<"), offset=_HEADER_BYTES)
    linear, used = _split(words, plan.weight_shapes(), plan)
    constants, _ = _split(words[used:], plan.constant_shapes(), plan)
    return CompiledModel(
        plan,
        plan_bytes,
        Weights(linear, constants),
        ArtefactKey(ArtefactId(digest, artefact), key_b),
    )


def _encode(plan: Plan, weights: Weights, key: ArtefactKey) -> bytes:
    word = ring_dtype(plan.ring_bits).newbyteorder("<")
    parts = [MAGIC, key.id.plan_digest, key.id.artefact, key.key_b.reveal()]
    for shapes, arrays in (
        (plan.weight_shapes(), weights.linear),
        (plan.constant_shapes(), weights.constants),
    ):
        for gate, shape in shapes:
            array = arrays[gate]
            if array.shape != shape or array.dtype != ring_dtype(plan.ring_bits):
                raise WeightsFileError(
                    f"weights of gate {gate} are {array.dtype}{list(array.shape)}, "
                    f"the plan says {word}{list(shape)}"
                )
            parts.append(array.astype(word, copy=False).tobytes())
    body = b"".join(parts)
    return body + hashlib.sha256(body).digest()


def _file_size(plan: Plan) -> int:
    shapes = [*plan.weight_shapes(), *plan.constant_shapes()]
    words = sum(prod(shape) for _, shape in shapes)
    return _HEADER_BYTES + words * (plan.ring_bits // 8) + _DIGEST_BYTES


def _split(
    words: RingArray, shapes: Iterable[tuple[int, Shape]], plan: Plan
) -> tuple[dict[int, RingArray], int]:
    arrays = {}
    start = 0
    for gate, shape in shapes:
        size = prod(shape)
        piece = words[start : start + size]
        arrays[gate] = piece.astype(ring_dtype(plan.ring_bits)).reshape(shape)
        start += size
    return arrays, start


def read_folder(
    directory: Path, decode: Callable[[bytes], _Plan], magic: bytes, size: Callable[[_Plan], int]
) -> tuple[_Plan, bytes, bytes]:
    """A compiled folder's plan, its bytes, and the weights file up to its digest.

    The weights file begins with ``magic`` and the plan's digest and has ``size`` bytes, with a
    SHA-256 of everything before at its end. Raises WeightsFileError, PlanError or PlanDigestError,
    and StoreError where other users may read it.
    """
    plan_bytes = read_limited(directory / PLAN_FILE, MAX_PLAN_BYTES)
    try:
        plan = decode(plan_bytes)
    except PlanError as error:
        raise PlanError(f"{directory / PLAN_FILE}: {error}") from error
    path, expected = directory / WEIGHTS_FILE, size(plan)
    check_private(path)
    data = read_limited(path, expected)
    if len(data) != expected or not data.startswith(magic):
        raise WeightsFileError(
            f"{path} has {len(data)} bytes, this plan takes {expected}; compile the model again"
        )
    body, stated = data[:-_DIGEST_BYTES], data[-_DIGEST_BYTES:]
    if hashlib.sha256(body).digest() != stated:
        raise WeightsFileError(f"{path} is damaged; compile the model again")
    if body[len(magic) : len(magic) + _DIGEST_BYTES] != plan_digest(plan_bytes):
        raise PlanDigestError(f"the plan and the weights in {directory} belong to different models")
    return plan, plan_bytes, body


def read_limited(path: Path, limit: int) -> bytes:
    """A file of a compiled folder, if it is not too large. Raises WeightsFileError."""
    try:
        size = path.stat().st_size
        if size > limit:
            raise WeightsFileError(f"{path} has {size} bytes, over the {limit} that it may have")
        return path.read_bytes()
    except OSError as error:
        raise WeightsFileError(
            f"cannot read {path}: {error.strerror}; run radiopaque compile"
        ) from error
