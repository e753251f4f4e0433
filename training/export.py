"""Export of a trained network to ONNX, with the weights stored as float16.

Only the storage is half precision: a Cast node widens each weight to float32, so every runtime
computes in float32, and the file is half the size. Biases stay float32, they cost nothing. Batch
norm is folded into the convolutions by the exporter before the weights are rounded.
"""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from training.files import write_atomically

OPSET = 17
INPUT = "image"
OUTPUT = "logits"
BATCH = "n"

# float32 sums in another order differ by about 1e-5 at logits of a few units.
EXPORT_TOLERANCE = 1e-3
# Weights rounded to 11 significant bits move the logits by a few thousandths.
STORAGE_TOLERANCE = 0.05


class ExportError(RuntimeError):
    """The exported network does not compute what the trained one does."""


def to_onnx(model: nn.Module, size: int, channels: int = 1) -> onnx.ModelProto:
    """Return the network as ONNX, opset 17, batch dimension `n`, weights as stored in `model`."""
    model.eval()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        # The exporter that this uses is deprecated in favour of one that needs onnxscript.
        warnings.simplefilter("ignore", DeprecationWarning)
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
            raise ExportError(
                f"weight {name!r} has values beyond the float16 range of +-65504; "
                "train with weight decay, or store this network in float32"
            )
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


def run(model: onnx.ModelProto | Path, images: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return onnxruntime's logits, float32 [n, classes], for normalised images [n, c, h, w]."""
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    batches = np.array_split(images, max(1, len(images) // 32))
    return np.concatenate([session.run([OUTPUT], {INPUT: batch})[0] for batch in batches])


def export(
    model: nn.Module, images: NDArray[np.float32], path: Path
) -> tuple[onnx.ModelProto, float]:
    """Write the network to `path`; return it and the largest logit error of the half storage.

    `images`, normalised float32 [n, c, h, w], are what torch and onnxruntime are compared on.

    Raises:
        ExportError: the two differ by more than rounding explains.
    """
    exact = to_onnx(model, images.shape[-1], images.shape[1])
    stored = store_half(exact)
    with torch.inference_mode():
        expected = model(torch.from_numpy(images)).numpy()
    graph_error = float(np.abs(run(exact, images) - expected).max())
    if not graph_error <= EXPORT_TOLERANCE:
        raise ExportError(
            f"onnxruntime differs from torch by {graph_error:.2g} (at most {EXPORT_TOLERANCE}); "
            "check the versions of torch and onnxruntime"
        )
    storage_error = float(np.abs(run(stored, images) - expected).max())
    if not storage_error <= STORAGE_TOLERANCE:
        raise ExportError(
            f"float16 weights move a logit by {storage_error:.2g} (at most {STORAGE_TOLERANCE}); "
            "train with weight decay, or store this network in float32"
        )
    write_atomically(path, stored.SerializeToString())
    return stored, storage_error
