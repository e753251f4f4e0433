"""What an operator's lowering gets to work with, and how it says no."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from radiopaque.errors import InvalidWeightsError
from radiopaque.graph.draft import Draft, Reals
from radiopaque.graph.ir import Graph, Node
from radiopaque.graph.plan import Shape


class NotLowered(Exception):
    """One reason why a node cannot be compiled; collected, never seen by a caller."""

    def __init__(self, what: str, remedy: str) -> None:
        self.what = what
        self.remedy = remedy
        super().__init__(f"{what}; remedy: {remedy}")


class ShapeUnknown(Exception):
    """An input of this node could not be lowered, so nothing more can be said about the node."""


@dataclass
class Context:
    """The graph, the draft under construction, and which draft value each tensor has become."""

    graph: Graph
    draft: Draft = field(default_factory=Draft)
    values: dict[str, int] = field(default_factory=dict)

    def is_constant(self, name: str) -> bool:
        """Whether a tensor does not depend on the image."""
        return name in self.graph.constants

    def shape(self, name: str) -> Shape:
        """Static shape of a tensor. Raises ShapeUnknown."""
        shape = self.graph.shapes.get(name)
        if shape is None:
            raise ShapeUnknown(name)
        return shape

    def value(self, name: str) -> int:
        """Draft value of a tensor that depends on the image. Raises NotLowered, ShapeUnknown."""
        if self.is_constant(name):
            raise NotLowered(
                f"input {name!r} is a constant where a tensor that depends on the image is due",
                "fold the constant into its neighbours",
            )
        if name not in self.values:
            raise ShapeUnknown(name)
        return self.values[name]

    def constant(self, name: str, what: str) -> Reals:
        """A constant input as float64. Raises NotLowered where it depends on the image."""
        reals = self.graph.reals(name)
        if reals is None:
            raise NotLowered(
                f"{what} {name!r} depends on the image",
                "only constant operands are multiplied; replace the product of two tensors",
            )
        if not np.isfinite(reals).all():
            raise InvalidWeightsError(
                f"{what} {name!r} is infinite; repair the weights and export the model again"
            )
        return reals

    def integers(self, name: str, what: str) -> tuple[int, ...]:
        """A constant integer input, flat. Raises NotLowered where it depends on the image."""
        values = self.graph.integers(name)
        if values is None:
            raise NotLowered(
                f"{what} {name!r} depends on the image", "export the model with static shapes"
            )
        return values

    def axes(self, node: Node, position: int, rank: int) -> tuple[int, ...] | None:
        """Axes from the attribute (older opsets) or the input (newer), counted from the front."""
        axes = node.integers("axes")
        if axes is None and node.input(position):
            axes = self.integers(node.input(position), "axes")
        return None if axes is None else tuple(axis % rank for axis in axes)

    def only_first_output(self, node: Node, what: str) -> None:
        """Refuse a node whose further outputs are read."""
        uses = self.graph.uses()
        used = [name for name in node.outputs[1:] if name and uses[name]]
        if used:
            raise NotLowered(f"{what} ({', '.join(used)}) are used", "use the first output only")

    def broadcast(self, names: Sequence[str], shape: Shape) -> list[int]:
        """Draft values of tensors, each expanded to the common shape."""
        return [self.draft.expand(self.value(name), shape) for name in names]


Lowering = Callable[[Context, Node], int | Sequence[int]]
"""Appends the ops of one node; returns the draft value of each output that it has."""
