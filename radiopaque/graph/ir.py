"""The network as the compiler sees it before gates: named tensors of known shape, and operators.

Names are those of the ONNX file throughout, because calibrated ranges are looked up by them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from radiopaque.graph.plan import Shape

Attribute = int | float | str | tuple[Any, ...] | NDArray[Any]


@dataclass(frozen=True)
class Node:
    """One operator. An optional input that is left out is the empty string, as in ONNX."""

    op: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Attribute] = field(default_factory=dict)

    @property
    def output(self) -> str:
        """The first output; most operators have no other."""
        return self.outputs[0]

    @property
    def label(self) -> str:
        """How messages name this node: its own name, or else its output's."""
        return self.name or f"-> {self.output}"

    def input(self, position: int) -> str:
        """Name of an input, empty where it is left out."""
        return self.inputs[position] if position < len(self.inputs) else ""

    def integer(self, name: str, default: int) -> int:
        """An integer attribute."""
        value = self.attributes.get(name, default)
        return value if isinstance(value, int) else default

    def real(self, name: str, default: float) -> float:
        """A floating-point attribute."""
        value = self.attributes.get(name, default)
        return float(value) if isinstance(value, int | float) else default

    def text(self, name: str, default: str) -> str:
        """A string attribute."""
        value = self.attributes.get(name, default)
        return value if isinstance(value, str) else default

    def integers(self, name: str) -> tuple[int, ...] | None:
        """A list of integers, None where the attribute is left out."""
        value = self.attributes.get(name)
        return tuple(int(v) for v in value) if isinstance(value, tuple) else None


@dataclass(frozen=True)
class Graph:
    """Nodes in topological order. ``shapes`` lacks the tensors whose shape is not static."""

    name: str
    opset: int
    input: str
    output: str
    nodes: tuple[Node, ...]
    constants: Mapping[str, NDArray[Any]] = field(repr=False)
    shapes: Mapping[str, Shape]

    def with_nodes(self, nodes: Sequence[Node], output: str | None = None) -> Graph:
        """The same graph with other nodes and, where given, another output."""
        return replace(self, nodes=tuple(nodes), output=output or self.output)

    def reals(self, name: str) -> NDArray[np.float64] | None:
        """A constant as float64, None for a tensor that depends on the image."""
        value = self.constants.get(name)
        return None if value is None else value.astype(np.float64)

    def integers(self, name: str) -> tuple[int, ...] | None:
        """A constant as a flat tuple of integers, None for a tensor that depends on the image."""
        value = self.constants.get(name)
        return None if value is None else tuple(int(v) for v in value.reshape(-1))

    def uses(self) -> Counter[str]:
        """How often each tensor is read, the graph's output included."""
        counts = Counter(name for node in self.nodes for name in node.inputs if name)
        counts[self.output] += 1
        return counts


def rename_inputs(nodes: Sequence[Node], names: Mapping[str, str]) -> list[Node]:
    """Nodes that read ``names[x]`` where they read ``x``."""
    return [replace(n, inputs=tuple(names.get(i, i) for i in n.inputs)) for n in nodes]
