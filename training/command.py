"""What `radiopaque train` does: read, estimate, train, publish.

What comes after, measuring value ranges, is the product's work: it gets the result, with the images
that are fit for it, in a file.

Exit codes are those of `radiopaque`: 2 configuration and data, 7 a limit (a privacy budget), 1 for
other failures of training, 130 interrupted.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.errors import BudgetSpentError, CheckpointError, SettingsError, TrainingError
from training.progress import Bar, Watch, unwatched

if TYPE_CHECKING:
    from training.config import TrainingSettings
    from training.federated import Outcome
    from training.intake import Intake
    from training.publish import Publication
    from training.site import Site

CURVES_FILE = "curves.png"
_NEEDED = ("torch", "opacus", "matplotlib", "pydantic", "cryptography", "onnx", "onnxruntime")
_SHOWN_SKIPPED = 5
_CALIBRATION_IMAGES = 500

Report = Callable[[str], None]
Result = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Request:
    """The options of the command."""

    config: Path
    data: Path
    output: Path
    resume: bool = False
    only_estimate: bool = False
    calibrate: Path | None = None


def train(request: Request, report: Report = print, watch: Watch = unwatched) -> Result:
    """Run the command; `report` gets what a person wants to read, line by line.

    `watch` sees the steps of what takes long.

    Raises:
        TrainingError: see the message; a checkpoint of finished rounds is kept.
    """
    from training.checkpoint import rounds_done
    from training.config import load_settings
    from training.curves import draw
    from training.estimate import describe_seconds, estimate_seconds
    from training.federated import run
    from training.files import prepare_folder
    from training.intake import read_folder
    from training.partition import describe
    from training.tensorboard import require_package

    settings = load_settings(request.config)
    if settings.output.tensorboard:
        require_package()
    if settings.search:
        raise SettingsError(
            "[search] has no effect without --search N; add that, or take the section out"
        )
    _check_calibration(request, settings.privacy is not None)
    done = rounds_done(request.output, request.resume)
    if not request.only_estimate:
        prepare_folder(request.output)
    intake = read_folder(request.data, settings.data, settings.seed, watch)
    for message in intake.skipped[:_SHOWN_SKIPPED]:
        report(f"skipped: {message}")
    if intake.skipped:
        report(f"{len(intake.skipped)} unreadable images skipped")
    report(
        f"{len(intake.training.samples)} images to train on, {len(intake.validation.samples)} to "
        "validate on (other patients)"
    )
    sites = _sites(settings, intake, request.resume, report, watch)
    for line in describe(settings, intake.training.samples):
        report(line)
    seconds = estimate_seconds(settings, intake, watch, done)
    report(f"about {describe_seconds(seconds)} for {settings.training.rounds - done} rounds")
    result: Result = {
        "output": str(request.output),
        "estimate_seconds": round(seconds, 3),
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
        report(outcome.stopped)
        progress = outcome.progress
        if not progress.best_round:
            raise TrainingError(
                f"no round of the final image size was finished, so there is nothing to export: "
                f"{outcome.stopped}"
            )
        draw(progress.records, request.output / CURVES_FILE)
        publication = _publish(request, settings, intake, outcome, report)
    except KeyboardInterrupt:
        report(f"interrupted; go on with --resume --output {request.output}")
        raise
    for line in publication.lines():
        report(line)
    report(
        f"wrote the network of round {progress.best_round} with manifest.json, card.md and its "
        f"figures to {request.output}"
    )
    if outcome.failed is not None:
        raise outcome.failed
    figures = publication.manifest["metrics"]
    return {
        **result,
        "rounds": len(progress.records),
        "best_round": progress.best_round,
        "best_validation_auc": progress.best_auc,
        "test_auc": figures["test"]["macro_auc"] if "test" in figures else None,
        "stopped": outcome.stopped,
        "private": settings.privacy is not None,
        "calibration": _calibration(request, intake),
    }


def _sites(
    settings: TrainingSettings, intake: Intake, resume: bool, report: Report, watch: Watch
) -> list[Site]:
    """The sites; none if a run is to be ended whose budgets allow no more rounds."""
    from training.federated import build_sites

    try:
        return build_sites(settings, intake.training, watch)
    except BudgetSpentError as error:
        if not resume:
            raise
        report(str(error))
        return []


def _publish(
    request: Request, settings: TrainingSettings, intake: Intake, outcome: Outcome, report: Report
) -> Publication:
    from training.networks import PIXEL_STATISTICS, export_ready
    from training.partition import sites_of
    from training.provenance import provenance_of
    from training.publish import patients_of, publish, read_test

    test, message = read_test(request.data, settings.data)
    if message:
        report(f"test folder: {message}")
    samples = sites_of(settings, intake.training.samples)
    return publish(
        export_ready(outcome.model),
        provenance_of(settings, outcome.progress, outcome.stopped, samples),
        PIXEL_STATISTICS[settings.model.name],
        request.output,
        validation=intake.validation,
        test=test,
        patients=patients_of(intake.training, intake.validation),
    )


def _check_calibration(request: Request, private: bool) -> None:
    """Refuse a folder before training that could not, or must not, be used after it."""
    from training.intake import find_root

    if request.calibrate is None:
        return
    if not request.calibrate.is_dir():
        raise SettingsError(f"there is no folder {request.calibrate}; name one with images")
    chosen, root = request.calibrate.resolve(), find_root(request.data).resolve()
    if private and _overlap(chosen, root / "train"):
        raise SettingsError(
            f"{request.calibrate} has the images of private sites: value ranges are not noised, so "
            "they would tell of single images; name a folder with public images, or leave "
            "--calibrate out"
        )
    if _overlap(chosen, root / "test"):
        raise SettingsError(
            f"{request.calibrate} has test images, which must choose nothing; name a folder with "
            "other images, or leave --calibrate out"
        )


def _overlap(folder: Path, other: Path) -> bool:
    return folder == other or folder in other.parents or other in folder.parents


def _calibration(request: Request, intake: Intake) -> list[str]:
    """Images to measure value ranges on: a folder that was named, or validation images.

    Ranges are not noised, so the images of private sites are not among them. They must hold for
    images that nobody has seen yet, so a handful would be too few.
    """
    if request.calibrate is not None:
        return [str(request.calibrate.resolve())]
    samples = intake.validation.samples
    chosen = samples[:: -(-len(samples) // _CALIBRATION_IMAGES)]
    return [str(sample.path.resolve()) for sample in chosen]


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of `radiopaque train`."""
    parser = argparse.ArgumentParser(
        prog="radiopaque train",
        description=(
            "Train on one folder, alone or as several sites, with or without differential privacy. "
            "Writes a model folder that can be compiled and served: model.onnx, manifest.json, "
            "card.md and figures. Interrupt it at any time."
        ),
        epilog=(
            "JSON keys: output, rounds, best_round, best_validation_auc, test_auc (null without "
            "DATA/test), stopped, private, estimate_seconds, skipped_images, ranges (tensors "
            "whose range is in the manifest)."
        ),
    )
    add = parser.add_argument
    add("--config", type=Path, required=True, help="TOML file; see examples/ and docs/training.md")
    add("--data", type=Path, required=True, help="folder that holds train/NORMAL and the like")
    add("--output", type=Path, default=Path("runs/model"), help="folder (default: %(default)s)")
    add("--resume", action="store_true", help="go on after the last finished round")
    add("--estimate", action="store_true", help="say how long it would take, and stop")
    add(
        "--calibrate",
        type=Path,
        metavar="DIR",
        help=(
            "images to measure the compiler's value ranges on (default: validation images); never "
            "test images, nor those of private sites"
        ),
    )
    add(
        "--search",
        type=int,
        metavar="N",
        help="try N settings within the section [search], and write the best to best.toml",
    )
    add("--json", action="store_true", help="print one JSON object at the end, the rest on stderr")
    # For `radiopaque train`, which goes on from there.
    add("--hand-over", type=Path, help=argparse.SUPPRESS)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    options = build_parser().parse_args(arguments)
    stream = sys.stderr if options.json else sys.stdout
    request = Request(
        options.config,
        options.data,
        options.output,
        options.resume,
        options.estimate,
        options.calibrate,
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
        result = (
            _search(options, report, bar)
            if options.search is not None
            else train(request, report, bar)
        )
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
    if options.hand_over is not None:
        options.hand_over.write_text(json.dumps(result), encoding="utf-8")
    elif options.json:
        print(json.dumps(result))
    return 0


def _search(options: argparse.Namespace, report: Report, watch: Watch) -> Result:
    from training.search import search

    if options.calibrate is not None:
        raise SettingsError("--calibrate has no effect with --search; take it out")
    return search(
        options.config,
        options.data,
        options.output,
        options.search,
        resume=options.resume,
        only_estimate=options.estimate,
        report=report,
        watch=watch,
    )


def _interrupt_once(number: int, frame: object) -> None:
    """A second Ctrl-C, or one that two processes pass on, must not spoil what the first starts."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise KeyboardInterrupt


if __name__ == "__main__":
    if signal.getsignal(signal.SIGINT) == signal.default_int_handler:  # it may be ignored
        signal.signal(signal.SIGINT, _interrupt_once)
    sys.exit(main())
