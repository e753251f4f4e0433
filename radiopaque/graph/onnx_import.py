"""From ONNX to :class:`radiopaque.graph.ir.Graph`: static shapes everywhere, constants computed.

Node by node in the file's order: a node whose inputs are all constant is computed now (so that the
shape arithmetic of exporters disappears), of the others the output shapes are inferred. What cannot
be represented is noted as a problem, not raised, so that all problems are reported together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator

from radiopaque.errors import ModelFileError
from radiopaque.graph.constants import (
    COMPUTED,
    FLOATS,
    MOST_ELEMENTS,
    NUMBERS,
    PASSES,
    elements_made,
    work_of,
)
from radiopaque.graph.ir import Attribute, Graph, Node
from radiopaque.graph.onnx_file import check_finite, constant_arrays, opset_of, tensor_array
from radiopaque.graph.plan import Shape

LARGEST = 1 << 40
"""Elements of any tensor; a plan admits far fewer, but says so only when everything is known."""
SMALL = 4096
"""Elements up to which a constant's value takes part in shape inference (shapes, axes, pads)."""
MOST_AXES = 64
"""More than numpy's arrays have no tensor needs; their product would take a while."""


@dataclass
class Imported:
    """A graph, as far as it could be understood, and the problems met on the way."""

    graph: Graph
    problems: list[str]


def import_model(model: onnx.ModelProto, batch: int | None = None) -> Imported:
    """Convert a checked model. ``batch`` replaces a symbolic first dimension of the input.

    Raises ModelFileError, UnsupportedOpsetError, InvalidWeightsError.
    """
    return _Importer(model, batch).run()


def graph_input(model: onnx.ModelProto) -> onnx.ValueInfoProto:
    """The one input that is no initialiser. Raises ModelFileError where there is none."""
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    if not inputs:
        raise ModelFileError(
            "the model has no input: every graph input is an initialiser; export it with an image"
        )
    return inputs[0]


