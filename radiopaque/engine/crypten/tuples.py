"""Correlated randomness for CrypTen: what one opening consumes, and who makes which half of it.

Request ``i`` of a plan is dealt from the streams of gate ``i``. The data owner's halves are streams
of key_D; the model owner's are streams of key_O, but for the last part, which is what the crypto
provider corrects:

=============  =======================  ==========================================
tuple          streams of both          the last part, a stream of the data owner's
=============  =======================  ==========================================
product        ``a``, ``b``             ``c`` with c = a * b (elementwise)
matrix product ``a``, ``b``             ``c`` with c = a @ b
convolution    ``a``, ``b``             ``c`` with c = a convolved with b
square         ``a``                    ``c`` with c = a * a
conjunction    ``a``, ``b``             ``c`` with c = a & b, shared by exclusive or
bit            ``a``, its lowest bits   ``c``, the same bit shared by addition
=============  =======================  ==========================================

All words have 64 bits. Each request is used once, in order, by both parties.

Source: Beaver, CRYPTO 1991; the tuples are those of CrypTen 0.4.1 (``crypten/mpc/provider``).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from math import prod
from typing import Final

import numpy as np
from numpy.typing import NDArray

from radiopaque.errors import MessageSizeError, PlanError
from radiopaque.graph.plan import Shape
from radiopaque.prg import Streams

Words = NDArray[np.uint64]

WORD: Final = 8
MAX_WORDS: Final = 1 << 27
"""Of one tensor: 1 GiB."""
MAX_RANK: Final = 8
MAX_DEALT_WORDS: Final = 1 << 33
"""Of all corrections of a session: 64 GiB on the model owner's disk."""
MAX_MULTIPLY_ADDS: Final = 1 << 42
"""Of dealing a session: whoever deals must be able to finish."""


class TupleKind(IntEnum):
    """The kinds of tuples; the numbers are those of ``radiopaque.v1.CryptenTuple``."""

    PRODUCT = 1
    MATRIX_PRODUCT = 2
    CONVOLUTION = 3
    SQUARE = 4
    CONJUNCTION = 5
    BIT = 6


SINGLE: Final = frozenset({TupleKind.SQUARE, TupleKind.BIT})
"""Tuples of one tensor."""


@dataclass(frozen=True)
class Request:
    """One tuple of a plan. ``integers``: strides, pads, dilations (two each) and groups."""

    kind: TupleKind
    left: Shape
    right: Shape = ()
    integers: tuple[int, ...] = ()

    @property
    def result(self) -> Shape:
        """Shape of the last part. Raises PlanError where the factors do not fit."""
        try:
            return _result(self)
        except ValueError as error:
            raise PlanError(
                f"{self.kind.name} of {list(self.left)} and {list(self.right)} does not exist"
            ) from error

    @property
    def correction_bytes(self) -> int:
        """From the crypto provider to the model owner."""
        return WORD * prod(self.result)

    @property
    def opened_bytes(self) -> int:
        """That each party sends to the other when the tuple is used."""
        right = 0 if self.kind in SINGLE else prod(self.right)
        return WORD * (prod(self.left) + right)


def _result(request: Request) -> Shape:
    left, right = request.left, request.right
    if request.kind in SINGLE:
        return left
    if request.kind is TupleKind.MATRIX_PRODUCT:
        if min(len(left), len(right)) < 2 or left[-1] != right[-2]:
            raise ValueError("no matrices that fit")
        return (*np.broadcast_shapes(left[:-2], right[:-2]), left[-2], right[-1])
    if request.kind is TupleKind.CONVOLUTION:
        return _convolved(request)
    return np.broadcast_shapes(left, right)


