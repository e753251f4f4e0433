"""``radiopaque usage``: what each caller used."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

import typer

from radiopaque.certificates import Role

if TYPE_CHECKING:
    from radiopaque.operations.metering import Usage

_WIDTH: Final = 160


def register(application: typer.Typer) -> None:
    """Add the sub-command."""
    application.command("usage")(_usage)


def _usage(
    role: Role = typer.Argument(help="crypto-provider or model-owner."),
    config: Path = typer.Option(help="Its TOML file."),
    first: datetime | None = typer.Option(None, formats=["%Y-%m-%d"], help="First day, UTC."),
    last: datetime | None = typer.Option(None, formats=["%Y-%m-%d"], help="Last day, UTC."),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object."),
) -> None:
    """What each caller used: calls, sessions, bytes, CPU seconds.

    With --json: {"usage": [{...} for each caller, method and model]}. Works while the party
    serves, and while it does not.
    """
    from radiopaque.cli.settings import serving_settings
    from radiopaque.errors import ConfigError
    from radiopaque.operations.metering import read_usage

    if first and last and last < first:
        raise ConfigError("--last lies before --first; exchange them")

    found = read_usage(
        serving_settings(role, config).store,
        first.date() if first else None,
        last.date() if last else None,
    )
    if as_json:
        print(json.dumps({"usage": [asdict(one) for one in found]}))
    else:
        _show(found)


def _show(found: list[Usage]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from radiopaque.cli.data_owner import printable

    table = Table(box=SIMPLE_HEAD, padding=0, pad_edge=False)
    for name in ("caller", "model"):
        table.add_column(name, overflow="fold")
    for name in ("method", "calls", "sessions", "in MB", "out MB", "CPU s"):
        table.add_column(name, no_wrap=True)
    for one in found:
        table.add_row(
            # names come from certificates and models: no markup, nothing that steers a terminal
            Text(printable(f"{one.role} {one.caller}")),
            Text(printable(f"{one.model} {one.version}")),
            one.method,
            f"{one.calls}" + (f" ({one.failed} failed)" if one.failed else ""),
            str(one.sessions),
            *(f"{size / 1e6:.1f}" for size in (one.received_bytes, one.sent_bytes)),
            f"{one.cpu_seconds:.1f}",
        )
    # a file or a pipe has no edge to fold at
    Console(width=None if sys.stdout.isatty() else _WIDTH).print(table)
