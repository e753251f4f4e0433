"""``radiopaque attack``: what an attacker gets out of our own training."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import typer

from radiopaque.errors import ConfigError


def register(application: typer.Typer) -> None:
    """Add the sub-command; its options, --help included, are those of the companion."""
    application.command(
        "attack",
        add_help_option=False,
        context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
    )(_attack)


def _attack(context: typer.Context) -> None:
    """Attack our own training: gradient inversion and a privacy audit."""
    if importlib.util.find_spec("training") is None:
        raise ConfigError("the training companion is not installed; install radiopaque[training]")
    # A process of its own: the product and its training companion never share one.
    words = [sys.executable, "-P", "-m", "training.attack", *context.args]
    done = subprocess.run(words, check=False)
    raise typer.Exit(done.returncode)