def _convolved(request: Request) -> Shape:
    left, right = request.left, request.right
    strides, pads, dilations, groups = (
        request.integers[0:2],
        request.integers[2:4],
        request.integers[4:6],
        request.integers[6],
    )
    if len(left) != 4 or len(right) != 4 or left[1] != right[1] * groups or right[0] % groups:
        raise ValueError("no image and kernels that fit")
    spatial = tuple(
        (left[axis + 2] + 2 * pads[axis] - (right[axis + 2] - 1) * dilations[axis] - 1)
        // strides[axis]
        + 1
        for axis in (0, 1)
    )
    if min(spatial) < 1:
        raise ValueError("the kernel is larger than the image")
    return (left[0], right[0], *spatial)


def validate(requests: tuple[Request, ...]) -> None:
    """Raise PlanError for requests that no compiler here would write, before memory is taken."""
    for number, request in enumerate(requests):
        where = f"tuple {number}"
        shapes = [request.left] if request.kind in SINGLE else [request.left, request.right]
        for shape in shapes:
            if len(shape) > MAX_RANK or not all(1 <= size <= MAX_WORDS for size in shape):
                raise PlanError(f"{where} has the shape {list(shape)}, which is no tensor's")
        if request.kind in SINGLE and request.right:
            raise PlanError(f"{where} has a second factor, which it does not take")
        wanted = 7 if request.kind is TupleKind.CONVOLUTION else 0
        if len(request.integers) != wanted:
            raise PlanError(f"{where} has {len(request.integers)} parameters instead of {wanted}")
        if wanted and (
            max(request.integers) > MAX_WORDS
            or min((*request.integers[0:2], *request.integers[4:])) < 1
        ):
            raise PlanError(f"{where} is no convolution: {list(request.integers)}")
        if max(prod(shape) for shape in (*shapes, request.result)) > MAX_WORDS:
            raise PlanError(f"{where} has over {MAX_WORDS} elements")
    for what, found, most in (
        ("words of corrections", sum(prod(r.result) for r in requests), MAX_DEALT_WORDS),
        ("multiply-adds", sum(map(_multiply_adds, requests)), MAX_MULTIPLY_ADDS),
    ):
        if found > most:
            raise PlanError(f"the plan takes {found} {what} a session, over the limit of {most}")


def _multiply_adds(request: Request) -> int:
    """Ring products that dealing the tuple takes."""
    size = prod(request.result)
    if request.kind is TupleKind.CONVOLUTION:
        return size * prod(request.right[1:])
    if request.kind is TupleKind.MATRIX_PRODUCT:
        return size * request.left[-1]
    return size


@dataclass(frozen=True, repr=False)
class Halves:
    """One party's half of a tuple; ``b`` is None for tuples of one tensor."""

    a: Words
    b: Words | None
    c: Words


def data_owner_half(request: Request, number: int, streams: Streams) -> Halves:
    """All of it from the data owner's own streams."""
    return Halves(*factors(request, number, streams), last_part(request, number, streams))


def model_owner_half(
    request: Request, number: int, streams: Streams, correction: bytes | bytearray
) -> Halves:
    """Factors from the model owner's own streams, the last part as it was dealt.

    Raises MessageSizeError.
    """
    if len(correction) != request.correction_bytes:
        raise MessageSizeError(
            f"the correction of tuple {number} takes {request.correction_bytes} bytes, "
            f"got {len(correction)}"
        )
    last = np.frombuffer(correction, "<u8").astype(np.uint64, copy=False)
    return Halves(*factors(request, number, streams), last.reshape(request.result))


def factors(request: Request, number: int, streams: Streams) -> tuple[Words, Words | None]:
    """One party's shares of ``a`` and ``b``, from its own streams."""
    if request.kind is TupleKind.BIT:
        bits = streams.words(number, "a", request.left, np.uint8) & 1
        return bits.astype(np.uint64), None
    a = _words(streams, number, "a", request.left)
    if request.kind in SINGLE:
        return a, None
    return a, _words(streams, number, "b", request.right)


def last_part(request: Request, number: int, data_owner: Streams) -> Words:
    """The data owner's share of ``c``."""
    return _words(data_owner, number, "c", request.result)


def _words(streams: Streams, number: int, quantity: str, shape: Shape) -> Words:
    return streams.words(number, quantity, shape, np.uint64).astype(np.uint64, copy=False)
