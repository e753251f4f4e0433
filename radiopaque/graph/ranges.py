"""Calibration: the smallest and largest value of every tensor, measured with onnxruntime.

Use images from training data. Only two numbers a tensor leave the runtime, so that memory stays
that of plain inference.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper

from radiopaque.errors import ModelFileError, TensorError
from radiopaque.graph.constants import FLOATS
from radiopaque.graph.onnx_file import check_model, load_model
from radiopaque.graph.onnx_import import graph_input

PREFIX = "radiopaque/"
"""Before the names of the tensors that calibration adds."""

Ranges = dict[str, tuple[float, float]]


def calibrate(model: Path | onnx.ModelProto, batches: Iterable[NDArray[np.float32]]) -> Ranges:
    """Ranges of the input and of every floating-point tensor, by ONNX name.

    ``batches`` are float32 [n, c, h, w], preprocessed. Raises ModelError for a broken file,
    TensorError where a batch does not fit the model or is empty.
    """
    loaded = load_model(model) if isinstance(model, Path) else model
    if not isinstance(model, Path):
        check_model(loaded)
    entry = graph_input(loaded)
    names, instrumented = _instrument(loaded, entry)
    session = _session(instrumented)
    found: Ranges = {}
    for batch in batches:
        if not np.isfinite(batch).all():
            raise TensorError("a calibration image holds NaN or infinity; check its preprocessing")
        try:
            results = session.run(None, {entry.name: batch})
        except Exception as error:  # onnxruntime's own exception types share no base but this
            raise TensorError(
                f"onnxruntime cannot run the model on a batch {list(batch.shape)}; the manifest's "
                f"channels, height and width must be the network's: {error}"
            ) from error
        for position, name in enumerate(names):
            low, high = (float(v) for v in results[2 * position : 2 * position + 2])
            before = found.get(name, (low, high))
            found[name] = min(low, before[0]), max(high, before[1])
    if not found:
        raise TensorError("calibration needs at least one image; none was given")
    return found


def _session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # onnxruntime's own exception types share no base but this
        raise ModelFileError(f"onnxruntime cannot load the model: {error}") from error


def _instrument(
    model: onnx.ModelProto, entry: onnx.ValueInfoProto
) -> tuple[list[str], onnx.ModelProto]:
    """The model with a smallest and a largest value of every tensor as its outputs."""
    instrumented = onnx.ModelProto()
    instrumented.CopyFrom(onnx.shape_inference.infer_shapes(model))
    graph = instrumented.graph
    kinds = {v.name: v.type.tensor_type.elem_type for v in (*graph.value_info, *graph.output)}
    kinds[entry.name] = entry.type.tensor_type.elem_type
    constant = {tensor.name for tensor in graph.initializer}
    names = [entry.name]
    for node in graph.node:
        if all(name in constant for name in node.input if name):
            constant.update(node.output)
            continue
        names.extend(name for name in node.output if kinds.get(name) in FLOATS)
    nodes, outputs = [], []
    for name in names:
        for operator in ("ReduceMin", "ReduceMax"):
            output = f"{PREFIX}{operator}/{name}"
            nodes.append(helper.make_node(operator, [name], [output], keepdims=0))
            outputs.append(helper.make_tensor_value_info(output, kinds[name], []))
    if any(kinds[name] == TensorProto.BFLOAT16 for name in names):
        raise ModelFileError("the model computes in bfloat16; export it in float32")
    graph.node.extend(nodes)
    del graph.output[:]
    graph.output.extend(outputs)
    return names, instrumented
