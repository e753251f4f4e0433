"""``radiopaque train``: local and federated training from one configuration file."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import typer

from radiopaque.errors import ConfigError, RadiopaqueError, ResourceError

_NEEDED = ("torch", "opacus", "matplotlib")


def register(application: typer.Typer) -> None:
    """Add the sub-command."""
    application.command("train")(_train)


def _train(
    config: Path = typer.Option(..., help="TOML file; see examples/ and docs/training.md."),
    data: Path = typer.Option(..., help="Folder that holds train/NORMAL and train/PNEUMONIA."),
    output: Path = typer.Option(Path("runs/model"), help="Folder for checkpoint and results."),
    resume: bool = typer.Option(False, "--resume", help="Go on after the last finished round."),
    estimate: bool = typer.Option(False, "--estimate", help="Say how long it takes, and stop."),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object at the end."),
) -> None:
    """Train on one folder, alone or as several sites, with or without differential privacy.

    Writes model.onnx, log.json, curves.png and checkpoint.pt. Interrupt it at any time: --resume
    goes on. JSON keys: output, rounds, best_round, best_validation_auc, stopped, estimate_seconds,
    skipped_images.
    """
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"training needs {', '.join(missing)}; install it with: "
            "pip install 'radiopaque[training]'"
        )
    from training import command
    from training.errors import (
        BudgetSpentError,
        CheckpointError,
        SettingsError,
        TrainingError,
    )

    try:
        result = command.train(
            command.Request(config, data, output, resume, estimate),
            report=lambda line: print(line, file=sys.stderr if as_json else sys.stdout, flush=True),
        )
    except (SettingsError, CheckpointError) as error:
        raise ConfigError(str(error)) from error
    except BudgetSpentError as error:
        raise ResourceError(str(error)) from error
    except TrainingError as error:
        raise RadiopaqueError(str(error)) from error
    if as_json:
        print(json.dumps(result))
