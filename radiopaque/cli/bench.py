"""``radiopaque bench``: the benchmark harness of the checkout."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import typer

import radiopaque
from radiopaque.errors import ConfigError


def register(application: typer.Typer) -> None:
    """Add the sub-command; its options, --help included, are those of the harness."""
    application.command(
        "bench",
        add_help_option=False,
        context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
    )(_bench)


def _bench(context: typer.Context) -> None:
    """Measure engines, networks and models side by side on this machine."""
    root = Path(radiopaque.__file__).resolve().parents[1]
    if not (root / "benchmarks" / "command.py").exists():
        raise ConfigError(
            "the benchmark harness is not part of the installed package; "
            "run this from a checkout, installed with: pip install -e '.[bench]'"
        )
    # CrypTen installs a package of the same name, and so may the current folder have one.
    paths = [str(root), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ |= {"PYTHONPATH": os.pathsep.join(paths), "PYTHONSAFEPATH": "1"}
    # The product does not import its harness: this process becomes the other.
    os.execv(sys.executable, [sys.executable, "-m", "benchmarks", *context.args])  # noqa: S606
