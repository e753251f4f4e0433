"""``radiopaque calibrate``: value ranges of a model on training images, into its manifest."""

from __future__ import annotations

import json
from pathlib import Path

import typer

from radiopaque.cli.models import find_model, image_files, tensors
from radiopaque.errors import ManifestError


def register(application: typer.Typer) -> None:
    """Add the sub-command."""
    application.command("calibrate")(_calibrate)


def _calibrate(
    model: Path = typer.Argument(help="Folder with a manifest.json, or its ONNX file."),
    images: Path = typer.Argument(help="Folder of training images; never test images."),
    limit: int = typer.Option(500, min=1, help="Use at most this many, evenly spread."),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object."),
) -> None:
    """Measure the smallest and largest value of every tensor and store them in manifest.json.

    A model with ranges compiles without a data set.
    """
    from radiopaque.graph.ranges import calibrate

    source = find_model(model)
    if source.manifest is None:
        raise ManifestError(f"{source.manifest_path} does not describe {source.onnx}; write one")
    files = image_files(images)
    chosen = files[:: -(-len(files) // limit)]
    ranges = calibrate(source.onnx, tensors(chosen, source.preprocessing))
    source.manifest.with_ranges(ranges).save(source.manifest_path)
    if as_json:
        print(json.dumps({"images": len(chosen), "tensors": len(ranges)}))
    else:
        print(f"ranges of {len(ranges)} tensors from {len(chosen)} images: {source.manifest_path}")
