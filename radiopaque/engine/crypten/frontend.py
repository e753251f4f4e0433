"""From ONNX to a program for CrypTen: exporter noise removed, shapes static, problems collected.

The reading is the compiler's (:mod:`radiopaque.graph.onnx_import`): constants are computed,
Identity, Dropout and Cast disappear, a softmax or sigmoid at the output goes to the data owner.
What CrypTen 0.4.1 is known to compute wrongly is refused here by name (``Erf``, odd powers from 5
up, padded averages that leave the padding out).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Final

import numpy as np
import onnx
from numpy.typing import NDArray

from radiopaque.engine.crypten import operators
from radiopaque.engine.crypten.builder import Builder
from radiopaque.engine.crypten.program import Program, validate
from radiopaque.errors import PlanError, UnsupportedModelError
from radiopaque.graph.ir import Graph, Node
from radiopaque.graph.lowering.context import NotLowered, ShapeUnknown
from radiopaque.graph.onnx_file import check_model, load_model
from radiopaque.graph.onnx_import import import_model
from radiopaque.graph.passes import cut_output_activation, drop_noise, prune
from radiopaque.graph.plan import Task

Floats = NDArray[np.float32]

REMEDIES: Final[Mapping[str, str]] = {
    "Erf": "CrypTen's erf is wrong (its odd powers are); write GELU as x * Sigmoid(1.702 x)",
    "Gelu": "CrypTen's erf is wrong (its odd powers are); write GELU as x * Sigmoid(1.702 x)",
    "ConvTranspose": "use nearest-neighbour upsampling by Expand and a Conv",
}
DEFAULT_REMEDY: Final = "use the operators that docs/crypten-engine.md lists"


@dataclass(frozen=True)
class Translated:
    """A program, its secret constants by value, and the task that the last activation named.

    ``output`` is the ONNX tensor that the program computes.
    """

    program: Program
    output: str
    constants: Mapping[int, Floats] = field(repr=False)
    task: Task | None


def translate(model: Path | onnx.ModelProto, batch: int | None = None) -> Translated:
    """A program for an ONNX model. ``batch`` replaces a dynamic first dimension of the input.

    Raises UnsupportedModelError with every problem, ModelFileError, UnsupportedOpsetError,
    InvalidWeightsError.
    """
    loaded = load_model(model) if isinstance(model, Path) else model
    if not isinstance(model, Path):
        check_model(loaded)
    imported = import_model(loaded, batch)
    graph = drop_noise(prune(imported.graph))
    graph, task, output_problems = cut_output_activation(graph)
    graph = prune(graph)
    problems = [*imported.problems, *output_problems]
    if graph.input not in graph.shapes:
        raise UnsupportedModelError(problems or ["the input has no static shape"])
    builder = Builder(graph)
    for node in graph.nodes:
        try:
            _node(builder, node)
        except NotLowered as problem:
            problems.append(f"node {node.label} ({node.op}): {problem}")
        except ShapeUnknown:
            continue
    if not problems and graph.output not in builder.values:
        problems.append(f"the output {graph.output!r} is not computed; check the export")
    if problems:
        raise UnsupportedModelError(problems)
    program = builder.finish(graph.output)
    try:
        validate(program)
    except PlanError as error:
        raise UnsupportedModelError([f"{error}; remedy: export a smaller model"]) from error
    return Translated(program, graph.output, builder.constants, task)


def _node(builder: Builder, node: Node) -> None:
    translate_one = operators.TABLE.get(node.op)
    if translate_one is None:
        raise NotLowered("CrypTen has no such operator", REMEDIES.get(node.op, DEFAULT_REMEDY))
    values = translate_one(builder, node)
    for name, value in zip(node.outputs, values, strict=False):
        _check_shape(builder.graph, name, builder.shape(value))
        builder.values[name] = value


def _check_shape(graph: Graph, name: str, shape: tuple[int, ...]) -> None:
    expected = graph.shapes.get(name)
    if expected is not None and expected != shape:
        raise NotLowered(
            f"output {name!r} would have the shape {list(shape)} instead of {list(expected)} "
            f"({prod(shape)} elements)",
            "report this with the model's node",
        )
