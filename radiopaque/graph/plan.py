"""The public plan: what is computed, in which order, with which shapes and scales.

A :class:`Plan` is a list of :class:`Step`; step ``i`` defines value ``i`` from earlier values and
applies one gate. All three parties walk the same list, each on its own half of every value:

* the data owner on the mask ``m``,
* the model owner on ``h = v - m``,
* the crypto provider on those masks that it knows.

The position of a step is the gate id of the protocol. Nothing else identifies a gate, so a plan
cannot make two gates share a stream.

Stored integers. A real ``v`` is stored as ``round(v * divisor * 2**fraction_bits)`` in
``Z_(2**ring_bits)``. The divisor makes average pooling free: a sum over 49 positions is the
average at a scale that is 49 times finer.

``limit`` is the largest absolute stored integer that a value may take, calibration margin
included. It is a promise of the compiler; :mod:`radiopaque.graph.validate` checks that every
gate's window holds what its input's limit allows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from math import prod
from typing import Literal

PLAN_FORMAT = 5
"""Version of the plan format; another number is refused. It changes with the protocol's version, so
that parties of different versions part before any material is made."""

CHUNK_BITS = 6
"""Bits that one 64-bit truth table compares."""

LABEL_BITS = 2
"""Bits that a label-only output reveals of each class: 0 or 1, and a sign."""

MAX_DIMENSION = 1 << 24
"""Largest extent of a window, channel count or column count."""

MAX_SIDE = 1 << 14
"""Longest side of a picture in pixels, of one that is read as of one that a network takes."""

MAX_PIXELS = 1 << 27
"""Most pixels of a picture that is read, most values of one that a network takes: the detectors of
mammography have 30 million pixels, scans of films up to 120 million."""

Shape = tuple[int, ...]
Task = Literal["raw", "multiclass", "multilabel"]


@dataclass(frozen=True)
class Input:
    """The image, from the data owner. No inputs."""


@dataclass(frozen=True)
class Convolution:
    """Convolution of [n, c, h, w] with secret weights [out_channels, c/groups, kh, kw].

    Zero padding; ``pads`` is (top, left, bottom, right). Source: docs/protocol.md, section 4.
    """

    out_channels: int
    kernel: tuple[int, int]
    strides: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilations: tuple[int, int] = (1, 1)
    groups: int = 1


@dataclass(frozen=True)
class MatrixProduct:
    """[..., k] times secret weights [k, columns], giving [..., columns]."""

    columns: int


@dataclass(frozen=True)
class Multiply:
    """Elementwise product with secret weights, broadcast to the input's shape."""

    weight_shape: Shape


@dataclass(frozen=True)
class AddConstant:
    """Adds a secret constant, broadcast to the input's shape; the model owner adds it."""

    constant_shape: Shape


@dataclass(frozen=True)
class Combine:
    """Sum of inputs of one shape with public integer coefficients: adds, subtracts, shifts."""

    coefficients: tuple[int, ...]


@dataclass(frozen=True)
class Reshape:
    """The same elements in row-major order under the step's shape."""


@dataclass(frozen=True)
class Transpose:
    """Axis ``i`` of the output is axis ``permutation[i]`` of the input."""

    permutation: tuple[int, ...]


@dataclass(frozen=True)
class Slice:
    """Element ``j`` of an axis is element ``start + j * stride`` of the input."""

    starts: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(frozen=True)
class Pad:
    """Surrounds the input with a public stored integer, which the model owner alone writes."""

    before: tuple[int, ...]
    after: tuple[int, ...]
    value: int = 0


@dataclass(frozen=True)
class Concatenate:
    """Inputs one after the other along an axis."""

    axis: int


@dataclass(frozen=True)
class Expand:
    """Numpy broadcasting to the step's shape."""


@dataclass(frozen=True)
class WindowSum:
    """Sums over windows of the last two axes; zero padding (top, left, bottom, right)."""

    kernel: tuple[int, int]
    strides: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilations: tuple[int, int] = (1, 1)


@dataclass(frozen=True)
class Remask:
    """Replaces a mask that the crypto provider does not know by a fresh one; free online."""


@dataclass(frozen=True)
class Truncate:
    """``y >> shift`` for |y| <= 2**(opened_bits - 2), stochastically rounded. One round trip."""

    opened_bits: int
    shift: int


