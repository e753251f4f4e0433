"""``radiopaque compile``: ONNX to a public plan and private weights, with the cost in advance."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import typer

from radiopaque.cli.models import ModelSource, find_model, image_files, tensors
from radiopaque.engine.names import EngineName


def register(application: typer.Typer) -> None:
    """Add the sub-command."""
    application.command("compile")(_compile)


def _compile(
    model: Path = typer.Argument(help="ONNX file, or folder with a manifest.json."),
    output: Path = typer.Option(..., "-o", "--output", help="Folder for the compiled model."),
    calibration: Path | None = typer.Option(
        None, help="Folder of training images to measure value ranges on (default: manifest)."
    ),
    ring: int = typer.Option(32, help="Bits of the ring: 32 or 64."),
    batch: int | None = typer.Option(None, min=1, help="Images in one inference (default: 1)."),
    margin: float = typer.Option(4.0, min=1.0, help="Headroom over the calibrated ranges."),
    output_bits: int = typer.Option(
        16, min=1, max=48, help="Bits of each output that are revealed."
    ),
    labels_only: bool = typer.Option(
        False, help="Reveal which classes apply and no score; takes a few more round trips."
    ),
    name: str | None = typer.Option(None, help="Name (default: the manifest's or the file's)."),
    version: str | None = typer.Option(None, help="Version (default: the manifest's, or 1)."),
    engine: EngineName = typer.Option(
        EngineName.COMPILED,
        help="crypten takes models that the compiled engine does not: slower, and results can be "
        "wrong (docs/crypten-engine.md). Ring, margin and output bits do not matter to it.",
    ),
    force: bool = typer.Option(False, help="Replace the compiled model that is in the folder."),
    as_json: bool = typer.Option(False, "--json", help="Print the report as one JSON object."),
) -> None:
    """Compile a model. The plan is public; weights.bin holds the weights and a key: keep it."""
    from radiopaque.cli.reports import cost_dict, print_cost
    from radiopaque.engine.weights_file import write_compiled
    from radiopaque.errors import ConfigError, UnsupportedModelError
    from radiopaque.graph.compile import check_support, compile_model
    from radiopaque.graph.ranges import calibrate

    if not force:
        _check_free(output)
    source = find_model(model)
    if engine is EngineName.CRYPTEN:
        if labels_only:
            raise ConfigError(
                "the crypten engine reveals whole outputs; leave out --labels-only or --engine"
            )
        _compile_crypten(source, output, calibration, batch, name, version, as_json)
        return
    ranges = None
    if calibration is not None:
        # before the images are read: calibrating a model that cannot be compiled wastes time
        problems = check_support(source.onnx, batch)
        if problems:
            raise UnsupportedModelError(problems, _hint(source, batch))
        files = image_files(calibration)
        ranges = calibrate(source.onnx, tensors(files, source.preprocessing))
    try:
        compiled = compile_model(
            source.onnx,
            manifest=source.manifest,
            ranges=ranges,
            ring_bits=ring,
            batch=batch,
            margin=margin,
            output_bits=output_bits,
            labels_only=labels_only,
            name=name,
            version=version,
        )
    except UnsupportedModelError as error:
        raise UnsupportedModelError(error.problems, _hint(source, batch)) from None
    stored = write_compiled(output, compiled.plan, compiled.weights)
    if as_json:
        report = compiled.report.to_dict()
        report["cost"] = cost_dict(compiled.plan)
        report["plan_digest"] = stored.key.id.plan_digest.hex()
        report["output"] = str(output)
        print(json.dumps(report))
        return
    from rich.console import Console

    from radiopaque.graph.report import render

    # A file or a pipe has no width of its own; the table needs more than the usual 80 columns.
    console = Console(width=None if sys.stdout.isatty() else 150)
    render(compiled.report, console)
    print_cost(compiled.plan, console)
    console.print(
        f"plan {stored.key.id.plan_digest.hex()[:16]} written to {output}", highlight=False
    )


def _check_free(output: Path) -> None:
    """Raises ConfigError where a compiled model is there: it may be served."""
    from radiopaque.engine.weights_file import PLAN_FILE, WEIGHTS_FILE
    from radiopaque.errors import ConfigError

    if any((output / name).exists() for name in (PLAN_FILE, WEIGHTS_FILE)):
        raise ConfigError(
            f"{output} holds a compiled model; choose another folder, or replace it with --force: "
            "clinics then have to fetch the new one, and sessions prepared for the old are lost"
        )


def _hint(source: ModelSource, batch: int | None) -> str:
    """What to say where the other engine might take the model."""
    from radiopaque.engine.crypten.frontend import translate
    from radiopaque.errors import ModelError

    try:
        translate(source.onnx, batch)
    except ModelError:
        return ""
    return (
        "--engine crypten has all of its operators: slower, and with results that can be wrong "
        "(docs/crypten-engine.md)"
    )


def _compile_crypten(
    source: ModelSource,
    output: Path,
    calibration: Path | None,
    batch: int | None,
    name: str | None,
    version: str | None,
    as_json: bool,
) -> None:
    """The same for CrypTen, checked on the first calibration image or on a pattern."""
    from radiopaque.cli.reports import crypten_dict, print_crypten
    from radiopaque.engine.crypten.compile import compile_crypten
    from radiopaque.engine.crypten.weights_file import write_compiled

    image = None
    if calibration is not None:
        image = next(tensors(image_files(calibration)[:1], source.preprocessing))
    compiled = compile_crypten(
        source.onnx,
        manifest=source.manifest,
        image=image,
        batch=batch,
        name=name,
        version=version,
    )
    stored = write_compiled(output, compiled.plan, compiled.constants)
    report = crypten_dict(compiled)
    if as_json:
        report["plan_digest"] = stored.id.plan_digest.hex()
        report["output"] = str(output)
        print(json.dumps(report))
        return
    print_crypten(report)
    print(f"plan {stored.id.plan_digest.hex()[:16]} written to {output}")
