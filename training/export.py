"""Export of a trained network to ONNX, with the weights stored as float16 where that is harmless.

Only the storage is half precision: a Cast node widens each weight to float32, so every runtime
computes in float32, and the file is half the size. Biases stay float32, they cost nothing. Norms
are folded into the convolutions before the weights are rounded.
"""

from __future__ import annotations

import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from training.errors import TrainingError

OPSET = 17
INPUT = "image"
OUTPUT = "logits"
BATCH = "n"

# float32 sums in another order differ by about 1e-5 at logits of a few units.
EXPORT_TOLERANCE = 1e-3
# Weights rounded to 11 significant bits move the logits of most networks by a few thousandths.
STORAGE_LIMIT = 0.05

Weights = Literal["auto", "float32"]


class ExportError(TrainingError):
    """The exported network does not compute what the trained one does, or cannot be stored."""


@dataclass(frozen=True, slots=True)
class Exported:
    """A checked network, how its weights are stored, and a sentence that says why."""

    model: onnx.ModelProto
    storage: Literal["float16", "float32"]
    reason: str


def to_onnx(model: nn.Module, size: int, channels: int = 1) -> onnx.ModelProto:
    """Return the network as ONNX, opset 17, batch dimension `n`, weights as stored in `model`."""
    model.eval()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        # The exporter that this uses is deprecated in favour of one that needs onnxscript.
        warnings.simplefilter("ignore", DeprecationWarning)
        # A Pad takes its amounts from a reversed list, Slice with step -1, which the exporter
        # does not compute in advance. They are constants: runtimes and our compiler do.
        warnings.filterwarnings("ignore", "Constant folding - Only steps=1", UserWarning)
        path = Path(folder) / "exported.onnx"
        torch.onnx.export(
            model,
            (torch.zeros(1, channels, size, size),),
            path,
            dynamo=False,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_axes={INPUT: {0: BATCH}, OUTPUT: {0: BATCH}},
        )
        exported = onnx.load(str(path))
    onnx.checker.check_model(exported, full_check=True)
    return exported


def store_half(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy whose weights (float32 of two or more dimensions) are float16 and a Cast.

    Raises:
        ExportError: a weight is too large for float16.
    """
    stored = onnx.ModelProto()
    stored.CopyFrom(model)
    casts: list[onnx.NodeProto] = []
    for initialiser in stored.graph.initializer:
        if initialiser.data_type != TensorProto.FLOAT or len(initialiser.dims) < 2:
            continue
        name = initialiser.name
        with np.errstate(over="ignore"):
            half = numpy_helper.to_array(initialiser).astype(np.float16)
        if not np.isfinite(half).all():
            raise ExportError(f"weight {name!r} has values beyond the float16 range of +-65504")
        half_name = f"{name}_float16"
        initialiser.CopyFrom(numpy_helper.from_array(half, half_name))
        casts.append(
            helper.make_node(
                "Cast", [half_name], [name], name=f"widen_{name}", to=TensorProto.FLOAT
            )
        )
    nodes = [*casts, *stored.graph.node]
    del stored.graph.node[:]
    stored.graph.node.extend(nodes)
    onnx.checker.check_model(stored, full_check=True)
    return stored


def session_of(model: onnx.ModelProto | Path) -> onnxruntime.InferenceSession:
    """Return a session of onnxruntime on the CPU."""
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def run(
    model: onnx.ModelProto | onnxruntime.InferenceSession, images: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Return onnxruntime's logits, float32 [n, classes], for normalised images [n, c, h, w]."""
    session = session_of(model) if isinstance(model, onnx.ModelProto) else model
    logits: NDArray[np.float32] = session.run([OUTPUT], {INPUT: images})[0]
    return logits


def export(model: nn.Module, images: NDArray[np.float32], weights: Weights = "auto") -> Exported:
    """Return the network as ONNX, checked against torch.

    `images`, normalised float32 [n, c, h, w], are what is compared on; of n = 0 the shape alone is
    used. With "auto", weights are stored as float16 if that moves no logit of the images by more
    than STORAGE_LIMIT.

    Raises:
        ExportError: torch and onnxruntime differ by more than rounding explains.
    """
    exact = to_onnx(model, images.shape[-1], images.shape[1])
    compared = images if len(images) else _noise(images.shape[1:])
    with torch.inference_mode():
        expected = model(torch.from_numpy(compared)).numpy()
    graph_error = float(np.abs(run(exact, compared) - expected).max())
    if not graph_error <= EXPORT_TOLERANCE:
        raise ExportError(
            f"the network cannot be exported: onnxruntime differs from torch by {graph_error:.2g} "
            f"(at most {EXPORT_TOLERANCE}); check the versions of torch and onnxruntime"
        )
    if weights == "float32":
        return Exported(exact, "float32", "as configured")
    if not len(images):
        return Exported(exact, "float32", "there were no images to check float16 on")
    try:
        stored = store_half(exact)
    except ExportError as error:
        return Exported(exact, "float32", str(error))
    moved = float(np.abs(run(stored, images) - expected).max())
    if not moved <= STORAGE_LIMIT:
        reason = f"float16 would move a logit by {moved:.2g}, more than {STORAGE_LIMIT}"
        return Exported(exact, "float32", reason)
    reason = (
        f"moves no logit of {len(images)} images by more than {moved:.2g} ({STORAGE_LIMIT} allowed)"
    )
    return Exported(stored, "float16", reason)


def _noise(shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Four images, float32 [4, *shape], of normal noise."""
    return np.random.default_rng(0).normal(size=(4, *shape)).astype(np.float32)