@dataclass
class _Importer:
    model: onnx.ModelProto
    batch: int | None
    problems: list[str] = field(default_factory=list)
    constants: dict[str, NDArray[Any]] = field(default_factory=dict)
    types: dict[str, onnx.TypeProto] = field(default_factory=dict)
    nodes: list[Node] = field(default_factory=list)
    room: int = MOST_ELEMENTS
    work: int = 0

    def run(self) -> Imported:
        graph = self.model.graph
        opset = opset_of(self.model)
        self.constants = constant_arrays(self.model)
        for name, array in self.constants.items():
            self.types[name] = _tensor_type(array)
            self.room += 4 * array.size
        self.work = PASSES * self.room
        if graph.sparse_initializer:
            self.problems.append(
                "the model has sparse initialisers; remedy: store the weights densely"
            )
        entry = graph_input(self.model)
        self._check_interface(entry)
        self._set_input_type(entry)
        for node in graph.node:
            self._node(node, opset)
        shapes = {name: shape for name in self.types if (shape := self._shape(name)) is not None}
        converted = Graph(
            graph.name,
            opset,
            entry.name,
            graph.output[0].name,
            tuple(self.nodes),
            self.constants,
            shapes,
        )
        if converted.output in self.constants:
            raise ModelFileError(
                f"the output {converted.output!r} does not depend on the input; check the export"
            )
        return Imported(converted, self.problems)

    def _check_interface(self, entry: onnx.ValueInfoProto) -> None:
        weights = {tensor.name for tensor in self.model.graph.initializer}
        others = [
            value.name
            for value in self.model.graph.input
            if value.name not in weights and value.name != entry.name
        ]
        if others:
            self.problems.append(
                f"the model has more inputs than the image {entry.name!r}: {', '.join(others)}; "
                "remedy: make them constants, or export a model with one input"
            )
        outputs = [value.name for value in self.model.graph.output]
        if len(outputs) > 1:
            self.problems.append(
                f"the model has {len(outputs)} outputs: {', '.join(outputs)}; remedy: export it "
                "with the one that the clinic is to learn"
            )

    def _set_input_type(self, entry: onnx.ValueInfoProto) -> None:
        if not entry.type.HasField("tensor_type"):
            self.problems.append(
                f"input {entry.name!r} is not a tensor; remedy: export it with a tensor as input"
            )
            return
        tensor = entry.type.tensor_type
        if tensor.elem_type not in FLOATS:
            known = tensor.elem_type in TensorProto.DataType.values()
            kind = TensorProto.DataType.Name(tensor.elem_type) if known else "an unknown type"
            self.problems.append(
                f"input {entry.name!r} holds {kind}; remedy: export a model that takes float32"
            )
        dimensions: list[int | None] = []
        for axis, dimension in enumerate(tensor.shape.dim):
            if dimension.HasField("dim_value") and dimension.dim_value > 0:
                size: int | None = dimension.dim_value
                if axis == 0 and self.batch is not None and size != self.batch:
                    self.problems.append(
                        f"input {entry.name!r} has the fixed batch {size}, {self.batch} was asked "
                        "for; remedy: export it with a dynamic batch dimension"
                    )
            elif dimension.HasField("dim_value"):
                size = None
                self.problems.append(
                    f"input {entry.name!r}: dimension {axis} is {dimension.dim_value}; remedy: "
                    "export the model with an image that has elements"
                )
            elif axis == 0:
                size = self.batch or 1
            else:
                size = None
                name = dimension.dim_param or "unknown"
                self.problems.append(
                    f"input {entry.name!r}: dimension {axis} is dynamic ({name}); remedy: export "
                    "the model with a fixed image size (only the batch may be dynamic)"
                )
            dimensions.append(size)
        if not tensor.HasField("shape"):
            self.problems.append(
                f"input {entry.name!r} has no shape; remedy: export it with a fixed image size"
            )
        elif None not in dimensions:
            made = onnx.helper.make_tensor_type_proto(tensor.elem_type, dimensions)
            self._add_type(f"input {entry.name!r}", entry.name, made)

    def _shape(self, name: str) -> Shape | None:
        kind = self.types.get(name)
        if kind is None or not kind.tensor_type.HasField("shape"):
            return None
        dimensions = kind.tensor_type.shape.dim
        if not all(d.HasField("dim_value") for d in dimensions):
            return None
        return tuple(int(d.dim_value) for d in dimensions)

    def _node(self, node: onnx.NodeProto, opset: int) -> None:
        converted = _convert(node)
        if any(
            isinstance(v, onnx.GraphProto)
            for a in node.attribute
            for v in (a.g, *a.graphs)
            if a.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)
        ):
            self.problems.append(
                f"node {converted.label} ({node.op_type}) holds a subgraph: control flow that may "
                "depend on the image; remedy: export the model without loops and branches "
                "(torch: trace it instead of scripting it)"
            )
            return
        if node.domain not in ("", "ai.onnx"):
            functions = {(f.domain, f.name) for f in self.model.functions}
            local = (node.domain, node.op_type) in functions
            self.problems.append(
                f"node {converted.label}: {node.domain}::{node.op_type} is "
                + (
                    "a function of the model; remedy: inline it, "
                    "onnx.inliner.inline_local_functions(model)"
                    if local
                    else "no standard operator; remedy: export the model with those only"
                )
            )
            return
        if self._fold(node, converted, opset):
            return
        self._infer(node, opset)
        self.nodes.append(converted)

    def _fold(self, node: onnx.NodeProto, converted: Node, opset: int) -> bool:
        """Compute a node that does not depend on the image; true if that is what it is."""
        inputs = [name for name in node.input if name]
        shape = self._shape(inputs[0]) if inputs else None
        if node.op_type in ("Shape", "Size") and shape is not None:
            placeholder = np.broadcast_to(np.zeros((), np.float32), shape)
            values = {inputs[0]: placeholder}
        elif all(name in self.constants for name in inputs):
            values = {name: self.constants[name] for name in inputs}
        else:
            return False
        self._infer(node, opset)
        said = self._take_room(node, values)
        if said is not None:
            self.problems.append(f"node {converted.label} ({node.op_type}) {said}")
            return True
        try:
            evaluator = ReferenceEvaluator(node, opsets={"": opset})
            results = evaluator.run(None, values)
        except Exception as error:  # the evaluator raises whatever its operators raise
            self.problems.append(
                f"node {converted.label} ({node.op_type}) is constant but cannot be computed "
                f"({error}); remedy: fold the constants when exporting"
            )
            return True
        for name, result in zip(node.output, results, strict=False):
            if name:
                array = np.asarray(result)
                check_finite(name, array)
                self.constants[name] = array
                self.types[name] = _tensor_type(array)
        return True

    def _take_room(self, node: onnx.NodeProto, inputs: dict[str, NDArray[Any]]) -> str | None:
        """Make room for the results of a constant node, or say why it is not computed."""
        kinds = {self.types[n].tensor_type.elem_type for n in node.output if n in self.types}
        if node.op_type not in COMPUTED or not kinds <= NUMBERS:
            return (
                "depends on constants alone and is not among the operators on numbers that are "
                "computed from them; remedy: fold the constants when exporting"
            )
        size = elements_made(node, inputs, [self._shape(name) for name in node.output if name])
        work = 0 if size is None else work_of(node, inputs, size)
        if size is not None and size <= self.room and work <= self.work:
            self.room -= size
            self.work -= work
            return None
        if size is None:
            said = "makes a constant of unknown shape"
        elif size > self.room:
            said = f"makes a constant of {size} elements, which is too much"
        else:
            said = f"takes {work} steps to make a constant, which is too much"
        remedy = "fold the constants when exporting, or let the image's shape expand it"
        return f"{said}; remedy: {remedy}"

    def _infer(self, node: onnx.NodeProto, opset: int) -> None:
        if not all(name in self.types for name in node.input if name):
            return
        try:
            schema = onnx.defs.get_schema(node.op_type, opset, "")
            inferred = onnx.shape_inference.infer_node_outputs(
                schema,
                node,
                {name: self.types[name] for name in node.input if name},
                {
                    name: numpy_helper.from_array(self.constants[name], name)
                    for name in node.input
                    if name in self.constants and self.constants[name].size <= SMALL
                },
                opset_imports=[onnx.helper.make_opsetid("", opset)],
                ir_version=self.model.ir_version,
            )
        except Exception as error:  # damaged files make the library raise other types, too
            self.problems.append(
                f"node {_convert(node).label} ({node.op_type}): shapes do not fit: {error}; "
                "remedy: check the model with onnx.shape_inference"
            )
            return
        for name, kind in inferred.items():
            self._add_type(f"node {_convert(node).label} ({node.op_type})", name, kind)

    def _add_type(self, where: str, name: str, kind: onnx.TypeProto) -> None:
        """Note a tensor's type, unless no machine could hold the tensor."""
        self.types[name] = kind
        shape = self._shape(name)
        if shape is not None and (
            len(shape) > MOST_AXES or min(shape, default=0) < 0 or prod(shape) > LARGEST
        ):
            del self.types[name]
            said = f"{len(shape)} axes" if len(shape) > MOST_AXES else f"the shape {list(shape)}"
            self.problems.append(
                f"{where}: tensor {name!r} has {said}, which is too large; "
                "remedy: export the model for the size of its images"
            )


def _tensor_type(array: NDArray[Any]) -> onnx.TypeProto:
    return onnx.helper.make_tensor_type_proto(
        onnx.helper.np_dtype_to_tensor_dtype(array.dtype), array.shape
    )


def _convert(node: onnx.NodeProto) -> Node:
    return Node(
        node.op_type,
        node.name,
        tuple(node.input),
        tuple(node.output),
        {a.name: _attribute(a) for a in node.attribute},
    )


def _attribute(attribute: onnx.AttributeProto) -> Attribute:
    value = onnx.helper.get_attribute_value(attribute)
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, onnx.TensorProto):
        return tensor_array(value)
    if isinstance(value, int | float):
        return value
    if isinstance(value, Sequence) and not isinstance(value, str):
        return tuple(v.decode("utf-8", "replace") if isinstance(v, bytes) else v for v in value)
    return str(value)
