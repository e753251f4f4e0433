"""The crypto provider's part: the correction of every tuple of a session, from both parties' keys.

It multiplies with the kernels of the gates; nothing here could hold an image or a weight.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import prod
from typing import Final

import numpy as np

from radiopaque.engine.artefact import ArtefactId
from radiopaque.engine.crypten.plan import CryptenPlan
from radiopaque.engine.crypten.tuples import Request, TupleKind, Words, factors, last_part
from radiopaque.engine.material import region_frames
from radiopaque.graph.bands import Rows
from radiopaque.graph.plan import Convolution
from radiopaque.kernels.convolution import PackedConvolution, PackedMatrix
from radiopaque.prg import SecretKey, Streams
from radiopaque.wire.frames import Frame, Kind

PIECE: Final = 1 << 31
"""Ring products, a second or two, between two looks at whether anybody still waits."""

Check = Callable[[], object]
"""Raises where nobody waits for the corrections any more."""


def deal(
    plan: CryptenPlan,
    artefact: ArtefactId,
    session: bytes,
    key_d: SecretKey,
    key_o: SecretKey,
    check: Check = lambda: None,
) -> Iterator[Frame]:
    """The CORRECTION frames of a session in the plan's order, each made when it is asked for.

    ``check`` is called between pieces of the work; what it raises ends it.
    """
    data_owner = Streams(key_d, artefact.plan_digest, session, "data-owner")
    model_owner = Streams(key_o, artefact.plan_digest, session, "model-owner")
    for number, request in enumerate(plan.requests):
        check()
        region = correction(request, number, data_owner, model_owner, check)
        data = np.ascontiguousarray(region).reshape(-1).view(np.uint8)
        yield from region_frames(session, number, Kind.CORRECTION, data)


def correction(
    request: Request,
    number: int,
    data_owner: Streams,
    model_owner: Streams,
    check: Check = lambda: None,
) -> Words:
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
    value = _related(request, a, b, check)
    return value ^ last if request.kind is TupleKind.CONJUNCTION else value - last


def _related(request: Request, a: Words, b: Words | None, check: Check) -> Words:
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
        return _multiplied(request, a, b, check)
    return _convolved(request, a, b, check)


def _multiplied(request: Request, a: Words, b: Words, check: Check) -> Words:
    """a @ b, a matrix after the other and some rows at a time."""
    products = out = np.empty(request.result, np.uint64)
    factor = a
    if b.ndim == 2:
        # the matrices of a, one above the other
        factor, products = a.reshape(-1, a.shape[-1]), out.reshape(-1, out.shape[-1])
    batch = products.shape[:-2]
    left = np.broadcast_to(factor, (*batch, *factor.shape[-2:]))
    right = np.broadcast_to(b, (*batch, *b.shape[-2:]))
    height = max(1, PIECE // prod(b.shape[-2:]))
    for index in np.ndindex(batch):
        check()
        matrix = PackedMatrix(right[index])
        for top in range(0, factor.shape[-2], height):
            check()
            rows = slice(top, top + height)
            products[index][rows] = matrix(left[index][rows])
    return out


def _convolved(request: Request, a: Words, b: Words, check: Check) -> Words:
    """a convolved with b, some images or some rows of one at a time."""
    numbers = request.integers
    kernel = PackedConvolution(
        b,
        Convolution(
            request.right[0],
            (request.right[2], request.right[3]),
            (numbers[0], numbers[1]),
            (numbers[2], numbers[3], numbers[2], numbers[3]),
            (numbers[4], numbers[5]),
            numbers[6],
        ),
    )
    out = np.empty(request.result, np.uint64)
    count, _, bottom, width = request.result
    height = min(bottom, max(1, PIECE // (width * prod(request.right))))
    images = max(1, PIECE // (bottom * width * prod(request.right)))
    for first in range(0, count, images):
        for top in range(0, bottom, height):
            check()
            rows = Rows(first, min(first + images, count), top, min(top + height, bottom))
            out[first : rows.last, :, top : rows.bottom] = kernel(a, rows)
    return out
