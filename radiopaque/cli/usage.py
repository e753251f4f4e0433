"""``radiopaque usage``: what each caller used."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from radiopaque.certificates import Role

if TYPE_CHECKING:
    from radiopaque.operations.metering import Usage


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

    With --json: {"usage": [one object for each caller, method and model]}. Works while the party
    serves, and while it does not.
    """
    from radiopaque.cli.settings import serving_settings
    from radiopaque.operations.metering import read_usage

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
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from radiopaque.cli.data_owner import printable

    table = Table("caller", "method", "model", "calls", "sessions", "in MB", "out MB", "CPU s")
    for one in found:
        table.add_row(
            # names come from certificates and models: no markup, nothing that steers a terminal
            Text(printable(f"{one.role} {one.caller}")),
            one.method,
            Text(printable(f"{one.model} {one.version}")),
            f"{one.calls}" + (f" ({one.failed} failed)" if one.failed else ""),
            str(one.sessions),
            *(f"{size / 1e6:.1f}" for size in (one.received_bytes, one.sent_bytes)),
            f"{one.cpu_seconds:.1f}",
        )
    for column in table.columns:
        column.overflow = "fold"
    Console().print(table)
