"""Which operations of CrypTen each ONNX operator becomes, or why it becomes none.

Source of what CrypTen computes: its release 0.4.1, ``crypten/mpc`` and ``common/functions``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from radiopaque.engine.crypten.builder import Translator
from radiopaque.engine.crypten.operators import elementwise, linear, movement, windowed

TABLE: Final[Mapping[str, Translator]] = {
    "Add": elementwise.pairwise("add"),
    "AveragePool": windowed.average_pool,
    "BatchNormalization": linear.batch_norm,
    "Clip": elementwise.clip,
    "Concat": movement.concat,
    "Conv": windowed.conv,
    "Div": elementwise.div,
    "Exp": elementwise.unary("exp"),
    "Expand": movement.expand,
    "Flatten": movement.shaped,
    "Gather": movement.gather,
    "Gemm": linear.gemm,
    "GlobalAveragePool": windowed.over_space("mean_last"),
    "GlobalMaxPool": windowed.over_space("max_last"),
    "HardSigmoid": elementwise.hard_sigmoid,
    "HardSwish": elementwise.hard_swish,
    "LayerNormalization": linear.layer_norm,
    "LeakyRelu": elementwise.leaky_relu,
    "MatMul": linear.matmul,
    "Max": elementwise.maximum(1.0),
    "MaxPool": windowed.max_pool,
    "Min": elementwise.maximum(-1.0),
    "Mul": elementwise.pairwise("mul"),
    "Neg": lambda builder, node: [builder.affine(builder.value(node.input(0)), -1.0)],
    "PRelu": elementwise.prelu,
    "Pad": movement.pad,
    "Pow": elementwise.power,
    "Reciprocal": elementwise.unary("reciprocal"),
    "ReduceMax": windowed.reduction("max_last"),
    "ReduceMean": windowed.reduction("mean_last"),
    "ReduceSum": windowed.reduction("sum_last"),
    "Relu": elementwise.unary("relu"),
    "Reshape": movement.shaped,
    "Sigmoid": elementwise.unary("sigmoid"),
    "Slice": movement.slice_,
    "Softmax": elementwise.softmax,
    "Split": movement.split,
    "Sqrt": elementwise.unary("sqrt"),
    "Squeeze": movement.shaped,
    "Sub": elementwise.pairwise("sub"),
    "Sum": elementwise.pairwise("add"),
    "Tanh": elementwise.unary("tanh"),
    "Transpose": movement.transpose,
    "Unsqueeze": movement.shaped,
}
