"""Operators on single elements or pairs of them, and softmax."""

from __future__ import annotations

from math import prod

import numpy as np

from radiopaque.engine.crypten.builder import Builder, Translator
from radiopaque.graph.ir import Node
from radiopaque.graph.lowering.context import NotLowered


def unary(operation: str) -> Translator:
    """An operator that is one operation of CrypTen on each element."""

    def translate(builder: Builder, node: Node) -> list[int]:
        return [builder.same(operation, builder.value(node.input(0)))]

    return translate


def pairwise(operation: str) -> Translator:
    """An operation on two tensors, or on more from the left."""

    def fold(builder: Builder, node: Node) -> list[int]:
        y, *rest = (builder.value(name) for name in node.inputs)
        for other in rest:
            y = builder.pair(operation, y, other)
        return [y]

    return fold


def div(builder: Builder, node: Node) -> list[int]:
    """A product with the reciprocal, which the model owner takes of its constants."""
    x = builder.value(node.input(0))
    divisor = builder.graph.reals(node.input(1))
    if divisor is None:
        other = builder.same("reciprocal", builder.value(node.input(1)))
    elif not np.all(divisor):
        raise NotLowered("division by zero", "repair the constant")
    else:
        other = builder.constant(1.0 / divisor, node.input(1))
    return [builder.pair("mul", x, other)]


def power(builder: Builder, node: Node) -> list[int]:
    """The exponents that CrypTen gets right."""
    exponent = builder.graph.reals(node.input(1))
    x = builder.value(node.input(0))
    if exponent is None or exponent.size != 1 or float(exponent.reshape(-1)[0]) not in (2.0, 3.0):
        raise NotLowered("CrypTen's powers are right for the exponents 2 and 3", "multiply instead")
    squared = builder.same("square", x)
    return [squared if float(exponent.reshape(-1)[0]) == 2.0 else builder.pair("mul", squared, x)]


def clip(builder: Builder, node: Node) -> list[int]:
    """Both bounds at once; one alone is a ReLU."""
    x = builder.value(node.input(0))
    bounds = []
    for position, name, fallback in ((1, "min", -np.inf), (2, "max", np.inf)):
        bound = node.real(name, fallback)
        if node.input(position):
            reals = builder.graph.reals(node.input(position))
            if reals is None or reals.size != 1:
                raise NotLowered("bounds that are no constant scalars", "use constants")
            bound = float(reals.reshape(-1)[0])
        bounds.append(bound)
    low, high = bounds
    if low > high:
        raise NotLowered(f"bounds {low} to {high} are crossed", "repair them")
    if np.isfinite(low) and np.isfinite(high):
        return [builder.add("clip", (x,), builder.shape(x), reals=(low, high))]
    if np.isfinite(low):
        above = builder.same("relu", builder.affine(x, 1.0, -low))
        return [builder.affine(above, 1.0, low)]
    if np.isfinite(high):
        below = builder.same("relu", builder.affine(x, -1.0, high))
        return [builder.affine(below, -1.0, high)]
    return [x]


def leaky_relu(builder: Builder, node: Node) -> list[int]:
    """(1 - slope) ReLU(x) + slope x."""
    x = builder.value(node.input(0))
    slope = node.real("alpha", 0.01)
    positive = builder.affine(builder.same("relu", x), 1.0 - slope)
    return [builder.pair("add", positive, builder.affine(x, slope))]


def prelu(builder: Builder, node: Node) -> list[int]:
    """The same with a secret slope."""
    x, slope = builder.value(node.input(0)), builder.value(node.input(1))
    positive = builder.same("relu", x)
    return [
        builder.pair("add", positive, builder.pair("mul", builder.pair("sub", x, positive), slope))
    ]


def hard_sigmoid(builder: Builder, node: Node) -> list[int]:
    """A line, clipped."""
    x = builder.value(node.input(0))
    y = builder.affine(x, node.real("alpha", 0.2), node.real("beta", 0.5))
    return [builder.add("clip", (y,), builder.shape(y), reals=(0.0, 1.0))]


def hard_swish(builder: Builder, node: Node) -> list[int]:
    """x times a clipped line."""
    x = builder.value(node.input(0))
    y = builder.affine(x, 1.0 / 6.0, 0.5)
    gate = builder.add("clip", (y,), builder.shape(y), reals=(0.0, 1.0))
    return [builder.pair("mul", x, gate)]


def maximum(sign: float) -> Translator:
    """max(a, b) = b + relu(a - b); the minimum is the negated maximum of the negated."""

    def extreme(builder: Builder, node: Node) -> list[int]:
        y, *rest = (builder.value(name) for name in node.inputs)
        for other in rest:
            difference = builder.pair("sub", y, other)
            if sign < 0:
                difference = builder.affine(difference, -1.0)
            excess = builder.same("relu", difference)
            y = builder.pair("add" if sign > 0 else "sub", other, excess)
        return [y]

    return extreme


def softmax(builder: Builder, node: Node) -> list[int]:
    """Along one axis; before opset 13 along all from an axis on."""
    x = builder.value(node.input(0))
    shape = builder.shape(x)
    if builder.graph.opset < 13:
        axis = node.integer("axis", 1) % len(shape)
        flat = builder.reshape(x, (prod(shape[:axis]), prod(shape[axis:])))
        return [builder.reshape(builder.add("softmax", (flat,), builder.shape(flat), (1,)), shape)]
    return [builder.add("softmax", (x,), shape, (node.integer("axis", -1) % len(shape),))]
