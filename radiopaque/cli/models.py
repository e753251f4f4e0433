"""Finding a model with its manifest, and the images of a folder."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from radiopaque.errors import ImageError, ManifestError, ModelFileError
from radiopaque.graph.manifest import MANIFEST_FILE, Manifest
from radiopaque.graph.plan import Preprocessing

IMAGE_SUFFIXES = frozenset({".dcm", ".dicom", ".png", ".jpg", ".jpeg"})


@dataclass(frozen=True)
class ModelSource:
    """An ONNX file and, where there is one, the manifest beside it."""

    onnx: Path
    manifest: Manifest | None
    manifest_path: Path

    @property
    def preprocessing(self) -> Preprocessing:
        """Raises ManifestError for a model without one."""
        if self.manifest is None:
            raise ManifestError(
                f"there is no {self.manifest_path} for {self.onnx.name}; write one that states its "
                "preprocessing, as docs/onnx-support.md describes"
            )
        return self.manifest.preprocessing


def find_model(path: Path) -> ModelSource:
    """A folder with manifest.json, or an ONNX file with manifest.json beside it or not.

    Raises ModelFileError or ManifestError.
    """
    folder = path if path.is_dir() else path.parent
    manifest_path = folder / MANIFEST_FILE
    manifest = Manifest.load(manifest_path) if manifest_path.exists() else None
    if path.is_dir():
        if manifest is None:
            raise ManifestError(f"{folder} holds no manifest.json; name the ONNX file instead")
        return ModelSource(manifest.onnx_path, manifest, manifest_path)
    if not path.exists():
        raise ModelFileError(f"there is no file {path}")
    if manifest is not None and manifest.onnx_path.resolve() != path.resolve():
        manifest = None
    return ModelSource(path, manifest, manifest_path)


def image_files(directory: Path) -> list[Path]:
    """All image files below a folder, sorted. Raises ImageError where there are none."""
    files = sorted(p for p in directory.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
    if not files:
        raise ImageError(f"no DICOM, PNG or JPEG files below {directory}; name another folder")
    return files


def tensors(files: list[Path], spec: Preprocessing) -> Iterator[NDArray[np.float32]]:
    """Preprocessed images [1, c, h, w], one at a time."""
    from data_owner.images import read_image
    from data_owner.preprocess import preprocess

    for file in files:
        yield preprocess(read_image(file), spec)[np.newaxis]
