"""From the ONNX graph to the draft, collecting every reason why a node cannot be compiled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from radiopaque.errors import UnsupportedModelError
from radiopaque.graph.draft import Draft, Result, Source
from radiopaque.graph.ir import Graph, Node
from radiopaque.graph.lowering import elementwise, linear, movement, pooling
from radiopaque.graph.lowering.context import Context, Lowering, NotLowered, ShapeUnknown

OPERATORS: Mapping[str, Lowering] = {
    "Add": elementwise.total,
    "AveragePool": pooling.average_pool,
    "BatchNormalization": linear.batch_normalisation,
    "Clip": elementwise.clip,
    "Concat": movement.concatenate,
    "Conv": linear.convolution,
    "Div": linear.division,
    "Expand": movement.expand,
    "Flatten": movement.reshape,
    "Gather": movement.gather,
    "Gemm": linear.gemm,
    "GlobalAveragePool": pooling.global_average_pool,
    "GlobalMaxPool": pooling.global_max_pool,
    "LeakyRelu": elementwise.leaky_relu,
    "MatMul": linear.matmul,
    "Max": elementwise.maximum,
    "MaxPool": pooling.max_pool,
    "Min": elementwise.minimum,
    "Mul": linear.multiplication,
    "Neg": elementwise.negation,
    "PRelu": elementwise.prelu,
    "Pad": movement.pad,
    "ReduceMax": pooling.reduce_max,
    "ReduceMean": pooling.reduce_mean,
    "ReduceSum": pooling.reduce_sum,
    "Relu": elementwise.relu,
    "Reshape": movement.reshape,
    "Slice": movement.slice_,
    "Split": movement.split,
    "Squeeze": movement.reshape,
    "Sub": elementwise.difference,
    "Sum": elementwise.total,
    "Transpose": movement.transpose,
    "Unsqueeze": movement.reshape,
}
"""Every operator that may depend on the image; constants.py has those of constants alone.

Besides these, Identity, Dropout and Cast between floating-point types disappear, and Softmax,
LogSoftmax and Sigmoid are taken off the output."""

SMOOTH = "smooth activations are not computed; replace it by Relu and retrain"
REMEDIES: Mapping[str, str] = {
    "ArgMax": "leave it out: the data owner takes the argmax of the opened scores",
    "Cast": "keep floating-point tensors floating-point",
    "ConvTranspose": "use nearest-neighbour upsampling by Expand and a Conv",
    "Dropout": "export the model after model.eval()",
    "Elu": SMOOTH,
    "Erf": SMOOTH,
    "Exp": SMOOTH,
    "Gelu": SMOOTH,
    "HardSigmoid": "write it as Mul, Add and Clip",
    "HardSwish": SMOOTH,
    "InstanceNormalization": "use BatchNormalization and retrain",
    "LayerNormalization": "use BatchNormalization and retrain",
    "LogSoftmax": "it is taken off the output, where the data owner applies it, and nowhere else",
    "Mish": SMOOTH,
    "Selu": SMOOTH,
    "Sigmoid": "it is taken off the output, where the data owner applies it; inside, use Relu",
    "Softmax": "it is taken off the output, where the data owner applies it, and nowhere else",
    "Softplus": SMOOTH,
    "Tanh": SMOOTH,
}
DEFAULT_REMEDY = "replace it by supported operators, listed in docs/onnx-support.md"


@dataclass(frozen=True)
class Lowered:
    """The draft as far as it goes, and every problem met."""

    draft: Draft
    problems: tuple[str, ...]


def lower(graph: Graph) -> Lowered:
    """Lower every node; a node with a problem leaves its outputs unknown and the others go on."""
    context = Context(graph)
    problems: list[str] = []
    shape = graph.shapes.get(graph.input)
    if shape is not None:
        context.values[graph.input] = context.draft.add(Source(), [], shape, graph.input)
    for node in graph.nodes:
        try:
            _lower_node(context, node)
        except NotLowered as reason:
            problems.append(f"node {node.label} ({node.op}): {reason}")
            _substitute(context, node)
        except ShapeUnknown:
            continue
        except (ArithmeticError, LookupError, TypeError, ValueError) as error:
            # what the checker of ONNX lets through: parameters of other shapes or types than due
            problems.append(
                f"node {node.label} ({node.op}): its inputs and attributes do not fit together "
                f"({type(error).__name__}: {error}); remedy: check the model with "
                "onnx.checker.check_model(model, full_check=True)"
            )
            _substitute(context, node)
    if graph.output in context.values:
        last = context.values[graph.output]
        context.draft.add(Result(), [last], context.draft.shape(last))
    return Lowered(context.draft, tuple(problems))


def _lower_node(context: Context, node: Node) -> None:
    lowering = OPERATORS.get(node.op)
    if lowering is None:
        remedy = REMEDIES.get(node.op, DEFAULT_REMEDY)
        raise NotLowered("the operator is not supported", remedy)
    empty = [name for name in node.outputs if 0 in context.graph.shapes.get(name, ())]
    if empty:
        raise NotLowered(f"tensor {empty[0]!r} has no elements", "leave the empty tensor out")
    context.draft.origin = node.output
    result = lowering(context, node)
    values = [result] if isinstance(result, int) else list(result)
    for name, value in zip(node.outputs, values, strict=False):
        expected = context.graph.shapes.get(name)
        if expected is not None and context.draft.shape(value) != expected:
            raise NotLowered(
                f"gives {list(context.draft.shape(value))} where {list(expected)} is due",
                "check the model with onnx.shape_inference",
            )
        context.draft.name(value, name)
        context.values[name] = value


def _substitute(context: Context, node: Node) -> None:
    """Stand-ins for the outputs of a node with a problem, so that later nodes are checked too."""
    for name in node.outputs:
        shape = context.graph.shapes.get(name)
        if name and shape is not None and name not in context.values:
            context.values[name] = context.draft.add(Source(), [], shape, name)


def validate_support(graph: Graph, problems: tuple[str, ...] = ()) -> Draft:
    """The draft of a graph that can be compiled.

    ``problems`` are those met earlier. Raises UnsupportedModelError with every problem at once:
    node, operator, what it is and what to do.
    """
    lowered = lower(graph)
    found = (*problems, *lowered.problems)
    if found:
        raise UnsupportedModelError(found)
    return lowered.draft
