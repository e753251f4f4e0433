"""What `radiopaque train` does: read, estimate, train, draw, export.

Exit codes are those of `radiopaque`: 2 configuration and data, 7 a limit (a privacy budget), 1 for
other failures of training, 130 interrupted.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from training.errors import BudgetSpentError, CheckpointError, SettingsError, TrainingError
from training.progress import Bar, Watch, unwatched

ONNX_FILE = "model.onnx"
CURVES_FILE = "curves.png"
_NEEDED = ("torch", "opacus", "matplotlib", "pydantic", "cryptography", "onnx", "onnxruntime")
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


def train(request: Request, report: Report = print, watch: Watch = unwatched) -> Result:
    """Run the command; `report` gets what a person wants to read, line by line.

    `watch` sees the steps of what takes long.

    Raises:
        TrainingError: see the message; a checkpoint of finished rounds is kept.
    """
    from training.config import load_settings
    from training.curves import draw
    from training.estimate import describe_seconds, estimate_seconds
    from training.evaluate import normalise
    from training.export import ExportError, export
    from training.federated import build_sites, run
    from training.intake import read_folder
    from training.networks import PIXEL_STATISTICS, export_ready
    from training.partition import describe

    settings = load_settings(request.config)
    intake = read_folder(request.data, settings.data, settings.seed, watch)
    for message in intake.skipped[:_SHOWN_SKIPPED]:
        report(f"skipped: {message}")
    if intake.skipped:
        report(f"{len(intake.skipped)} unreadable images skipped")
    report(
        f"{len(intake.training.samples)} images to train on, {len(intake.validation.samples)} to "
        "validate on (other patients)"
    )
    sites = build_sites(settings, intake.training, watch)
    for line in describe(settings, intake.training.samples):
        report(line)
    seconds = estimate_seconds(settings, intake, watch)
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
            settings,
            intake,
            request.output,
            resume=request.resume,
            report=report,
            sites=sites,
            watch=watch,
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
        export(export_ready(outcome.model), pixels, request.output / ONNX_FILE)
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


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of `radiopaque train`."""
    parser = argparse.ArgumentParser(
        prog="radiopaque train",
        description=(
            "Train on one folder, alone or as several sites, with or without differential privacy. "
            "Writes model.onnx, log.json, curves.png and checkpoint.pt; interrupt it at any time."
        ),
        epilog=(
            "JSON keys: output, rounds, best_round, best_validation_auc, stopped, "
            "estimate_seconds, skipped_images."
        ),
    )
    add = parser.add_argument
    add("--config", type=Path, required=True, help="TOML file; see examples/ and docs/training.md")
    add("--data", type=Path, required=True, help="folder that holds train/NORMAL and the like")
    add("--output", type=Path, default=Path("runs/model"), help="folder (default: %(default)s)")
    add("--resume", action="store_true", help="go on after the last finished round")
    add("--estimate", action="store_true", help="say how long it would take, and stop")
    add("--json", action="store_true", help="print one JSON object at the end, the rest on stderr")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    options = build_parser().parse_args(arguments)
    stream = sys.stderr if options.json else sys.stdout
    request = Request(
        options.config, options.data, options.output, options.resume, options.estimate
    )
    bar = Bar(shown=not options.json and sys.stderr.isatty())

    def report(line: str) -> None:
        bar.clear()
        print(line, file=stream, flush=True)

    try:
        missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
        if missing:
            raise SettingsError(
                f"training needs {', '.join(missing)}; install it with: "
                "pip install 'radiopaque[training]'"
            )
        result = train(request, report, bar)
    except TrainingError as error:
        bar.clear()
        if options.json:
            print(json.dumps({"error": type(error).__name__, "message": str(error)}))
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        if isinstance(error, BudgetSpentError):
            return 7
        return 2 if isinstance(error, SettingsError | CheckpointError) else 1
    except KeyboardInterrupt:
        return 130
    finally:
        bar.clear()
    if options.json:
        print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
