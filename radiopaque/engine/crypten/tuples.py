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
MAX_WORK: Final = 1 << 40
"""Of dealing a session, see :attr:`Request.work`: a quarter of an hour or less."""
MAX_TUPLE_WORK: Final = 1 << 36
"""Of dealing one tuple: a convolution of 64 by 64 channels, 3x3, at 1024 pixels a side fits."""
MAX_TUPLE_WORDS: Final = 1 << 29
"""Of memory that dealing one tuple takes: 4 GiB."""
MAX_PARTS: Final = 1 << 16
"""Matrices or groups of one tuple, which are multiplied one after the other."""

_TILE_ROWS: Final = 8
_TILE_COLUMNS: Final = 16
"""What the kernels round matrices up to, on the machine that rounds most."""
_PER_WORD: Final = 16
"""Products in the time that drawing a word, or laying it out for a kernel, takes."""
_PER_PART: Final = 1 << 14
"""Products in the time that beginning with a matrix or a group takes."""


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
    def parts(self) -> int:
        """Matrices or groups that are multiplied one after the other."""
        if self.kind is TupleKind.CONVOLUTION:
            return self.integers[6]
        if self.kind is TupleKind.MATRIX_PRODUCT and len(self.right) > 2:
            return prod(self.result[:-2])
        return 1

    @property
    def dealing_words(self) -> int:
        """Most words of memory at one time that dealing takes.

        Both parties' factors; later their sums, as the kernels need them, and three results.
        """
        factors = prod(self.left) + prod(self.right)
        laid_out = 0
        if self.kind is TupleKind.MATRIX_PRODUCT:
            rows, depth, columns = _matrices(self)
            laid_out = depth * (rows + columns) + rows * _TILE_COLUMNS
        elif self.kind is TupleKind.CONVOLUTION:
            # a group after the other, and all together
            laid_out = 2 * _packed(self) + _padded(self)
        return factors + max(factors, laid_out + 3 * prod(self.result))

    @property
    def work(self) -> int:
        """Ring products that take about as long as dealing; a core does 10^9 or more a second."""
        words = prod(self.left) + prod(self.right) + prod(self.result)
        products = 0
        if self.kind is TupleKind.MATRIX_PRODUCT:
            rows, depth, columns = _matrices(self)
            products = self.parts * rows * depth * columns
            words += self.parts * depth * columns
        elif self.kind is TupleKind.CONVOLUTION:
            images, _, height, width = self.result
            products = images * _packed(self) * _rounded(height * width, _TILE_COLUMNS)
            words += _packed(self) + images * self.parts * _padded(self)
        return products + _PER_WORD * words + _PER_PART * self.parts

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
            ("matrices or groups", request.parts, MAX_PARTS),
            ("words of memory to deal", request.dealing_words, MAX_TUPLE_WORDS),
            ("ring products to deal", request.work, MAX_TUPLE_WORK),
        ):
            if found > most:
                raise PlanError(f"{where} takes {found} {what}, over the limit of {most}")
    for what, found, most in (
        ("words of corrections", sum(prod(r.result) for r in requests), MAX_DEALT_WORDS),
        ("ring products", sum(r.work for r in requests), MAX_WORK),
    ):
        if found > most:
            raise PlanError(f"the plan takes {found} {what} a session, over the limit of {most}")


def _matrices(request: Request) -> tuple[int, int, int]:
    """Rows, depth and columns of each product of matrices, as the kernel rounds them up."""
    rows = prod(request.left[:-1]) if len(request.right) == 2 else request.left[-2]
    return (
        _rounded(rows, _TILE_ROWS),
        request.left[-1],
        _rounded(request.right[-1], _TILE_COLUMNS),
    )


def _packed(request: Request) -> int:
    """Words of a convolution's weights: the channels of every group rounded up."""
    channels = request.right[0] // request.parts
    return request.parts * _rounded(channels, _TILE_ROWS) * prod(request.right[1:])


def _padded(request: Request) -> int:
    """Words of one image and group, with the padding."""
    height, width = (
        size + 2 * pad for size, pad in zip(request.left[2:], request.integers[2:4], strict=True)
    )
    return request.right[1] * height * width


def _rounded(size: int, step: int) -> int:
    return -(-size // step) * step


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
