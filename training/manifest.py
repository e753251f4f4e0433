"""The JSON manifest: the whole contract, beside the ONNX file, between training and the product."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from training.data import CLASSES, IMAGE_SIZE
from training.evaluate import Evaluation
from training.files import sha256_of, write_atomically

NAME = "pneumonia-resnet18"
VERSION = "1.0.0"
ONNX_FILE = "model.onnx"

INTENDED_USE: dict[str, Any] = {
    "modalities": ["CR", "DX"],
    "body_parts": ["CHEST"],
    "views": ["AP", "PA"],
    "age_years": [1, 5],
    "statement": (
        "Demonstration and research on private inference with frontal chest radiographs of "
        "children of 1 to 5 years. Not a medical device, not for diagnosis."
    ),
}

TRAINING_DATA: dict[str, Any] = {
    "title": (
        "Labeled Optical Coherence Tomography (OCT) and Chest X-Ray Images for Classification, "
        "version 2 (chest X-rays)"
    ),
    "authors": ["Daniel Kermany", "Kang Zhang", "Michael Goldbaum"],
    "doi": "10.17632/rscbjbr9sj.2",
    "article": "Kermany et al., Cell 172 (2018) 1122-1131, doi 10.1016/j.cell.2018.02.010",
    "licence": "CC BY 4.0, https://creativecommons.org/licenses/by/4.0/",
    "population": "children of 1 to 5 years, Guangzhou Women and Children's Medical Center",
    "changes": (
        "resized to 224x224 without keeping the aspect ratio, stored as RGB (R=G=B), "
        "re-encoded as JPEG; read as grey levels, randomly transformed during training"
    ),
}


def build_manifest(
    onnx_path: Path,
    mean: float,
    std: float,
    test: Evaluation,
    validation: Evaluation,
    counts: dict[str, int],
) -> dict[str, Any]:
    """Return the manifest of the model in `onnx_path`.

    `mean` and `std` refer to pixels scaled to 0..1; `counts` has the images trained on, by class.
    """
    return {
        "schema": 1,
        "name": NAME,
        "version": VERSION,
        "onnx": onnx_path.name,
        "sha256": sha256_of(onnx_path),
        "licence": "Apache-2.0",
        "task": "multiclass",
        "classes": list(CLASSES),
        "preprocessing": {
            "channels": 1,
            "height": IMAGE_SIZE,
            "width": IMAGE_SIZE,
            "resize": "stretch",
            "interpolation": "bilinear",
            "mean": [mean],
            "std": [std],
        },
        "intended_use": INTENDED_USE,
        "metrics": {
            "split": "test",
            "split_note": "322 of the 624 images of the official test set; chose nothing",
            **test.as_dict(),
            "validation": {
                "split_note": "cut from the training folder, grouped by patient; chose nothing",
                **validation.as_dict(),
            },
        },
        "training_data": {**TRAINING_DATA, "images": counts},
    }


def write_manifest(manifest: dict[str, Any], path: Path) -> None:
    """Write the manifest as indented UTF-8 JSON."""
    text = json.dumps(manifest, indent=2, ensure_ascii=False, allow_nan=False)
    write_atomically(path, (text + "\n").encode("utf-8"))
