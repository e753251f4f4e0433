"""Tuples: the two halves make up what CrypTen needs, and each alone is uniform."""

from __future__ import annotations

import itertools
from functools import partial

import numpy as np
import pytest
from numpy.typing import NDArray

from radiopaque.engine.artefact import ArtefactId
from radiopaque.engine.crypten import dealing
from radiopaque.engine.crypten.dealing import correction, deal
from radiopaque.engine.crypten.plan import CryptenPlan
from radiopaque.engine.crypten.program import Operation, Program
from radiopaque.engine.crypten.tuples import (
    Halves,
    Request,
    TupleKind,
    data_owner_half,
    model_owner_half,
    validate,
)
from radiopaque.engine.material import RegionReader, regions
from radiopaque.errors import (
    ConnectionLostError,
    MessageOrderError,
    MessageSizeError,
    PlanError,
)
from radiopaque.prg import SecretKey, Streams
from radiopaque.wire.frames import Kind
from tests.protocol.chisquare import THRESHOLD, uniform

SESSION, DIGEST = bytes(range(16)), bytes(range(32))
BINARY = (TupleKind.CONJUNCTION, TupleKind.BIT)

REQUESTS = {
    "product": Request(TupleKind.PRODUCT, (2, 3, 4), (2, 3, 4)),
    "product_broadcast": Request(TupleKind.PRODUCT, (2, 3, 4), (3, 1)),
    "product_scalar": Request(TupleKind.PRODUCT, (2, 3), ()),
    "matrix_product": Request(TupleKind.MATRIX_PRODUCT, (5, 7), (7, 3)),
    "matrix_product_batch": Request(TupleKind.MATRIX_PRODUCT, (4, 5, 7), (4, 7, 3)),
    "matrix_product_broadcast": Request(TupleKind.MATRIX_PRODUCT, (2, 1, 5, 7), (3, 7, 2)),
    "convolution": Request(
        TupleKind.CONVOLUTION, (2, 4, 9, 8), (6, 2, 3, 3), (2, 1, 1, 0, 1, 2, 2)
    ),
    "square": Request(TupleKind.SQUARE, (3, 5)),
    "conjunction": Request(TupleKind.CONJUNCTION, (2, 3, 5), (2, 3, 5)),
    "bit": Request(TupleKind.BIT, (4, 9)),
}


def streams(role: str, key: int = 0) -> Streams:
    secret = SecretKey(bytes([key + (1 if role == "data-owner" else 2)]) * 32)
    return Streams(secret, DIGEST, SESSION, role)  # type: ignore[arg-type]


def halves(request: Request, number: int = 3, key: int = 0) -> tuple[Halves, Halves]:
    clinic, vendor = streams("data-owner", key), streams("model-owner", key)
    dealt = correction(request, number, clinic, vendor)
    assert dealt.shape == request.result
    assert dealt.nbytes == request.correction_bytes
    data = bytearray(np.ascontiguousarray(dealt).tobytes())
    return (
        data_owner_half(request, number, clinic),
        model_owner_half(request, number, vendor, data),
    )


def joined(one: NDArray[np.uint64], other: NDArray[np.uint64], binary: bool) -> np.ndarray:
    return one ^ other if binary else one + other


def convolved(a: NDArray[np.uint64], b: NDArray[np.uint64], request: Request) -> np.ndarray:
    """A convolution, term by term."""
    sy, sx, py, px, dy, dx, groups = request.integers
    padded = np.pad(a, ((0, 0), (0, 0), (py, py), (px, px)))
    out = np.zeros(request.result, np.uint64)
    inputs, outputs = b.shape[1], b.shape[0] // groups
    for n, o, y, x in np.ndindex(*out.shape):
        first = o // outputs * inputs
        window = padded[
            n,
            first : first + inputs,
            y * sy : y * sy + (b.shape[2] - 1) * dy + 1 : dy,
            x * sx : x * sx + (b.shape[3] - 1) * dx + 1 : dx,
        ]
        out[n, o, y, x] = (window * b[o]).sum(dtype=np.uint64)
    return out


