"""What `radiopaque train` does: read, estimate, train, draw, export."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from training.config import load_settings
from training.curves import draw
from training.errors import TrainingError
from training.estimate import describe_seconds, estimate_seconds
from training.evaluate import normalise
from training.export import ExportError, export
from training.federated import build_sites, run
from training.intake import read_folder
from training.networks import PIXEL_STATISTICS, export_ready
from training.partition import describe

ONNX_FILE = "model.onnx"
CURVES_FILE = "curves.png"
_SHOWN_SKIPPED = 5
_EXPORT_CHECK_IMAGES = 16

Report = Callable[[str], None]
Result = dict[str, str | int | float | None]


@dataclass(frozen=True, slots=True)
class Request:
    """The options of the command."""

    config: Path
    data: Path
    output: Path
    resume: bool = False
    only_estimate: bool = False


def train(request: Request, report: Report = print) -> Result:
    """Run the command; `report` gets what a person wants to read, line by line.

    Raises:
        TrainingError: see the message; a checkpoint of finished rounds is kept.
    """
    settings = load_settings(request.config)
    intake = read_folder(request.data, settings.data, settings.seed)
    for message in intake.skipped[:_SHOWN_SKIPPED]:
        report(f"skipped: {message}")
    if intake.skipped:
        report(f"{len(intake.skipped)} unreadable images skipped")
    report(
        f"{len(intake.training.samples)} images to train on, {len(intake.validation.samples)} to "
        "validate on (other patients)"
    )
    sites = build_sites(settings, intake.training)
    for line in describe(settings, intake.training.samples):
        report(line)
    seconds = estimate_seconds(settings, intake)
    report(f"about {describe_seconds(seconds)} for {settings.training.rounds} rounds")
    result: Result = {
        "output": str(request.output),
        "estimate_seconds": round(seconds, 1),
        "skipped_images": len(intake.skipped),
    }
    if request.only_estimate:
        return result
    try:
        outcome = run(
            settings, intake, request.output, resume=request.resume, report=report, sites=sites
        )
    except KeyboardInterrupt:
        report(f"interrupted; go on with --resume --output {request.output}")
        raise
    report(outcome.stopped)
    progress = outcome.progress
    if not progress.best_round:
        raise TrainingError(f"not a single round was finished: {outcome.stopped}")
    draw(progress.records, request.output / CURVES_FILE)
    mean, std = PIXEL_STATISTICS[settings.model.name]
    pixels = normalise(intake.validation.images[:_EXPORT_CHECK_IMAGES], mean, std)
    try:
        export(export_ready(outcome.model), pixels.astype(np.float32), request.output / ONNX_FILE)
    except ExportError as error:
        raise TrainingError(f"the network cannot be exported: {error}") from error
    report(
        f"best round {progress.best_round}: validation AUC {progress.best_auc:.4f}; wrote "
        f"{request.output / ONNX_FILE}, {CURVES_FILE}"
    )
    return {
        **result,
        "rounds": len(progress.records),
        "best_round": progress.best_round,
        "best_validation_auc": progress.best_auc,
        "stopped": outcome.stopped,
    }
