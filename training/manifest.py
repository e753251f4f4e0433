"""The JSON manifest: the whole contract, beside the ONNX file, between training and the product."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from training.data import CLASSES
from training.errors import SettingsError
from training.evaluate import DEFINITIONS, Evaluation
from training.export import Exported
from training.provenance import Provenance
from training.sources import DATA_SETS, INTENDED_USE

MANIFEST_FILE = "manifest.json"
ONNX_FILE = "model.onnx"
LICENCE = "Apache-2.0"


def build_manifest(
    exported: Exported,
    sha256: str,
    provenance: Provenance,
    pixels: tuple[float, float],
    metrics: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the manifest of an exported network.

    `pixels` are mean and deviation, of grey levels from 0 to 1, that it was trained with; `metrics`
    are those of `metrics_of`.
    """
    settings = provenance.settings
    output, size = settings.output, settings.data.image_size
    mean, std = pixels
    return {
        "schema": 1,
        "name": output.name or f"pneumonia-{settings.model.name}",
        "version": output.version,
        "onnx": ONNX_FILE,
        "sha256": sha256,
        "licence": LICENCE,
        "task": "multiclass",
        "classes": list(CLASSES),
        "preprocessing": {
            "channels": exported.model.graph.input[0].type.tensor_type.shape.dim[1].dim_value,
            "height": size,
            "width": size,
            "resize": "stretch",
            "interpolation": "bilinear",
            "mean": [mean],
            "std": [std],
        },
        "intended_use": dict(INTENDED_USE[output.data_set]),
        "description": output.description,
        "metrics": dict(metrics),
        "training_data": {**DATA_SETS[output.data_set], **_images(provenance)},
        "training": {
            **provenance.as_dict(),
            "weights": {"stored_as": exported.storage, "reason": exported.reason},
        },
    }


def metrics_of(
    evaluations: Mapping[str, Evaluation], notes: Mapping[str, str]
) -> dict[str, dict[str, Any]]:
    """Figures of each set of images, by its name, with a note on what it was used for."""
    if not evaluations:
        return {}
    sets = {
        name: {"note": notes[name], **evaluation.as_dict()}
        for name, evaluation in evaluations.items()
    }
    return {**sets, "definitions": dict(DEFINITIONS)}


def _images(provenance: Provenance) -> dict[str, Any]:
    """How many images were trained on, and of which class where no site keeps that to itself."""
    content: dict[str, Any] = {}
    if provenance.images is not None:
        content["images"] = provenance.images
    known = [site.images_by_class for site in provenance.sites]
    if known and all(counts is not None for counts in known):
        total: Counter[str] = Counter()
        for counts in known:
            total.update(counts or {})
        content["images_by_class"] = {title: total[title] for title in CLASSES}
    return content


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read the manifest of a model folder.

    Raises:
        SettingsError: there is none, or it is not JSON.
    """
    path = folder / MANIFEST_FILE
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SettingsError(
            f"{path} cannot be read ({error}); name a folder that training wrote"
        ) from error
    return content


def manifest_bytes(manifest: Mapping[str, Any]) -> bytes:
    """The manifest as indented UTF-8 JSON, intervals and ranges on one line each."""
    text = json.dumps(manifest, indent=2, ensure_ascii=False, allow_nan=False)
    number = r"(-?[\d.e+-]+|null)"
    return (re.sub(rf"\[\s+{number},\s+{number}\s+\]", r"[\1, \2]", text) + "\n").encode()
