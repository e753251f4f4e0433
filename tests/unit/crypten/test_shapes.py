"""Shapes follow from shapes: what is stated otherwise, or would fill memory, is refused unrun."""

from __future__ import annotations

import pytest

from radiopaque.engine.crypten.program import Operation, Program, validate
from radiopaque.errors import PlanError
from radiopaque.graph.plan import Shape

LARGE = 1 << 26
"""Elements that a program may hold."""


def program(
    name: str, inputs: list[Shape], shape: Shape, integers: tuple[int, ...] = ()
) -> Program:
    """One operation on constants of these shapes."""
    reals = {"pad": (0.0,), "clip": (0.0, 6.0), "affine": (1.0, 0.0)}.get(name, ())
    return Program(
        (
            Operation("input", (), (1, 1)),
            *(Operation("constant", (), one) for one in inputs),
            Operation(name, tuple(range(1, len(inputs) + 1)), shape, integers, reals),
        )
    )


RIGHT: list[tuple[str, list[Shape], Shape, tuple[int, ...]]] = [
    ("relu", [(2, 3)], (2, 3), ()),
    ("add", [(2, 1, 4), (3, 1)], (2, 3, 4), ()),
    ("matmul", [(5, 2, 3), (3, 4)], (5, 2, 4), ()),
    ("softmax", [(2, 3)], (2, 3), (-1,)),
    ("sum_last", [(2, 3)], (2,), ()),
    ("reshape", [(2, 3)], (6,), ()),
    ("transpose", [(2, 3, 4)], (4, 2, 3), (2, 0, 1)),
    ("concat", [(2, 3), (2, 5)], (2, 8), (1,)),
    ("slice", [(2, 9)], (2, 3), (1, 2, 3)),
    ("take", [(2, 9)], (2, 3), (1, 8, 0, 8)),
    ("pad", [(2, 3)], (3, 6), (0, 1, 1, 2)),
    ("expand", [(3, 1)], (2, 3, 4), ()),
    ("conv", [(1, 4, 9, 9), (6, 2, 3, 3)], (1, 6, 5, 3), (2, 3, 1, 0, 1, 1, 2)),
    ("max_pool", [(1, 2, 7, 7)], (1, 2, 4, 2), (3, 2, 2, 3, 1, 0, 1, 2)),
    ("average_pool", [(1, 2, 7, 7)], (1, 2, 4, 3), (3, 3, 2, 2, 1, 0)),
]


@pytest.mark.parametrize(("name", "inputs", "shape", "integers"), RIGHT)
def test_the_shape_that_follows_is_taken_and_no_other(
    name: str, inputs: list[Shape], shape: Shape, integers: tuple[int, ...]
) -> None:
    validate(program(name, inputs, shape, integers))
    if name in ("reshape", "expand"):
        return  # their shape is a parameter
    for other in ((*shape[:-1], shape[-1] + 1), (*shape, 1)):
        with pytest.raises(PlanError, match=r"gives the shape|does not exist"):
            validate(program(name, inputs, other, integers))


WRONG: dict[str, tuple[str, list[Shape], Shape, tuple[int, ...]]] = {
    "shapes that do not pair": ("add", [(3,), (4,)], (3,), ()),
    "vectors": ("matmul", [(3,), (3,)], (1,), ()),
    "no such axis": ("softmax", [(2, 3)], (2, 3), (2,)),
    "an axis twice": ("transpose", [(2, 2)], (2, 2), (0, 0)),
    "more axes": ("transpose", [(2, 2)], (2, 2, 1), (0, 1, 2)),
    "pieces of other widths": ("concat", [(2, 3), (3, 3)], (2, 6), (1,)),
    "pieces of other ranks": ("concat", [(2, 3), (2,)], (2, 6), (1,)),
    "beyond the end": ("slice", [(2, 9)], (2, 4), (1, 1, 3)),
    "before the beginning": ("slice", [(2, 9)], (2, 3), (1, -1, 1)),
    "backwards": ("slice", [(2, 9)], (2, 3), (1, 5, -1)),
    "an index beyond the end": ("take", [(2, 9)], (2, 1), (1, 9)),
    "an index before the beginning": ("take", [(2, 9)], (2, 1), (1, -1)),
    "no indices": ("take", [(2, 9)], (2, 1), (1,)),
    "half a padding": ("pad", [(2, 3)], (2, 3), (0, 0)),
    "another size": ("reshape", [(2, 3)], (7,), ()),
    "an expansion of two": ("expand", [(2, 3)], (4, 3), ()),
    "a narrower expansion": ("expand", [(2, 3)], (3,), ()),
    "groups that do not divide": ("conv", [(1, 4, 3, 3), (3, 2, 1, 1)], (1, 3, 3, 3), (1,) * 7),
    "no groups": ("conv", [(1, 2, 3, 3), (2, 2, 1, 1)], (1, 2, 3, 3), (1, 1, 0, 0, 1, 1, 0)),
    "no stride": ("max_pool", [(1, 1, 4, 4)], (1, 1, 4, 4), (1, 1, 0, 1, 0, 0, 1, 1)),
    "negative padding": ("max_pool", [(1, 1, 4, 4)], (1, 1, 2, 2), (1, 1, 1, 1, -1, -1, 1, 1)),
    "a window larger than the image": (
        "average_pool",
        [(1, 1, 2, 2)],
        (1, 1, 1, 1),
        (3, 3, 1, 1, 0, 0),
    ),
    "an image without height": ("max_pool", [(4, 4)], (4, 4), (1, 1, 1, 1, 0, 0, 1, 1)),
    "a scalar's last axis": ("max_last", [()], (), ()),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_does_not_exist_is_refused(name: str) -> None:
    with pytest.raises(PlanError, match="does not exist on"):
        validate(program(*WRONG[name]))


FILLING: dict[str, tuple[str, list[Shape], Shape, tuple[int, ...]]] = {
    "an outer sum": ("add", [(LARGE, 1), (1, LARGE)], (LARGE, 1), ()),
    "an outer product": ("matmul", [(LARGE, 1), (1, LARGE)], (1, 1), ()),
    "a factor copied for every matrix": (
        "matmul",
        [(1, 2, 1024, 1024), (1 << 14, 1, 1024, 1)],
        (1 << 14, 2, 1024, 1),
        (),
    ),
    "the other factor copied": (
        "matmul",
        [(1 << 14, 1, 1, 1024), (1, 2, 1024, 1024)],
        (1 << 14, 2, 1, 1024),
        (),
    ),
    "a wide padding": ("pad", [(1, 1)], (1, 1), (0, 0, 0, 1 << 40)),
    "a padding that is cut away": (
        "average_pool",
        [(1, 1, 4, 4)],
        (1, 1, 1, 1),
        (1, 1, 1 << 21, 1 << 21, 1 << 20, 1 << 20),
    ),
    "a window as large as the image": (
        "max_pool",
        [(1, 1, 400, 400)],
        (1, 1, 201, 201),
        (200, 200, 1, 1, 0, 0, 1, 1),
    ),
    "a kernel as large as the image": (
        "conv",
        [(1, 1, 400, 400), (1, 1, 200, 200)],
        (1, 1, 201, 201),
        (1, 1, 0, 0, 1, 1, 1),
    ),
}


@pytest.mark.parametrize("name", FILLING)
def test_what_would_fill_memory_is_refused(name: str) -> None:
    with pytest.raises(PlanError, match=r"gives the shape|unfolds"):
        validate(program(*FILLING[name]))
