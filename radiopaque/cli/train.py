"""``radiopaque train``: local and federated training from one configuration file."""

from __future__ import annotations

import importlib.util
import os
import sys

import typer

from radiopaque.errors import ConfigError


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
    # The product and its companion never share a process: this one becomes the other, so that
    # Ctrl-C reaches the training itself.
    words = [sys.executable, "-m", "training.command", *context.args]
    os.execv(sys.executable, words)  # noqa: S606
