"""``manifest.json``: what stands beside an ONNX file, and all that training tells the product.

Keys: schema (1), name, version, onnx (file name), sha256, licence, task, classes, preprocessing,
and optionally description, intended_use, metrics, training_data, training (how; epsilon and delta
if it was private), ranges ({tensor: [smallest, largest]}, measured on images). Any other key is an
error. Nothing but ranges, and what goes into the plan, is looked at here.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from radiopaque.errors import ManifestError
from radiopaque.files import open_regular, write_atomically
from radiopaque.graph.plan import IntendedUse, Preprocessing, Task

MANIFEST_FILE = "manifest.json"
MAX_MANIFEST_BYTES = 16 << 20
PUBLIC_FILE_MODE = 0o644
HASH_BLOCK = 1 << 20

Name = Annotated[str, Field(min_length=1, max_length=200)]
Size = Annotated[int, Field(ge=1, le=65_536)]
Range = tuple[float, float]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class _Preprocessing(_Strict):
    channels: Size
    height: Size
    width: Size
    resize: Literal["stretch", "fit", "crop"]
    interpolation: Literal["bilinear", "bicubic", "nearest"]
    mean: tuple[float, ...]
    std: tuple[Annotated[float, Field(gt=0)], ...]


class _IntendedUse(_Strict):
    modalities: tuple[str, ...] = ()
    body_parts: tuple[str, ...] = ()
    views: tuple[str, ...] = ()
    age_years: Range | None = None
    statement: str = ""


class _Document(_Strict):
    schema_: Annotated[Literal[1], Field(alias="schema")]
    name: Name
    version: Name
    onnx: Name
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    licence: str
    task: Task
    classes: tuple[Name, ...]
    preprocessing: _Preprocessing
    intended_use: _IntendedUse = _IntendedUse()
    description: str = ""
    metrics: dict[str, Any] = Field(default_factory=dict)
    training_data: dict[str, Any] = Field(default_factory=dict)
    training: dict[str, Any] = Field(default_factory=dict)
    ranges: dict[str, Range] = Field(default_factory=dict)


@dataclass(frozen=True)
class Manifest:
    """A checked manifest. ``folder`` is where it was read from; the ONNX file lies beside it."""

    name: str
    version: str
    onnx: str
    sha256: str
    licence: str
    task: Task
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    intended_use: IntendedUse = field(default_factory=IntendedUse)
    description: str = ""
    metrics: Mapping[str, Any] = field(default_factory=dict)
    training_data: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    ranges: Mapping[str, Range] = field(default_factory=dict)
    folder: Path = Path()

    @property
    def onnx_path(self) -> Path:
        """The ONNX file."""
        return self.folder / self.onnx

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read ``manifest.json`` (or the one in a folder) and check the ONNX file's SHA-256.

        Raises ManifestError.
        """
        file = path / MANIFEST_FILE if path.is_dir() else path
        manifest = cls.parse(_read(file), file.parent)
        actual = file_digest(manifest.onnx_path)
        if actual != manifest.sha256:
            raise ManifestError(
                f"{manifest.onnx_path} has SHA-256 {actual}, {file.name} says {manifest.sha256}: "
                "one of the two belongs to another version of the model; replace it"
            )
        return manifest

    @classmethod
    def parse(cls, text: bytes, folder: Path) -> Self:
        """Check the bytes of a manifest, not the ONNX file. Raises ManifestError."""
        try:
            content = json.loads(text, object_pairs_hook=_no_duplicates)
            document = _Document.model_validate(content)
        except ValidationError as error:
            raise ManifestError(f"{MANIFEST_FILE} is wrong: {_explain(error)}") from None
        except (ValueError, RecursionError) as error:
            raise ManifestError(f"{MANIFEST_FILE} is no valid JSON: {error}") from error
        _check(document)
        values = {name: getattr(document, name) for name in _Document.model_fields}
        del values["schema_"]
        values["preprocessing"] = Preprocessing(**dict(document.preprocessing))
        values["intended_use"] = IntendedUse(**dict(document.intended_use))
        return cls(**values, folder=folder)

    def with_ranges(self, ranges: Mapping[str, Range]) -> Self:
        """The same manifest with calibrated ranges."""
        return replace(self, ranges=dict(ranges))

    def save(self, path: Path) -> None:
        """Write as JSON; the file exists whole or not at all. Raises StoreError."""
        content: dict[str, Any] = {"schema": 1, **asdict(self)}
        del content["folder"]
        for key in ("description", "metrics", "training_data", "training", "ranges"):
            if not content[key]:
                del content[key]
        if "ranges" in content:
            content["ranges"] = dict(sorted(self.ranges.items()))
        text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
        # Arrays of numbers on one line each: there are hundreds of ranges.
        text = re.sub(r"\[\s+(-?[\d.e+-]+),\s+(-?[\d.e+-]+)\s+\]", r"[\1, \2]", text)
        write_atomically(path, (text + "\n").encode(), PUBLIC_FILE_MODE)


def file_digest(path: Path) -> str:
    """SHA-256 of a file in hexadecimal. Raises ManifestError where it cannot be read."""
    digest = hashlib.sha256()
    try:
        with open_regular(path) as file:
            while block := file.read(HASH_BLOCK):
                digest.update(block)
    except OSError as error:
        raise ManifestError(
            f"cannot read {path}, which {MANIFEST_FILE} names: {error.strerror}; put it there"
        ) from error
    return digest.hexdigest()


def _read(file: Path) -> bytes:
    try:
        with open_regular(file) as stream:
            text = stream.read(MAX_MANIFEST_BYTES + 1)
    except OSError as error:
        raise ManifestError(
            f"cannot read {file}: {error.strerror}; every model needs a {MANIFEST_FILE} beside it"
        ) from error
    if len(text) > MAX_MANIFEST_BYTES:
        raise ManifestError(
            f"{file} is larger than {MAX_MANIFEST_BYTES} bytes; is it the right file?"
        )
    return text


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ManifestError(f"{MANIFEST_FILE} has the key {key!r} twice; keep one")
        found[key] = value
    return found


def _explain(error: ValidationError) -> str:
    lines = []
    for entry in error.errors(include_url=False, include_input=False):
        key = ".".join(str(part) for part in entry["loc"]) or "the file"
        lines.append(f"{key}: {entry['msg']}")
    return "; ".join(lines)


def _check(document: _Document) -> None:
    """Rules that concern more than one key."""
    if Path(document.onnx).name != document.onnx or document.onnx in (".", ".."):
        raise ManifestError(
            f"{MANIFEST_FILE}: onnx must name a file in the same folder, not {document.onnx!r}"
        )
    preprocessing = document.preprocessing
    for key in ("mean", "std"):
        values = getattr(preprocessing, key)
        if len(values) != preprocessing.channels:
            raise ManifestError(
                f"{MANIFEST_FILE}: preprocessing.{key} has {len(values)} numbers for "
                f"{preprocessing.channels} channels; give one for each"
            )
    if document.task != "raw" and not document.classes:
        raise ManifestError(f"{MANIFEST_FILE}: a {document.task} task needs its classes")
    if len(set(document.classes)) != len(document.classes):
        raise ManifestError(f"{MANIFEST_FILE}: two classes have the same name")
    for name, (low, high) in document.ranges.items():
        if low > high:
            raise ManifestError(
                f"{MANIFEST_FILE}: the range of {name!r} is [{low:g}, {high:g}], smallest first"
            )
