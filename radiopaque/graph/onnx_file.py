"""Reading an ONNX file and refusing what is not one, before anything looks at its operators."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from onnx import numpy_helper

from radiopaque.errors import InvalidWeightsError, ModelFileError, UnsupportedOpsetError
from radiopaque.files import open_regular

OLDEST_OPSET = 11
NEWEST_OPSET = 26
"""The newest that both onnx and onnxruntime accepted when this range was tested."""


def load_model(path: Path) -> onnx.ModelProto:
    """Read and check a model, external data included.

    Raises ModelFileError (unreadable, not ONNX, inconsistent, external data missing) and
    UnsupportedOpsetError.
    """
    try:
        with open_regular(path) as file:
            model = onnx.load(file, load_external_data=False)
    except OSError as error:
        raise ModelFileError(f"cannot read {path}: {error.strerror or error}") from error
    except (DecodeError, ValueError) as error:
        raise ModelFileError(f"{path} is not an ONNX file, or is cut short: {error}") from error
    if not model.graph.node or not model.graph.output:
        raise ModelFileError(f"{path} is not an ONNX file: it holds no graph with an output")
    _load_external_data(model, path)
    check_model(model)
    return model


def check_model(model: onnx.ModelProto) -> None:
    """Raise UnsupportedOpsetError or ModelFileError for a model that cannot be looked into."""
    opset_of(model)
    try:
        onnx.checker.check_model(model)
    except Exception as error:  # the checker raises other types, too, on damaged files
        raise ModelFileError(f"the ONNX file is inconsistent: {error}") from error


def opset_of(model: onnx.ModelProto) -> int:
    """Version of the standard operators. Raises UnsupportedOpsetError outside the tested range."""
    versions = [entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")]
    if not versions:
        raise UnsupportedOpsetError(
            "the ONNX file does not say which opset of the standard operators it uses; "
            "export it again"
        )
    version = int(versions[0])
    newest = min(NEWEST_OPSET, onnx.defs.onnx_opset_version())
    if not OLDEST_OPSET <= version <= newest:
        raise UnsupportedOpsetError(
            f"the ONNX file uses opset {version}; opsets {OLDEST_OPSET} to {newest} are supported: "
            f"export it with opset_version={min(max(version, OLDEST_OPSET), newest)}, or convert "
            "it with onnx.version_converter"
        )
    return version


def constant_arrays(model: onnx.ModelProto) -> dict[str, NDArray[Any]]:
    """The initialisers by name, in the types of the file.

    Raises ModelFileError and InvalidWeightsError.
    """
    arrays = {}
    for tensor in model.graph.initializer:
        array = tensor_array(tensor)
        check_finite(tensor.name, array)
        arrays[tensor.name] = array
    return arrays


def tensor_array(tensor: onnx.TensorProto) -> NDArray[Any]:
    """A tensor in the type of the file. Raises ModelFileError, also for one of texts."""
    if tensor.data_type == onnx.TensorProto.STRING:
        # the library would give every text the length of the longest
        raise ModelFileError(
            f"tensor {tensor.name!r} of the ONNX file holds texts; images are numbers: export the "
            "model without what handles them"
        )
    try:
        return np.asarray(numpy_helper.to_array(tensor))
    except Exception as error:  # of an unknown type, of another size than its shape says
        raise ModelFileError(
            f"tensor {tensor.name!r} of the ONNX file cannot be read: {error}; export it again"
        ) from error


def check_finite(name: str, array: NDArray[Any]) -> None:
    """Raise InvalidWeightsError for NaN, or for infinity in anything but a scalar.

    A scalar may be infinite: that is how exporters write a clip without a bound.
    """
    if array.dtype.kind not in "fV":
        return
    reals = array.astype(np.float64)
    broken = np.isnan(reals) if reals.ndim == 0 else ~np.isfinite(reals)
    if broken.any():
        raise InvalidWeightsError(
            f"tensor {name!r} holds {int(broken.sum())} values that are NaN or infinite; "
            "training has diverged: repair the weights and export the model again"
        )


def _load_external_data(model: onnx.ModelProto, path: Path) -> None:
    attributes = (a.t for node in model.graph.node for a in node.attribute if a.HasField("t"))
    for tensor in (*model.graph.initializer, *attributes):
        if not onnx.external_data_helper.uses_external_data(tensor):
            continue
        location = {entry.key: entry.value for entry in tensor.external_data}.get("location", "")
        try:
            onnx.external_data_helper.load_external_data_for_tensor(tensor, str(path.parent))
        except (OSError, ValueError, onnx.checker.ValidationError) as error:
            raise ModelFileError(
                f"{path.name} keeps tensor {tensor.name!r} in another file, {location!r}, which "
                f"cannot be read: {error}; put it beside the ONNX file, or save the model with "
                "save_as_external_data=False"
            ) from error
        tensor.data_location = onnx.TensorProto.DEFAULT
        del tensor.external_data[:]
