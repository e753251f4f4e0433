"""``radiopaque train``: local and federated training, and the value ranges of what comes out.

The companion trains in a process of its own: it and the product never share one. It hands over, in
a file, where the model is and which images are fit to measure its ranges on.
"""

from __future__ import annotations

import importlib.util
import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import typer

from radiopaque.errors import ConfigError, RadiopaqueError

_PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def register(application: typer.Typer) -> None:
    """Add the sub-command; its options, --help included, are those of the companion."""
    application.command(
        "train",
        add_help_option=False,
        context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
    )(_train)


def _train(context: typer.Context) -> None:
    """Train a model, alone or as several sites, with or without differential privacy."""
    if importlib.util.find_spec("training") is None:
        raise ConfigError("the training companion is not installed; install radiopaque[training]")
    with tempfile.TemporaryDirectory(prefix="radiopaque-train-") as folder:
        handed = Path(folder) / "result.json"
        words = [*context.args, "--hand-over", str(handed)]
        code = _run([sys.executable, "-P", "-m", "training.command", *words])
        if code != 0 or not handed.exists():  # such as for --help
            raise typer.Exit(code)
        result: dict[str, Any] = json.loads(handed.read_text(encoding="utf-8"))
    as_json = "--json" in context.args
    if "calibration" in result:
        images = [Path(path) for path in result.pop("calibration")]
        result["ranges"] = _calibrate(Path(result["output"]), images, as_json)
    if as_json:
        print(json.dumps(result))


def _run(words: Sequence[str]) -> int:
    """Run a process as if it were this one: its signals, streams and exit code."""
    child: subprocess.Popen[bytes] | None = None
    early: list[int] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        if child is None:
            early.append(number)
        else:
            child.send_signal(number)

    # A signal that is ignored here, as nohup does it, stays ignored, there as well.
    heeded = [number for number in _PASSED_ON if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, pass_on) for number in heeded}
    try:
        child = subprocess.Popen(words)
        for number in early:
            child.send_signal(number)
        code = child.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return code if code >= 0 else 128 - code


def _calibrate(model: Path, images: list[Path], as_json: bool) -> int:
    """Store value ranges in the manifest; return of how many tensors.

    ``images`` are files or one folder.
    """
    from radiopaque.cli.calibrate import calibrate_model
    from radiopaque.cli.models import image_files

    folder = images[0] if images[0].is_dir() else None
    try:
        files = images if folder is None else image_files(folder)
        done = calibrate_model(model, files)
    except RadiopaqueError:
        print(f"the model in {model} is complete, but has no value ranges yet", file=sys.stderr)
        raise
    print(
        f"value ranges of {done.tensors} tensors from {done.images} "
        f"{'validation images' if folder is None else f'images of {folder}'}; compile it with: "
        f"radiopaque compile {model} -o compiled",
        file=sys.stderr if as_json else sys.stdout,
    )
    return done.tensors
