"""``radiopaque config``: commented examples."""

from __future__ import annotations

import typer

from radiopaque.certificates import Role


def register(application: typer.Typer) -> None:
    """Add the sub-command."""
    group = typer.Typer(help="Print commented configuration files.")
    group.callback()(_group)
    group.command("example")(_example)
    application.add_typer(group, name="config")


def _group() -> None:
    """Configuration files."""


def _example(role: Role = typer.Argument(help="Which party.")) -> None:
    """Print a commented configuration of one party."""
    from radiopaque.config import example

    print(example(role), end="")