@dataclass(frozen=True)
class Relu:
    """``max(y, 0) >> shift``, |y| < 2**(opened_bits - 1), stochastically rounded; 2 round trips."""

    opened_bits: int
    shift: int

    @property
    def compared_bits(self) -> int:
        """n, the bits below the top one that the comparison looks at."""
        return self.opened_bits - 1 - self.shift

    @property
    def chunks(self) -> int:
        """How many truth tables the comparison is cut into."""
        return -(-self.compared_bits // CHUNK_BITS)


@dataclass(frozen=True)
class Output:
    """Reveals ``bits`` bits of the value, from bit ``position`` up, to the data owner."""

    bits: int
    position: int


Linear = Convolution | MatrixProduct | Multiply
Gate = (
    Input
    | Convolution
    | MatrixProduct
    | Multiply
    | AddConstant
    | Combine
    | Reshape
    | Transpose
    | Slice
    | Pad
    | Concatenate
    | Expand
    | WindowSum
    | Remask
    | Truncate
    | Relu
    | Output
)

LINEAR_GATES = (Convolution, MatrixProduct, Multiply)
"""Gates with secret weights: their input mask must be known to the crypto provider."""

FRESH_GATES = (Input, Remask, Truncate, Relu)
"""Gates whose output carries a fresh mask from the data owner's streams."""


@dataclass(frozen=True)
class Step:
    """One gate applied to earlier values, and the form of the value that it defines."""

    gate: Gate
    inputs: tuple[int, ...]
    shape: Shape
    fraction_bits: int
    divisor: int = 1
    limit: int = 0

    @property
    def size(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def scale(self) -> Fraction:
        """Stored integer per real unit."""
        return Fraction(self.divisor) * (1 << self.fraction_bits)


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes the network's input; ``mean`` and ``std`` refer to pixels in 0..1.

    ``resize`` is "stretch", "fit" or "crop"; ``interpolation`` is "bilinear", "bicubic" or
    "nearest". The network's input is [n, channels, height, width].
    """

    channels: int
    height: int
    width: int
    resize: str
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True)
class IntendedUse:
    """What the model card says the model was made for; an empty field is not checked."""

    modalities: tuple[str, ...] = ()
    body_parts: tuple[str, ...] = ()
    views: tuple[str, ...] = ()
    age_years: tuple[float, float] | None = None
    statement: str = ""


@dataclass(frozen=True)
class Plan:
    """A compiled model without its weights. Public: architecture and scales are no secret."""

    ring_bits: int
    name: str
    version: str
    steps: tuple[Step, ...]
    classes: tuple[str, ...] = ()
    task: Task = "raw"
    preprocessing: Preprocessing | None = None
    intended_use: IntendedUse | None = None

    @property
    def input_step(self) -> Step:
        """The image: always step 0."""
        return self.steps[0]

    @property
    def output_step(self) -> Step:
        """The result: always the last step."""
        return self.steps[-1]

    @property
    def labels_only(self) -> bool:
        """Whether all that is revealed is, of each class, whether it applies: 1 or 0."""
        gate, value = self.output_step.gate, self.output_step
        revealed = isinstance(gate, Output) and (gate.bits, gate.position) == (LABEL_BITS, 0)
        return revealed and value.scale == 1

    @property
    def batch(self) -> int:
        """Images in one inference."""
        return self.steps[0].shape[0]

    def dealer_knows(self) -> tuple[bool, ...]:
        """For each value, is its mask made of stream masks alone (docs/protocol.md, section 2)?"""
        known: list[bool] = []
        for step in self.steps:
            if isinstance(step.gate, FRESH_GATES):
                known.append(True)
            elif isinstance(step.gate, LINEAR_GATES):
                known.append(False)
            else:
                known.append(all(known[i] for i in step.inputs))
        return tuple(known)

    def last_uses(self) -> tuple[tuple[int, ...], ...]:
        """For each step, the values that no later step reads, so that they can be freed."""
        last = {i: position for position, step in enumerate(self.steps) for i in step.inputs}
        freed: list[list[int]] = [[] for _ in self.steps]
        for value, position in last.items():
            freed[position].append(value)
        return tuple(tuple(values) for values in freed)

    def weight_shapes(self) -> Iterator[tuple[int, Shape]]:
        """(gate, shape) of the secret weights of every linear gate, in plan order."""
        for number, step in enumerate(self.steps):
            if isinstance(step.gate, LINEAR_GATES):
                yield number, weight_shape(step.gate, self.steps[step.inputs[0]].shape)

    def constant_shapes(self) -> Iterator[tuple[int, Shape]]:
        """(gate, shape) of every secret constant, in plan order."""
        for number, step in enumerate(self.steps):
            if isinstance(step.gate, AddConstant):
                yield number, step.gate.constant_shape


def weight_shape(gate: Linear, input_shape: Shape) -> Shape:
    """Shape of a linear gate's weights for an input of this shape."""
    if isinstance(gate, Convolution):
        return (gate.out_channels, input_shape[1] // gate.groups, *gate.kernel)
    if isinstance(gate, MatrixProduct):
        return (input_shape[-1], gate.columns)
    return gate.weight_shape


def plan_digest(encoded: bytes) -> bytes:
    """SHA-256 of the stored plan bytes: 32 bytes that name a plan everywhere."""
    return hashlib.sha256(encoded).digest()
