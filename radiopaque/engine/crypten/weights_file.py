"""The model owner's private file of a model for CrypTen: its secret tensors, as they are.

Layout, all sizes known from the plan: magic (8 bytes), plan digest (32), artefact id (16), the
constants in the program's order (little-endian float32, row-major), SHA-256 of all that (32).
There is no masked half: the weights are shared anew in each inference.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from radiopaque.engine.artefact import ArtefactId, ArtefactKey
from radiopaque.engine.crypten.encoding import decode_plan, encode_plan
from radiopaque.engine.crypten.plan import CryptenPlan
from radiopaque.engine.weights_file import PLAN_FILE, WEIGHTS_FILE, read_folder
from radiopaque.files import remove_leftovers, write_atomically
from radiopaque.graph.plan import plan_digest
from radiopaque.prg import ID_BYTES, KEY_BYTES, SecretKey, new_id

MAGIC: Final = b"RPQCRY01"
_DIGEST_BYTES: Final = 32
_HEADER_BYTES: Final = len(MAGIC) + _DIGEST_BYTES + ID_BYTES
_FLOAT_BYTES: Final = 4


@dataclass(frozen=True)
class StoredCrypten:
    """A model for CrypTen as the model owner stores it. The plan is public, the rest is not."""

    plan: CryptenPlan
    plan_bytes: bytes = field(repr=False)
    constants: tuple[NDArray[np.float32], ...] = field(repr=False)
    id: ArtefactId

    @property
    def key(self) -> ArtefactKey:
        """The artefact as the crypto provider registers it.

        key_B masks the weights that clinics of the other engine hold; here nobody holds any, so it
        is zero.
        """
        return ArtefactKey(self.id, SecretKey(bytes(KEY_BYTES)))


def write_compiled(
    directory: Path, plan: CryptenPlan, constants: Mapping[int, NDArray[np.float32]]
) -> StoredCrypten:
    """Store a compiled model under a fresh artefact id; each file whole or not at all."""
    encoded = encode_plan(plan)
    artefact = ArtefactId(plan_digest(encoded), new_id())
    arrays = tuple(constants[number] for number, _ in plan.program.constant_shapes())
    body = b"".join(
        (
            MAGIC,
            artefact.plan_digest,
            artefact.artefact,
            *(array.astype("<f4", copy=False).tobytes() for array in arrays),
        )
    )
    directory.mkdir(parents=True, exist_ok=True)
    remove_leftovers(directory)
    write_atomically(directory / WEIGHTS_FILE, body + hashlib.sha256(body).digest())
    write_atomically(directory / PLAN_FILE, encoded, mode=0o644)
    return StoredCrypten(plan, encoded, arrays, artefact)


def read_compiled(directory: Path) -> StoredCrypten:
    """Load a compiled model.

    Raises WeightsFileError or PlanError for files that are missing, cut, or do not belong together.
    """
    plan, encoded, body = read_folder(directory, decode_plan, MAGIC, _file_size)
    header = len(MAGIC) + _DIGEST_BYTES
    artefact = ArtefactId(plan_digest(encoded), body[header:_HEADER_BYTES])
    floats = np.frombuffer(body, "<f4", offset=_HEADER_BYTES)
    arrays = []
    for _, shape in plan.program.constant_shapes():
        arrays.append(floats[: prod(shape)].reshape(shape))
        floats = floats[prod(shape) :]
    return StoredCrypten(plan, encoded, tuple(arrays), artefact)


def _file_size(plan: CryptenPlan) -> int:
    floats = sum(prod(shape) for _, shape in plan.program.constant_shapes())
    return _HEADER_BYTES + _FLOAT_BYTES * floats + _DIGEST_BYTES
