"""``radiopaque calibrate``: value ranges of a model on images, into its manifest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import typer

from radiopaque.cli.models import find_model, image_files, tensors
from radiopaque.errors import ManifestError

LIMIT = 500


def register(application: typer.Typer) -> None:
    """Add the sub-command."""
    application.command("calibrate")(_calibrate)


class Calibrated(NamedTuple):
    """How many images gave the ranges of how many tensors, and where they are."""

    images: int
    tensors: int
    manifest: Path


def calibrate_model(model: Path, files: list[Path], limit: int = LIMIT) -> Calibrated:
    """Store the ranges on at most ``limit`` of the files, evenly spread, in the manifest.

    Raises ModelError, ImageError or StoreError.
    """
    from radiopaque.graph.ranges import calibrate

    source = find_model(model)
    if source.manifest is None:
        raise ManifestError(f"{source.manifest_path} does not describe {source.onnx}; write one")
    chosen = files[:: -(-len(files) // limit)]
    ranges = calibrate(source.onnx, tensors(chosen, source.preprocessing))
    source.manifest.with_ranges(ranges).save(source.manifest_path)
    return Calibrated(len(chosen), len(ranges), source.manifest_path)


def _calibrate(
    model: Path = typer.Argument(help="Folder with a manifest.json, or its ONNX file."),
    images: Path = typer.Argument(
        help="Folder of training images, never of test images; of public ones for a private model."
    ),
    limit: int = typer.Option(LIMIT, min=1, help="Use at most this many, evenly spread."),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object."),
) -> None:
    """Measure the smallest and largest value of every tensor and store them in manifest.json.

    A model with ranges compiles without a data set.
    """
    done = calibrate_model(model, image_files(images), limit)
    if as_json:
        print(json.dumps({"images": done.images, "tensors": done.tensors}))
    else:
        print(f"ranges of {done.tensors} tensors from {done.images} images: {done.manifest}")
