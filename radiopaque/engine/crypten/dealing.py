"""The crypto provider's part: the correction of every tuple of a session, from both parties' keys.

It multiplies with the kernels of the gates; nothing here could hold an image or a weight.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from radiopaque.engine.artefact import ArtefactId
from radiopaque.engine.crypten.plan import CryptenPlan
from radiopaque.engine.crypten.tuples import Request, TupleKind, Words, factors, last_part
from radiopaque.engine.material import region_frames
from radiopaque.graph.plan import Convolution
from radiopaque.kernels.convolution import PackedConvolution, PackedMatrix
from radiopaque.prg import SecretKey, Streams
from radiopaque.wire.frames import Frame, Kind


def deal(
    plan: CryptenPlan,
    artefact: ArtefactId,
    session: bytes,
    key_d: SecretKey,
    key_o: SecretKey,
) -> Iterator[Frame]:
    """The CORRECTION frames of a session in the plan's order, each made when it is asked for."""
    data_owner = Streams(key_d, artefact.plan_digest, session, "data-owner")
    model_owner = Streams(key_o, artefact.plan_digest, session, "model-owner")
    for number, request in enumerate(plan.requests):
        region = correction(request, number, data_owner, model_owner)
        data = np.ascontiguousarray(region).reshape(-1).view(np.uint8)
        yield from region_frames(session, number, Kind.CORRECTION, data)


def correction(request: Request, number: int, data_owner: Streams, model_owner: Streams) -> Words:
    """What turns the data owner's stream ``c`` into the other half of the tuple's last part."""
    binary = request.kind in (TupleKind.CONJUNCTION, TupleKind.BIT)
    add = np.bitwise_xor if binary else np.add
    a, b = factors(request, number, data_owner)
    left, right = factors(request, number, model_owner)
    add(a, left, out=a)
    if b is not None and right is not None:
        add(b, right, out=b)
    # as large as the layer's weights
    del left, right
    last = last_part(request, number, data_owner)
    value = _related(request, a, b)
    return value ^ last if request.kind is TupleKind.CONJUNCTION else value - last


def _related(request: Request, a: Words, b: Words | None) -> Words:
    """The last part in the clear."""
    if request.kind is TupleKind.BIT:
        return a
    if b is None:
        return a * a
    if request.kind is TupleKind.PRODUCT:
        return a * b
    if request.kind is TupleKind.CONJUNCTION:
        return a & b
    if request.kind is TupleKind.MATRIX_PRODUCT:
        return PackedMatrix(b)(a) if b.ndim == 2 else np.matmul(a, b)
    numbers = request.integers
    spec = Convolution(
        request.right[0],
        (request.right[2], request.right[3]),
        (numbers[0], numbers[1]),
        (numbers[2], numbers[3], numbers[2], numbers[3]),
        (numbers[4], numbers[5]),
        numbers[6],
    )
    return PackedConvolution(b, spec)(a)
