"""``radiopaque federation``: training together from different machines."""

from __future__ import annotations

import importlib.util
import os
import sys

import typer

from radiopaque.errors import ConfigError


def register(application: typer.Typer) -> None:
    """Add the sub-command; its options, --help included, are those of the companion."""
    application.command(
        "federation",
        add_help_option=False,
        context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
    )(_federation)


def _federation(context: typer.Context) -> None:
    """Train together from different machines: keys, the list of members, coordinator, hospitals."""
    if importlib.util.find_spec("training") is None:
        raise ConfigError(
            "the training companion is not installed; install radiopaque[training,flower]"
        )
    # The product and its companion never share a process: this one becomes the other, so that
    # signals reach the training itself.
    words = [sys.executable, "-P", "-m", "training.flower", *context.args]
    os.execv(sys.executable, words)  # noqa: S606