def expected(request: Request, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    match request.kind:
        case TupleKind.PRODUCT:
            return a * b
        case TupleKind.MATRIX_PRODUCT:
            return np.einsum("...ij,...jk->...ik", a, b)
        case TupleKind.CONVOLUTION:
            return convolved(a, b, request)
        case TupleKind.SQUARE:
            return a * a
        case TupleKind.CONJUNCTION:
            return a & b
        case _:
            return a


@pytest.mark.parametrize("name", REQUESTS)
def test_the_halves_make_up_the_tuple(name: str) -> None:
    request = REQUESTS[name]
    clinic, vendor = halves(request)
    binary = request.kind in BINARY
    a = joined(clinic.a, vendor.a, binary)
    b = np.zeros(0, np.uint64)
    if clinic.b is not None:
        assert vendor.b is not None
        b = joined(clinic.b, vendor.b, binary)
    c = joined(clinic.c, vendor.c, request.kind is TupleKind.CONJUNCTION)
    assert (c == expected(request, a, b)).all()
    if request.kind is TupleKind.BIT:
        assert set(np.unique(a)) == {0, 1}


@pytest.mark.parametrize("kind", TupleKind)
def test_what_the_model_owner_is_sent_is_uniform(kind: TupleKind) -> None:
    """Also for bits and conjunctions, whose values are not."""
    size = (4096,)
    request = Request(kind, size, () if kind in (TupleKind.SQUARE, TupleKind.BIT) else size)
    if kind is TupleKind.MATRIX_PRODUCT:
        request = Request(kind, (64, 3), (3, 64))
    if kind is TupleKind.CONVOLUTION:
        request = Request(kind, (1, 2, 32, 32), (4, 2, 3, 3), (1, 1, 1, 1, 1, 1, 1))
    dealt = correction(request, 0, streams("data-owner"), streams("model-owner"))
    assert dealt.size == 4096
    assert min(uniform(dealt.reshape(-1), 64)) > THRESHOLD


def test_no_two_tuples_share_a_word() -> None:
    """Same shapes, other numbers: every part is another stream."""
    request = REQUESTS["product"]
    parts = [
        part.tobytes()
        for number in range(3)
        for half in halves(request, number)
        for part in (half.a, half.b, half.c)
        if part is not None
    ]
    assert len(set(parts)) == len(parts) == 18


def test_the_data_owner_needs_nobody_and_the_model_owner_the_dealer() -> None:
    """The clinic's half is the same whatever the vendor's key; the vendor's last part is not."""
    request = REQUESTS["product"]
    clinic = data_owner_half(request, 3, streams("data-owner"))
    again, vendor = halves(request)
    assert (clinic.c == again.c).all()
    other = correction(request, 3, streams("data-owner"), streams("model-owner", 7))
    assert (vendor.c != other).any()


@pytest.mark.parametrize("size", [0, 8, REQUESTS["product"].correction_bytes + 8])
def test_a_correction_of_another_length_is_refused(size: int) -> None:
    with pytest.raises(MessageSizeError):
        model_owner_half(REQUESTS["product"], 3, streams("model-owner"), bytearray(size))


BAD = {
    "no size": Request(TupleKind.SQUARE, (3, 0)),
    "many axes": Request(TupleKind.SQUARE, (1,) * 9),
    "two factors of a square": Request(TupleKind.SQUARE, (3,), (3,)),
    "factors that do not fit": Request(TupleKind.PRODUCT, (3,), (4,)),
    "matrices that do not fit": Request(TupleKind.MATRIX_PRODUCT, (3, 4), (3, 4)),
    "a vector as a matrix": Request(TupleKind.MATRIX_PRODUCT, (3,), (3, 4)),
    "parameters of a product": Request(TupleKind.PRODUCT, (3,), (3,), (1,)),
    "no parameters": Request(TupleKind.CONVOLUTION, (1, 1, 4, 4), (1, 1, 3, 3)),
    "stride zero": Request(
        TupleKind.CONVOLUTION, (1, 1, 4, 4), (1, 1, 3, 3), (0, 1, 0, 0, 1, 1, 1)
    ),
    "no group": Request(TupleKind.CONVOLUTION, (1, 1, 4, 4), (1, 1, 3, 3), (1, 1, 0, 0, 1, 1, 0)),
    "a kernel too large": Request(
        TupleKind.CONVOLUTION, (1, 1, 4, 4), (1, 1, 5, 5), (1, 1, 0, 0, 1, 1, 1)
    ),
    "channels that do not fit": Request(
        TupleKind.CONVOLUTION, (1, 2, 4, 4), (1, 1, 3, 3), (1, 1, 0, 0, 1, 1, 1)
    ),
    "a gigantic tensor": Request(TupleKind.SQUARE, (1 << 20, 1 << 20)),
    "a gigantic result": Request(TupleKind.PRODUCT, (1 << 20, 1), (1, 1 << 20)),
    "a gigantic padding": Request(
        TupleKind.CONVOLUTION,
        (1, 1, 4, 4),
        (1, 1, 3, 3),
        (1, 1, 1 << 26, 1 << 26, 1, 1, 1),
    ),
}


BAD_TOGETHER = {
    "words of corrections": Request(TupleKind.SQUARE, (1 << 26,)),
    "ring products": Request(TupleKind.MATRIX_PRODUCT, (1 << 11, 1 << 13), (1 << 13, 1 << 11)),
}


GROUPS, MANY = 1 << 15, 1 << 17
"""Of a tuple: as many as fit, and more."""


def grouped(groups: int, depth: int, side: int) -> Request:
    """A convolution of so many groups, each of ``depth`` channels, to one pixel."""
    image, kernels = (1, depth * groups, side, side), (groups, depth, side, side)
    return Request(TupleKind.CONVOLUTION, image, kernels, (1, 1, 0, 0, 1, 1, groups))


TOO_MUCH = {
    "a matrix product of hours": (
        Request(TupleKind.MATRIX_PRODUCT, (1 << 12, 1 << 14), (1, 1 << 14, 1 << 12)),
        "ring products to deal",
    ),
    "a matrix that is laid out for every vector": (
        Request(TupleKind.MATRIX_PRODUCT, (1 << 10, 1, 1 << 12), (1, 1 << 12, 1 << 12)),
        "ring products to deal",
    ),
    "paddings": (
        Request(
            TupleKind.CONVOLUTION,
            (1 << 10, 1, 1, 1),
            (1, 1, 2, 2),
            (1 << 14, 1 << 14, 1 << 12, 1 << 12, 1 << 12, 1 << 12, 1),
        ),
        "ring products to deal",
    ),
    "groups": (grouped(MANY, 2, 1), "matrices or groups"),
    "matrices": (
        Request(TupleKind.MATRIX_PRODUCT, (MANY, 1, 1), (MANY, 1, 1)),
        "matrices or groups",
    ),
    "products": (Request(TupleKind.PRODUCT, (1 << 27,), (1 << 27,)), "words of memory"),
    "a vector that fills panels": (
        Request(TupleKind.MATRIX_PRODUCT, (1, 1 << 26), (1 << 26, 1)),
        "words of memory",
    ),
    "a column whose edge fills panels": (
        Request(TupleKind.MATRIX_PRODUCT, (1 << 25, 1), (1, 1)),
        "words of memory",
    ),
    "groups that fill tiles": (grouped(GROUPS, 256, 2), "words of memory"),
    "a padding": (
        Request(
            TupleKind.CONVOLUTION,
            (1, 64, 1, 1),
            (1, 64, 2, 2),
            (1 << 13, 1 << 13, 1 << 12, 1 << 12, 1 << 12, 1 << 12, 1),
        ),
        "words of memory",
    ),
}


@pytest.mark.parametrize("name", TOO_MUCH)
def test_tuples_that_would_stop_whoever_deals_are_refused(name: str) -> None:
    request, reason = TOO_MUCH[name]
    with pytest.raises(PlanError, match=reason):
        validate((request,))


LAYERS = {
    "VGG-16, its first dense layer": Request(
        TupleKind.MATRIX_PRODUCT, (1, 25_088), (25_088, 4_096)
    ),
    "a U-Net's layer at 1024 pixels": Request(
        TupleKind.CONVOLUTION,
        (1, 64, 1024, 1024),
        (64, 64, 3, 3),
        (1, 1, 1, 1, 1, 1, 1),
    ),
    "the comparison of ResNet-18's first layer, four images": Request(
        TupleKind.CONJUNCTION, (2, 4, 64, 112, 112), (2, 4, 64, 112, 112)
    ),
    "attention of ViT-B/16": Request(TupleKind.MATRIX_PRODUCT, (1, 12, 197, 64), (1, 12, 64, 197)),
    "attention of a window transformer": Request(
        TupleKind.MATRIX_PRODUCT, (4_096, 4, 49, 32), (4_096, 4, 32, 49)
    ),
    "a depthwise layer": Request(
        TupleKind.CONVOLUTION, (1, 1152, 7, 7), (1152, 1, 5, 5), (1, 1, 2, 2, 1, 1, 1152)
    ),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers_of_real_networks_are_not(name: str) -> None:
    validate((LAYERS[name],) * 10)


@pytest.mark.parametrize(
    ("name", "rows"), [("matrix_product", 50), ("matrix_product_batch", 50), ("convolution", 1000)]
)
def test_dealing_in_pieces_gives_the_same(
    name: str, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One row, some or all in a piece; between any two it is asked whether anybody waits."""
    request = REQUESTS[name]
    whole = correction(request, 0, streams("data-owner"), streams("model-owner"))
    looks = []
    for piece in (1, rows, 1 << 20):
        monkeypatch.setattr(dealing, "PIECE", piece)
        asked = itertools.count()
        clinic, vendor = streams("data-owner"), streams("model-owner")
        found = correction(request, 0, clinic, vendor, partial(next, asked))
        assert (found == whole).all()
        looks.append(next(asked))
    assert looks[0] > looks[1] > looks[2] > 0


@pytest.mark.parametrize("name", ["matrix_product", "matrix_product_batch", "convolution"])
def test_dealing_ends_where_nobody_waits(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dealing, "PIECE", 1)
    looks = iter(range(100))

    def check() -> None:
        if next(looks) == 2:
            raise ConnectionLostError("nobody waits")

    with pytest.raises(ConnectionLostError):
        correction(REQUESTS[name], 0, streams("data-owner"), streams("model-owner"), check)
    assert next(looks) == 3


@pytest.mark.parametrize("what", BAD_TOGETHER)
def test_plans_that_nobody_could_deal_are_refused(what: str) -> None:
    validate((BAD_TOGETHER[what],))
    with pytest.raises(PlanError, match=what):
        validate((BAD_TOGETHER[what],) * 200)


@pytest.mark.parametrize("name", BAD)
def test_requests_that_no_compiler_writes_are_refused(name: str) -> None:
    with pytest.raises(PlanError):
        validate((BAD[name],))


def test_good_requests_are_not() -> None:
    validate(tuple(REQUESTS.values()))


def test_dealing_gives_the_frames_that_the_model_owner_expects() -> None:
    """In the plan's order, one region a tuple, and no others."""
    program = Program((Operation("input", (), (1, 1)), Operation("relu", (0,), (1, 1))))
    plan = CryptenPlan("model", "1", program, tuple(REQUESTS.values()))
    keys = SecretKey(bytes([1]) * 32), SecretKey(bytes([2]) * 32)
    frames = list(deal(plan, ArtefactId(DIGEST, bytes(16)), SESSION, *keys))
    reader = RegionReader(plan, SESSION, Kind.CORRECTION)
    found = dict(regions(plan, Kind.CORRECTION, (reader.accept(frame) for frame in frames)))
    reader.finish()
    for number, request in enumerate(plan.requests):
        dealt = correction(request, number, streams("data-owner"), streams("model-owner"))
        assert found[number].tobytes() == np.ascontiguousarray(dealt).tobytes()
    with pytest.raises(MessageOrderError):
        reader.accept(frames[0])
    assert plan.cost().correction_bytes == sum(region.size for region in found.values())
