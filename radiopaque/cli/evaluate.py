"""``radiopaque evaluate``: secure inference against onnxruntime on a folder of images."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import typer

from radiopaque.cli.models import find_model, image_files, tensors


def register(application: typer.Typer) -> None:
    """Add the sub-command."""
    application.command("evaluate")(_evaluate)


def _evaluate(
    model: Path = typer.Argument(help="Folder of a model, or ONNX file with its manifest."),
    images: Path = typer.Argument(help="Folder of images; class folders or --labels for accuracy."),
    labels: Path | None = typer.Option(None, help="CSV with columns path,label (class number)."),
    ring: int = typer.Option(32, help="Bits of the ring: 32 or 64."),
    limit: int | None = typer.Option(None, min=1, help="Use at most this many images."),
    margin: float = typer.Option(4.0, min=1.0, help="Headroom over the calibrated ranges."),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object."),
) -> None:
    """Run every image through all three parties in this process and through onnxruntime.

    JSON keys: model, ring_bits, images, labelled, agreement (0..1, same top class or, for
    multi-label models, same side of 0), max_abs_logit_error, mean_abs_logit_error, accuracy,
    macro_auc (secure), plaintext_accuracy, plaintext_macro_auc; null where there are no labels.
    """
    import numpy as np

    from radiopaque.cli.fidelity import Labels, plaintext_session, summarise
    from radiopaque.engine.local import LocalDeployment
    from radiopaque.graph.compile import compile_model

    source = find_model(model)
    spec = source.preprocessing
    manifest = source.manifest
    compiled = compile_model(
        source.onnx,
        manifest=manifest,
        ring_bits=ring,
        margin=margin,
    )
    deployment = LocalDeployment(compiled.plan, compiled.weights)
    plaintext = plaintext_session(source.onnx)
    files = image_files(images)[:limit]
    truth = Labels.read(images, labels, compiled.plan.classes)
    secure, plain = [], []
    with _bar(len(files), as_json) as advance:
        for tensor in tensors(files, spec):
            secure.append(deployment.infer(tensor).outputs.reshape(-1))
            plain.append(plaintext(tensor).reshape(-1))
            advance()
    summary = summarise(np.array(secure), np.array(plain), truth.of(files), compiled.plan.task)
    result = {"model": compiled.plan.name, "ring_bits": ring, **summary}
    if as_json:
        print(json.dumps(result))
        return
    for key, value in result.items():
        shown = f"{value:.6g}" if isinstance(value, float) else value
        print(f"{key:<24} {'-' if value is None else shown}")


@contextmanager
def _bar(total: int, quiet: bool) -> Iterator[Callable[[], None]]:
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress

    console = Console(stderr=True, quiet=quiet)
    columns = (*Progress.get_default_columns(), MofNCompleteColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("secure inference", total=total)
        yield lambda: progress.advance(task)
