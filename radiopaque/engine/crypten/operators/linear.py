"""Matrix products and normalisations."""

from __future__ import annotations

from math import prod

import numpy as np

from radiopaque.engine.crypten.builder import Builder
from radiopaque.graph.ir import Node
from radiopaque.graph.lowering.context import NotLowered


def gemm(builder: Builder, node: Node) -> list[int]:
    """A constant factor takes its transposition and alpha, the summand takes beta."""
    sides = []
    for position, flag in ((0, "transA"), (1, "transB")):
        name = node.input(position)
        reals = builder.graph.reals(name)
        if reals is not None:
            matrix = reals.T if node.integer(flag, 0) else reals
            scale = node.real("alpha", 1.0) if position == 1 else 1.0
            sides.append(builder.constant(matrix * scale, name))
        else:
            value = builder.value(name)
            sides.append(builder.transpose(value, (1, 0)) if node.integer(flag, 0) else value)
    left, right = (builder.shape(side) for side in sides)
    y = builder.add("matmul", sides, (left[0], right[1]))
    if builder.depends(node.input(1)) and node.real("alpha", 1.0) != 1.0:
        y = builder.affine(y, node.real("alpha", 1.0))
    if node.input(2):
        summand, beta = builder.graph.reals(node.input(2)), node.real("beta", 1.0)
        if summand is not None:
            y = builder.pair("add", y, builder.constant(summand * beta, node.input(2)))
        else:
            y = builder.pair("add", y, builder.affine(builder.value(node.input(2)), beta))
    return [y]


def matmul(builder: Builder, node: Node) -> list[int]:
    """Matrix product of two tensors, either or both of which may depend on the image."""
    sides = [builder.value(name) for name in node.inputs]
    left, right = (builder.shape(side) for side in sides)
    if min(len(left), len(right)) < 2:
        raise NotLowered("a vector as a factor", "reshape it to a matrix")
    batch = np.broadcast_shapes(left[:-2], right[:-2])
    return [builder.add("matmul", sides, (*batch, left[-2], right[-1]))]


def batch_norm(builder: Builder, node: Node) -> list[int]:
    """Folded into a convolution that nothing else reads, else a factor and a summand a channel."""
    if node.integer("training_mode", 0):
        raise NotLowered("training mode", "export the model after model.eval()")
    names = ("scale", "bias", "mean", "variance")
    scale, bias, mean, variance = (
        builder.context.constant(node.input(i + 1), name) for i, name in enumerate(names)
    )
    factor = scale / np.sqrt(variance + node.real("epsilon", 1e-5))
    summand = bias - mean * factor
    x = builder.value(node.input(0))
    operation = builder.operations[x]
    offset = np.zeros_like(factor)
    conv = x
    if operation.name == "add" and operation.inputs[1] in builder.constants:
        conv = operation.inputs[0]
        if builder.operations[conv].name == "conv":
            added = builder.constants[operation.inputs[1]]
            offset = added.astype(np.float64).reshape(-1)
    folds = builder.operations[conv].name == "conv" and offset.shape == factor.shape
    if folds and builder.graph.uses()[node.input(0)] == 1:
        image, kernel = builder.operations[conv].inputs
        if kernel in builder.constants:
            weights = builder.constants[kernel].astype(np.float64)
            scaled = builder.constant(weights * factor[:, None, None, None], node.input(1))
            old = builder.operations[conv]
            y = builder.add("conv", (image, scaled), old.shape, old.integers)
            total = (offset * factor + summand).reshape(1, -1, 1, 1)
            return [builder.pair("add", y, builder.constant(total, node.input(2)))]
    wide = (1, -1, *(1,) * (len(builder.shape(x)) - 2))
    y = builder.pair("mul", x, builder.constant(factor.reshape(wide), node.input(1)))
    return [builder.pair("add", y, builder.constant(summand.reshape(wide), node.input(2)))]


def layer_norm(builder: Builder, node: Node) -> list[int]:
    """LayerNormalization, with CrypTen's inverse square root."""
    x = builder.value(node.input(0))
    shape = builder.shape(x)
    axis = node.integer("axis", -1) % len(shape)
    flat = builder.reshape(x, (*shape[:axis], prod(shape[axis:])))
    rows = shape[:axis]
    mean = builder.reshape(builder.add("mean_last", (flat,), rows), (*rows, 1))
    centred = builder.pair("sub", flat, mean)
    variance = builder.add("mean_last", (builder.same("square", centred),), rows)
    inverse = builder.same(
        "inverse_sqrt", builder.affine(variance, 1.0, node.real("epsilon", 1e-5))
    )
    y = builder.pair("mul", centred, builder.reshape(inverse, (*rows, 1)))
    y = builder.pair("mul", builder.reshape(y, shape), builder.value(node.input(1)))
    if node.input(2):
        y = builder.pair("add", y, builder.value(node.input(2)))
    return [y]
