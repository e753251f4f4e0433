"""``radiopaque bench``: the benchmark harness."""

from __future__ import annotations

import importlib.util
import os
import sys

import typer

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
    if importlib.util.find_spec("benchmarks") is None:
        raise ConfigError("the benchmark harness is not installed; install radiopaque[bench]")
    # The product does not import its harness: this process becomes the other.
    os.execv(sys.executable, [sys.executable, "-m", "benchmarks", *context.args])  # noqa: S606
