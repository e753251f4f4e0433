"""Collects the operations of a program while its operators are translated one by one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

import numpy as np
from numpy.typing import NDArray

from radiopaque.engine.crypten.program import MAX_ELEMENTS, Operation, Program
from radiopaque.graph.ir import Graph, Node
from radiopaque.graph.lowering.context import Context, NotLowered, ShapeUnknown
from radiopaque.graph.plan import Shape

LARGEST_CONSTANT = float(1 << 20)
"""In absolute value; with 16 fraction bits a product of two such is still far from 2^63."""


class Builder:
    """The program so far, and which value each ONNX tensor has become."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.context = Context(graph)
        """Shapes, constants and axes of the graph, as the compiler reads them."""
        self.operations: list[Operation] = [Operation("input", (), graph.shapes[graph.input])]
        self.constants: dict[int, NDArray[np.float32]] = {}
        self.values: dict[str, int] = {graph.input: 0}

    def shape(self, value: int) -> Shape:
        """Shape of a value."""
        return self.operations[value].shape

    def value(self, name: str) -> int:
        """A tensor that depends on the image, or a constant, which becomes a secret value.

        Raises ShapeUnknown where the tensor could not be translated, and NotLowered.
        """
        if name not in self.values:
            reals = self.graph.reals(name)
            if reals is None:
                raise ShapeUnknown(name)
            self.values[name] = self.constant(reals, name)
        return self.values[name]

    def depends(self, name: str) -> bool:
        """Whether a tensor depends on the image."""
        return name not in self.graph.constants

    def constant(self, reals: NDArray[np.float64], name: str = "") -> int:
        """A secret tensor. Raises NotLowered for values that 16 fraction bits cannot hold."""
        largest = float(np.abs(reals).max(initial=0.0))
        if not largest <= LARGEST_CONSTANT:
            raise NotLowered(
                f"constant {name!r} reaches {largest:.3g}, over {LARGEST_CONSTANT:.3g}",
                "rescale the layer",
            )
        value = self.add("constant", (), reals.shape)
        self.constants[value] = np.ascontiguousarray(reals, np.float32)
        return value

    def add(
        self,
        name: str,
        inputs: Sequence[int],
        shape: Shape,
        integers: Sequence[int] = (),
        reals: Sequence[float] = (),
    ) -> int:
        """Append an operation. Raises NotLowered for a tensor without elements or too large."""
        if not 1 <= prod(shape) <= MAX_ELEMENTS:
            raise NotLowered(
                f"a tensor of shape {list(shape)}", f"stay between 1 and {MAX_ELEMENTS} elements"
            )
        self.operations.append(
            Operation(
                name,
                tuple(inputs),
                tuple(int(size) for size in shape),
                tuple(int(value) for value in integers),
                tuple(float(value) for value in reals),
            )
        )
        return len(self.operations) - 1

    def reshape(self, value: int, shape: Shape) -> int:
        """The same elements under another shape."""
        if self.shape(value) == shape:
            return value
        if value in self.constants:
            return self.constant(self.constants[value].astype(np.float64).reshape(shape))
        return self.add("reshape", (value,), shape)

    def affine(self, value: int, factor: float, offset: float = 0.0) -> int:
        """value * factor + offset, both public."""
        return self.add("affine", (value,), self.shape(value), reals=(factor, offset))

    def pair(self, name: str, left: int, right: int) -> int:
        """An elementwise operation on two values, broadcast as in numpy."""
        shape = np.broadcast_shapes(self.shape(left), self.shape(right))
        return self.add(name, (left, right), shape)

    def same(self, name: str, value: int) -> int:
        """An elementwise operation without parameters."""
        return self.add(name, (value,), self.shape(value))

    def transpose(self, value: int, permutation: Sequence[int]) -> int:
        """Axis i of the result is axis permutation[i] of the value."""
        if list(permutation) == list(range(len(permutation))):
            return value
        shape = self.shape(value)
        return self.add("transpose", (value,), tuple(shape[i] for i in permutation), permutation)

    def finish(self, output: str) -> Program:
        """The program whose result is this tensor, without the values that it does not need."""
        wanted = self.values[output]
        needed = {0, wanted}
        for number in range(wanted, 0, -1):
            if number in needed:
                needed.update(self.operations[number].inputs)
        kept = sorted(needed)
        numbers = {old: new for new, old in enumerate(kept)}
        self.constants = {
            numbers[old]: array for old, array in self.constants.items() if old in needed
        }
        return Program(
            tuple(
                Operation(
                    operation.name,
                    tuple(numbers[i] for i in operation.inputs),
                    operation.shape,
                    operation.integers,
                    operation.reals,
                )
                for operation in (self.operations[old] for old in kept)
            )
        )


Translator = Callable[[Builder, Node], list[int]]
"""Appends the operations of one node; returns the value of each output that it has."""
