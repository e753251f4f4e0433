"""Which nodes of constants are computed while compiling, and what that may take.

onnx's reference evaluator computes them, whose operators take what they like for a few bytes of
file. So the list is closed: operators on numbers that hold no more than a few copies of what they
read and make, and spend one pass over it for each input. Values are counted before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import onnx
from numpy.typing import NDArray
from onnx import TensorProto

from radiopaque.graph.plan import Shape

MOST_ELEMENTS = 1 << 22
"""Of all constants that are computed, beside four times those of the file; more is refused before
memory is taken."""
PASSES = 8
"""Elements that may be read and made on the way to them, for each of those."""

FLOATS = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16)
INTEGERS = (
    *(TensorProto.INT8, TensorProto.INT16, TensorProto.INT32, TensorProto.INT64),
    *(TensorProto.UINT8, TensorProto.UINT16, TensorProto.UINT32, TensorProto.UINT64),
)
NUMBERS = frozenset((*FLOATS, *INTEGERS, TensorProto.BOOL))

SHAPES = frozenset(
    (
        *("Cast", "CastLike", "Concat", "Constant", "ConstantOfShape", "Expand", "Flatten"),
        *("Gather", "Identity", "NonZero", "Range", "Reshape", "Shape", "Size", "Slice", "Split"),
        *("Squeeze", "Tile", "Transpose", "Unsqueeze"),
    )
)
ARITHMETIC = frozenset(
    (
        *("Abs", "Add", "And", "Ceil", "Clip", "Div", "Equal", "Exp", "Floor", "Greater"),
        *("GreaterOrEqual", "Less", "LessOrEqual", "Log", "MatMul", "Max", "Mean", "Min", "Mod"),
        *("Mul", "Neg", "Not", "Or", "Pow", "Reciprocal", "ReduceL1", "ReduceL2", "ReduceMax"),
        *("ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare", "Relu", "Round"),
        *("Sign", "Sqrt", "Sub", "Sum", "Where", "Xor"),
    )
)
COMPUTED = SHAPES | ARITHMETIC
"""Operators that are computed from constants; docs/onnx-support.md lists them."""


def elements_made(
    node: onnx.NodeProto, inputs: Mapping[str, NDArray[Any]], results: Sequence[Shape | None]
) -> int | None:
    """Elements of a node's results, at most; None where that cannot be told."""
    if node.op_type == "NonZero":
        return sum(array.size * max(1, array.ndim) for array in inputs.values())
    shapes = [shape for shape in results if shape is not None]
    if len(shapes) < len(results):
        return None
    # beside an axis without elements, a long one still counts: what is made meanwhile may have it
    return sum(prod(max(1, extent) for extent in shape) for shape in shapes)


def work_of(node: onnx.NodeProto, inputs: Mapping[str, NDArray[Any]], made: int) -> int:
    """Elements that are read, and made once for each input, or multiplied."""
    if node.op_type in ("Shape", "Size"):
        return made
    passes = len(node.input) if node.op_type in ARITHMETIC else 1
    if node.op_type == "MatMul":
        passes = max(1, *inputs[node.input[0]].shape[-1:])
    return passes * made + sum(inputs[name].size for name in node.input if name)
