"""``radiopaque doctor``: check a deployment where it stands."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import typer

from radiopaque.certificates import Role

_COLOURS = {"pass": "green", "warn": "yellow", "fail": "bold red"}
_FAILED = 9


def register(application: typer.Typer) -> None:
    """Add the sub-command."""
    application.command("doctor")(_doctor)


def _doctor(
    role: Role = typer.Argument(help="Which party this is."),
    config: Path = typer.Option(help="Its TOML file."),
    only: list[str] = typer.Option([], help="Make this check alone; repeatable."),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object."),
) -> None:
    """Check certificates, keys, store, ledger, disk, peers, versions and clocks.

    With --json: {"role", "failed": n, "warned": n, "checks": [{"check", "level", "text",
    "remedy"}]}. Exits with 9 where a check fails, with 0 on warnings alone. Changes nothing; run
    it as the party's user, also while the party serves.
    """
    from radiopaque.operations.doctor.run import examine

    found = []
    for finding in examine(role, config, only):
        found.append(finding)
        if not as_json:
            _show(finding.level, finding.check, finding.text, finding.remedy)
    failed = sum(finding.level == "fail" for finding in found)
    warned = sum(finding.level == "warn" for finding in found)
    if as_json:
        checks = [finding.document() for finding in found]
        print(json.dumps({"role": role, "failed": failed, "warned": warned, "checks": checks}))
    else:
        print(f"{len(found)} checks: {failed} failed, {warned} to look at")
    if failed:
        sys.exit(_FAILED)


def _show(level: str, check: str, text: str, remedy: str) -> None:
    from rich.console import Console
    from rich.text import Text

    from radiopaque.cli.data_owner import printable

    line = Text(f"{level:<5}", style=_COLOURS[level])
    # names come from certificates and files: no markup, nothing that steers a terminal
    line.append(printable(f"{check}: {text}"), style="default")
    console = Console(soft_wrap=True)
    console.print(line)
    if remedy:
        console.print(Text(printable(f"     -> {remedy}")))
