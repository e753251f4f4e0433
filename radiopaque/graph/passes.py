"""Rewrites of the ONNX graph that need to see several nodes at once.

None changes what is computed, none renames a tensor that stays.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod

from onnx import TensorProto

from radiopaque.graph.ir import Graph, Node, rename_inputs
from radiopaque.graph.plan import Task

FLOAT_TYPES = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16)

OUTPUT_ACTIVATIONS: dict[str, Task] = {
    "Softmax": "multiclass",
    "LogSoftmax": "multiclass",
    "Sigmoid": "multilabel",
}
"""Applied by the data owner to the opened logits; allowed at the output only."""


@dataclass(frozen=True)
class Simplified:
    """A graph, the task that its last activation named (None: it had none), and problems met."""

    graph: Graph
    task: Task | None
    problems: tuple[str, ...]


def simplify(graph: Graph) -> Simplified:
    """All passes in order."""
    graph = drop_noise(prune(graph))
    graph, task, problems = cut_output_activation(graph)
    return Simplified(pool_before_relu(prune(graph)), task, tuple(problems))


def prune(graph: Graph) -> Graph:
    """Drop the nodes that the output does not depend on."""
    needed = {graph.output}
    kept: list[Node] = []
    for node in reversed(graph.nodes):
        if needed.intersection(node.outputs):
            kept.append(node)
            needed.update(name for name in node.inputs if name)
    return graph.with_nodes(kept[::-1])


def drop_noise(graph: Graph) -> Graph:
    """Drop Identity, Dropout at inference, and Cast from one floating-point type to another."""
    names: dict[str, str] = {}
    uses = graph.uses()
    kept: list[Node] = []
    for node in graph.nodes:
        if _is_noise(graph, node) and not any(uses[name] for name in node.outputs[1:]):
            names[node.output] = names.get(node.inputs[0], node.inputs[0])
        else:
            kept.append(node)
    return graph.with_nodes(rename_inputs(kept, names), names.get(graph.output, graph.output))


def _is_noise(graph: Graph, node: Node) -> bool:
    if node.op == "Identity":
        return True
    if node.op == "Dropout":
        mode = node.input(2)
        return not mode or graph.integers(mode) == (0,)
    return node.op == "Cast" and node.integer("to", 0) in FLOAT_TYPES


def cut_output_activation(graph: Graph) -> tuple[Graph, Task | None, list[str]]:
    """Take softmax or sigmoid off the output: the data owner applies them to what it opened."""
    last = next((node for node in graph.nodes if graph.output in node.outputs), None)
    if last is None or last.op not in OUTPUT_ACTIVATIONS or graph.uses()[last.output] > 1:
        return graph, None, []
    shape = graph.shapes.get(last.inputs[0])
    problems = []
    if last.op != "Sigmoid" and shape is not None and len(shape) > 0:
        axis = last.integer("axis", 1 if graph.opset < 13 else -1) % len(shape)
        others = [size for i, size in enumerate(shape) if i not in (0, axis)]
        if axis == 0 or prod(others) != 1:
            problems.append(
                f"node {last.label} ({last.op}) runs along axis {axis} of {list(shape)}, the data "
                "owner applies it along the classes of [batch, classes]; remedy: flatten the "
                "output before it, or leave it out"
            )
    return graph.with_nodes(graph.nodes, last.inputs[0]), OUTPUT_ACTIVATIONS[last.op], problems


def pool_before_relu(graph: Graph) -> Graph:
    """Turn max-pool after ReLU around where that leaves fewer than half of the comparisons.

    Maximum and ReLU commute. A ReLU compares every element, a truncation alone costs half of that:
    so truncate, pool, then compare the pooled elements. Source: docs/protocol.md, section 7.
    """
    uses = graph.uses()
    relus = {node.output: node for node in graph.nodes if node.op == "Relu"}
    shapes = dict(graph.shapes)
    moved: dict[str, tuple[Node, Node]] = {}
    dropped: set[str] = set()
    for node in graph.nodes:
        relu = relus.get(node.input(0)) if node.op == "MaxPool" else None
        if relu is None or uses[relu.output] > 1 or any(uses[name] for name in node.outputs[1:]):
            continue
        before, after = shapes.get(relu.output), shapes.get(node.output)
        if before is None or after is None or 2 * prod(after) > prod(before):
            continue
        pooled = f"{node.output}/before_relu"
        shapes[pooled] = after
        dropped.add(relu.output)
        pool = replace(node, inputs=(relu.inputs[0],), outputs=(pooled,))
        moved[node.output] = (pool, replace(relu, inputs=(pooled,), outputs=(node.output,)))
    nodes: list[Node] = []
    for node in graph.nodes:
        if node.output not in dropped:
            nodes.extend(moved.get(node.output, (node,)))
    return replace(graph, nodes=tuple(nodes), shapes=shapes)
