"""Small ONNX models, compiled, run under secret sharing and compared with onnxruntime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from radiopaque.engine import local
from radiopaque.graph.compile import Compiled, compile_model
from radiopaque.graph.ranges import calibrate
from tests.reference import plan_integers

Floats = NDArray[np.floating]
OPSET = 17
FINE_BITS = 40
"""Output bits that leave the fixed-point error of the gates alone to be seen."""


def rng(seed: int = 0) -> np.random.Generator:
    """Test data only."""
    return np.random.default_rng(seed)


def make_model(
    nodes: Sequence[onnx.NodeProto],
    shape: Sequence[int | str],
    constants: Mapping[str, Any] | None = None,
    opset: int = OPSET,
    outputs: Sequence[str] = ("y",),
    elem_type: int = TensorProto.FLOAT,
) -> onnx.ModelProto:
    """A model with input "x" of this shape; constants become initialisers, floats as float32."""
    initialisers = []
    for name, value in (constants or {}).items():
        array = np.asarray(value)
        if array.dtype == np.float64:
            array = array.astype(np.float32)
        initialisers.append(numpy_helper.from_array(array, name))
    graph = helper.make_graph(
        list(nodes),
        "test",
        [helper.make_tensor_value_info("x", elem_type, list(shape))],
        [helper.make_tensor_value_info(name, elem_type, None) for name in outputs],
        initialisers,
    )
    ids = [helper.make_opsetid("", opset)]
    ir_version = helper.find_min_ir_version_for(ids, ignore_unknown=True)
    model = helper.make_model(graph, opset_imports=ids, ir_version=ir_version)
    inferred = onnx.shape_inference.infer_shapes(model).graph.output
    for value, known in zip(model.graph.output, inferred, strict=True):
        value.CopyFrom(known)
        value.type.tensor_type.shape.SetInParent()
    return model


def node(op: str, inputs: str, outputs: str = "y", **attributes: Any) -> onnx.NodeProto:
    """A node named after its first output; inputs and outputs separated by spaces, "_" left out."""
    names = ["" if name == "_" else name for name in inputs.split()]
    outs = outputs.split()
    return helper.make_node(op, names, outs, name=f"{outs[0]}_node", **attributes)


def plaintext(model: onnx.ModelProto, x: Floats) -> Floats:
    """onnxruntime's first output."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    result: Floats = session.run(None, {session.get_inputs()[0].name: x})[0]
    return result


def run_plan(compiled: Compiled, x: Floats) -> NDArray[np.float64]:
    """The outputs of a secure run, in the shape of the plan's last step."""
    return local.infer(compiled.plan, compiled.weights, x).outputs


def compile_for(model: onnx.ModelProto, x: Floats, ring_bits: int = 64, **options: Any) -> Compiled:
    """Compiled with ranges calibrated on this very input."""
    options.setdefault("output_bits", min(ring_bits, FINE_BITS))
    ranges = calibrate(model, [x])
    return compile_model(model, ranges=ranges, ring_bits=ring_bits, **options)


def assert_within_limits(compiled: Compiled, x: Floats) -> None:
    """Every stored integer keeps the promise that its step makes."""
    values = plan_integers.evaluate(compiled.plan, compiled.weights, x)
    for number, (step, value) in enumerate(zip(compiled.plan.steps, values, strict=True)):
        largest = int(np.abs(value).max())
        assert largest <= step.limit, f"step {number} {step.gate}: {largest} over {step.limit}"


def assert_matches(
    model: onnx.ModelProto,
    x: Floats,
    ring_bits: int = 64,
    tolerance: float = 2.0**-15,
    **options: Any,
) -> Compiled:
    """Compile, run securely, compare; the tolerance is relative to the largest output."""
    expected = plaintext(model, x)
    compiled = compile_for(model, x, ring_bits, **options)
    assert_within_limits(compiled, x)
    actual = run_plan(compiled, x)
    assert actual.shape == expected.shape
    scale = max(1.0, float(np.abs(expected).max()))
    assert float(np.abs(actual - expected).max()) <= tolerance * scale
    return compiled


def gates(compiled: Compiled, kind: type) -> list[Any]:
    """The plan's gates of one kind, in order."""
    return [step.gate for step in compiled.plan.steps if isinstance(step.gate, kind)]


def gate_names(compiled: Compiled) -> list[str]:
    """Names of all gates between input and output."""
    return [type(step.gate).__name__ for step in compiled.plan.steps[1:-1]]
