"""``radiopaque audit``: check a party's audit log."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import typer

from radiopaque.errors import StoreError


def register(application: typer.Typer) -> None:
    """Add the sub-commands."""
    group = typer.Typer(help="Check a party's audit log.")
    group.callback()(_group)
    group.command("verify")(_verify)
    application.add_typer(group, name="audit")


def _group() -> None:
    """Audit logs."""


def _verify(
    path: Path = typer.Argument(help="The log's folder (audit in a party's store), or one file."),
    contains: str | None = typer.Option(
        None, help="Hash of a line that must be there, as an earlier check printed it."
    ),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object."),
) -> None:
    """Say whether the chain of an audit log holds, and where it breaks. Exit code 8 if it does not.

    With --json: {"holds", "lines", "first", "last", "hash", "unfinished", "contains", "broken":
    {"file", "line", "reason"} or null}.
    """
    from radiopaque.audit import verify

    report = verify(path, contains)
    broken = report.broken
    if as_json:
        where = broken and {"file": str(broken.path), "line": broken.line, "reason": broken.reason}
        print(
            json.dumps(
                {
                    "holds": report.holds,
                    "lines": report.lines,
                    "first": report.first,
                    "last": report.head.number,
                    "hash": report.head.digest,
                    "unfinished": report.unfinished,
                    "contains": report.found,
                    "broken": where,
                }
            )
        )
    elif broken is not None:
        print(f"the chain breaks at {broken.path}, line {broken.line}: {broken.reason}")
    elif not report.found:
        print(f"the chain holds, but no line has the hash {contains}: it is another log")
    else:
        print(
            f"the chain holds: lines {report.first} to {report.head.number}, "
            f"the last has the hash {report.head.digest}"
        )
        if report.unfinished:
            print("an unfinished line follows, as a crash leaves it")
    if not report.holds:
        sys.exit(StoreError.exit_code)
