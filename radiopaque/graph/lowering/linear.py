"""Operators with weights: Conv, Gemm, MatMul, BatchNormalization, Mul and Div by constants."""

from __future__ import annotations

import numpy as np

from radiopaque.graph import plan as p
from radiopaque.graph.draft import Reals
from radiopaque.graph.ir import Node
from radiopaque.graph.lowering.context import Context, NotLowered
from radiopaque.graph.lowering.windows import UNIT, windows

NO_PRODUCTS = "only products with constants are computed; replace the product of two tensors"


def convolution(context: Context, node: Node) -> int:
    """Conv in one or two dimensions; one dimension is two with height 1."""
    draft = context.draft
    x = context.value(node.input(0))
    weights = context.constant(node.input(1), "the weight")
    shape, out_shape = context.shape(node.input(0)), context.shape(node.output)
    if len(shape) not in (3, 4):
        raise NotLowered(
            f"convolution of {len(shape) - 2} spatial dimensions",
            "one and two dimensions are supported; slice the volume",
        )
    spatial = windows(node, shape[2:], out_shape[2:], weights.shape[2:])
    if len(shape) == 3:
        spatial.insert(0, UNIT)
        weights = weights[:, :, np.newaxis, :]
        x = draft.reshape(x, (shape[0], shape[1], 1, shape[2]))
    height, width = spatial
    gate = p.Convolution(
        out_channels=weights.shape[0],
        kernel=(height.kernel, width.kernel),
        strides=(height.stride, width.stride),
        pads=(height.begin, width.begin, height.end, width.end),
        dilations=(height.dilation, width.dilation),
        groups=node.integer("group", 1),
    )
    y = draft.linear(x, gate, weights, (shape[0], weights.shape[0], height.count, width.count))
    if node.input(2):
        bias = context.constant(node.input(2), "the bias")
        y = draft.add_constant(y, bias.reshape(-1, 1, 1))
    return draft.reshape(y, out_shape)


def gemm(context: Context, node: Node) -> int:
    """alpha A' B' + beta C with one of A, B constant."""
    draft = context.draft
    names = node.input(0), node.input(1)
    transposed = [node.integer("transA", 0) == 1, node.integer("transB", 0) == 1]
    alpha, beta = node.real("alpha", 1.0), node.real("beta", 1.0)
    if not any(context.is_constant(name) for name in names):
        raise NotLowered("both factors depend on the image", NO_PRODUCTS)
    flipped = context.is_constant(names[0])
    position = 1 if flipped else 0
    # A constant left factor: y' = x' A' with everything transposed.
    x = context.value(names[position])
    weights = alpha * context.constant(names[1 - position], "the factor")
    if transposed[position] != flipped:
        x = draft.transpose(x, (1, 0))
    if transposed[1 - position] != flipped:
        weights = weights.T
    y = _matrix_product(context, x, weights)
    if flipped:
        y = draft.transpose(y, (1, 0))
    if not node.input(2) or beta == 0:
        return y
    if context.is_constant(node.input(2)):
        return draft.add_constant(y, beta * context.constant(node.input(2), "the bias"))
    if beta != 1:
        raise NotLowered(
            f"the summand depends on the image and beta is {beta}", "use Gemm and Add with beta 1"
        )
    return draft.combine([y, *context.broadcast([node.input(2)], draft.shape(y))], [1, 1])


def _matrix_product(context: Context, x: int, weights: Reals) -> int:
    shape = context.draft.shape(x)
    gate = p.MatrixProduct(weights.shape[1])
    return context.draft.linear(x, gate, weights, (*shape[:-1], weights.shape[1]))


def matmul(context: Context, node: Node) -> int:
    """MatMul with one constant factor, which may not differ along batch axes."""
    draft = context.draft
    left = context.is_constant(node.input(0))
    if not left and not context.is_constant(node.input(1)):
        raise NotLowered("both factors depend on the image", NO_PRODUCTS)
    x = context.value(node.input(1 if left else 0))
    weights = context.constant(node.input(0 if left else 1), "the factor")
    if weights.ndim > 2:
        if any(size != 1 for size in weights.shape[:-2]):
            raise NotLowered(
                f"the constant factor {list(weights.shape)} has batch dimensions",
                "use one MatMul for each, or a grouped Conv",
            )
        weights = weights.reshape(weights.shape[-2:])
    if weights.ndim == 1:
        weights = weights[np.newaxis, :] if left else weights[:, np.newaxis]
    if left:
        weights = weights.T
    rank = len(draft.shape(x))
    turned = (*range(rank - 2), rank - 1, rank - 2)
    if left and rank > 1:
        x = draft.transpose(x, turned)
    y = _matrix_product(context, x, weights)
    if left and rank > 1:
        y = draft.transpose(y, turned)
    return draft.reshape(y, context.shape(node.output))


def batch_normalisation(context: Context, node: Node) -> int:
    """A factor and a summand for each channel, to be folded into the convolution before it."""
    if node.integer("training_mode", 0):
        raise NotLowered("batch norm in training mode", "export the model after model.eval()")
    context.only_first_output(node, "the running statistics")
    scale, bias, mean, variance = (
        context.constant(node.input(position), "the parameter") for position in range(1, 5)
    )
    epsilon = node.real("epsilon", 1e-5)
    if (variance + epsilon <= 0).any():
        raise NotLowered("a variance is negative", "repair the statistics of the batch norm")
    factor = scale / np.sqrt(variance + epsilon)
    x = context.value(node.input(0))
    channels = (-1, *(1,) * (len(context.shape(node.input(0))) - 2))
    y = context.draft.multiply(x, factor.reshape(channels))
    return context.draft.add_constant(y, (bias - mean * factor).reshape(channels))


def multiplication(context: Context, node: Node) -> int:
    """Mul by a constant."""
    constant, value = node.input(0), node.input(1)
    if not context.is_constant(constant):
        constant, value = value, constant
    if not context.is_constant(constant):
        raise NotLowered("both factors depend on the image", NO_PRODUCTS)
    return _multiply(context, node, value, context.constant(constant, "the factor"))


def division(context: Context, node: Node) -> int:
    """Div by a constant."""
    divisor = context.graph.reals(node.input(1))
    if divisor is None:
        raise NotLowered("the divisor depends on the image", "divide by constants only")
    if not divisor.all():
        raise NotLowered("the divisor is zero", "repair the constant")
    return _multiply(context, node, node.input(0), 1 / divisor)


def _multiply(context: Context, node: Node, name: str, factor: Reals) -> int:
    x = context.draft.expand(context.value(name), context.shape(node.output))
    return context.draft.multiply(x, factor)
