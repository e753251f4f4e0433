"""A model as the CrypTen engine runs it: a list of operations on tensors of known shape.

Operation ``i`` defines value ``i`` from earlier values; operation 0 is the image, a ``constant`` is
a secret tensor of the model owner. Nothing here is an ONNX or CrypTen name that somebody else could
choose: the table :data:`OPERATIONS` is closed, and both parties look operations up in it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import isfinite, prod
from typing import Final

from radiopaque.engine.crypten.shapes import derive
from radiopaque.errors import PlanError
from radiopaque.graph.plan import Shape

MAX_OPERATIONS: Final = 20_000
MAX_RANK: Final = 6
MAX_ELEMENTS: Final = 1 << 27
"""Of one tensor: a share of it takes 1 GiB."""
MAX_LIVE_ELEMENTS: Final = 1 << 28
"""Of the values that exist at one time, secret tensors included; of what one operation unfolds."""
MAX_INTEGERS: Final = 4096


@dataclass(frozen=True)
class Form:
    """How many inputs, integers and reals an operation takes; None: any number."""

    inputs: int | None
    integers: int | None = 0
    reals: int = 0


OPERATIONS: Final[dict[str, Form]] = {
    "input": Form(0),
    "constant": Form(0),
    "conv": Form(2, 7),  # image, weights; strides, pads, dilations of height and width; groups
    "matmul": Form(2),
    "add": Form(2),
    "sub": Form(2),
    "mul": Form(2),
    "affine": Form(1, 0, 2),  # x * first + second, both public
    "relu": Form(1),
    "clip": Form(1, 0, 2),  # lowest, highest
    "square": Form(1),
    "exp": Form(1),
    "sigmoid": Form(1),
    "tanh": Form(1),
    "sqrt": Form(1),
    "inverse_sqrt": Form(1),
    "reciprocal": Form(1),
    "softmax": Form(1, 1),  # axis
    "max_pool": Form(1, 8),  # kernel, strides, pads, dilations of height and width
    "average_pool": Form(1, 6),  # kernel, strides, pads of height and width; padding counts
    "max_last": Form(1),  # over the last axis
    "sum_last": Form(1),
    "mean_last": Form(1),
    "reshape": Form(1),
    "transpose": Form(1, None),  # permutation
    "concat": Form(None, 1),  # axis
    "slice": Form(1, 3),  # axis, start, step; the count is in the shape
    "take": Form(1, None),  # axis, then the indices
    "pad": Form(1, None, 1),  # before and after of every axis; the public value
    "expand": Form(1),
}
"""Every operation that a program may hold."""


@dataclass(frozen=True)
class Operation:
    """One entry of :data:`OPERATIONS` applied to earlier values, and the shape of its result."""

    name: str
    inputs: tuple[int, ...]
    shape: Shape
    integers: tuple[int, ...] = ()
    reals: tuple[float, ...] = ()

    @property
    def size(self) -> int:
        """Number of elements."""
        return prod(self.shape)


@dataclass(frozen=True)
class Program:
    """Operations in order; the last one's value is the result."""

    operations: tuple[Operation, ...]

    @property
    def input_shape(self) -> Shape:
        """Of the images [n, c, h, w]."""
        return self.operations[0].shape

    @property
    def output_shape(self) -> Shape:
        """Of the result."""
        return self.operations[-1].shape

    def constant_shapes(self) -> Iterator[tuple[int, Shape]]:
        """(value, shape) of every secret tensor, in order."""
        for number, operation in enumerate(self.operations):
            if operation.name == "constant":
                yield number, operation.shape

    def last_uses(self) -> list[list[int]]:
        """For each operation, the values that no later one reads."""
        last = {i: at for at, operation in enumerate(self.operations) for i in operation.inputs}
        freed: list[list[int]] = [[] for _ in self.operations]
        for value, at in last.items():
            freed[at].append(value)
        return freed


def validate(program: Program) -> None:
    """Raise PlanError for a program that no compiler here would write, before memory is taken."""
    operations = program.operations
    if not 2 <= len(operations) <= MAX_OPERATIONS:
        raise PlanError(f"a program has 2 to {MAX_OPERATIONS} operations, not {len(operations)}")
    for number, operation in enumerate(operations):
        _check(number, operation)
    if any(operation.name == "input" for operation in operations[1:]):
        raise PlanError("a program has one input, its first operation; compile the model again")
    for number, operation in enumerate(operations):
        _check_shape(number, operation, operations)
    live = live_elements(program)
    if live > MAX_LIVE_ELEMENTS:
        raise PlanError(
            f"a program holds {live} elements at one time, over the limit of {MAX_LIVE_ELEMENTS}"
        )


def live_elements(program: Program) -> int:
    """Most elements that exist at one time: all secret tensors, and what is still to be read."""
    held = sum(prod(shape) for _, shape in program.constant_shapes())
    most = live = 0
    for operation, freed in zip(program.operations, program.last_uses(), strict=True):
        live += 0 if operation.name == "constant" else operation.size
        most = max(most, live)
        for value in freed:
            earlier = program.operations[value]
            live -= 0 if earlier.name == "constant" else earlier.size
    return held + most


def unfolded_elements(program: Program) -> int:
    """Most elements that one operation makes besides its result. Raises ValueError."""
    operations = program.operations
    return max(
        derive(operation, [operations[i].shape for i in operation.inputs])[1]
        for operation in operations
        if operation.inputs
    )


def _check_shape(number: int, operation: Operation, earlier: Sequence[Operation]) -> None:
    if not operation.inputs:
        return
    where = f"operation {number} ({operation.name})"
    inputs = [earlier[value].shape for value in operation.inputs]
    try:
        shape, besides = derive(operation, inputs)
    except ValueError:
        raise PlanError(
            f"{where} does not exist on {[list(shape) for shape in inputs]}; "
            "compile the model again"
        ) from None
    if shape != operation.shape:
        raise PlanError(
            f"{where} gives the shape {list(shape)}, the program says {list(operation.shape)}; "
            "compile the model again"
        )
    if besides > MAX_LIVE_ELEMENTS:
        raise PlanError(
            f"{where} unfolds {besides} elements, over the limit of {MAX_LIVE_ELEMENTS}"
        )


def _check(number: int, operation: Operation) -> None:
    where = f"operation {number} ({operation.name})"
    form = OPERATIONS.get(operation.name)
    if form is None:
        raise PlanError(f"{where} is not known to this version; compile the model again")
    if (number == 0) != (operation.name == "input"):
        raise PlanError(f"{where}: the first operation, and no other, is the input")
    if not all(0 <= value < number for value in operation.inputs):
        raise PlanError(f"{where} reads values {list(operation.inputs)}, which are not before it")
    wrong = (
        (form.inputs is None and not operation.inputs)
        or (form.inputs is not None and len(operation.inputs) != form.inputs)
        or (form.integers is not None and len(operation.integers) != form.integers)
        or len(operation.integers) > MAX_INTEGERS
        or len(operation.reals) != form.reals
        or not all(isfinite(value) for value in operation.reals)
    )
    if wrong:
        raise PlanError(f"{where} has the wrong number of inputs or parameters")
    shape = operation.shape
    if len(shape) > MAX_RANK or not all(1 <= size <= MAX_ELEMENTS for size in shape):
        raise PlanError(f"{where} has the shape {list(shape)}, which is no tensor's")
    if operation.size > MAX_ELEMENTS:
        raise PlanError(f"{where} has {operation.size} elements, over {MAX_ELEMENTS}")
