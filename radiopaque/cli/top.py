"""``radiopaque top``: a live view of a serving party."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from radiopaque.certificates import Role

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

    from radiopaque.operations.snapshot import Method, Snapshot


def register(application: typer.Typer) -> None:
    """Add the sub-command."""
    application.command("top")(_top)


def _top(
    role: Role = typer.Argument(help="crypto-provider or model-owner."),
    config: Path = typer.Option(help="Its TOML file, with `metrics`."),
    address: str | None = typer.Option(None, help="host:port, instead of `metrics` in the file."),
    interval: float = typer.Option(2.0, min=0.2, max=3600.0, help="Seconds between readings."),
    as_json: bool = typer.Option(False, "--json", help="Print one reading as a JSON object."),
) -> None:
    """A party as it is now: sessions, calls, latencies, bytes. Ends with Ctrl-C."""
    from radiopaque.cli.settings import serving_settings
    from radiopaque.errors import ConfigError
    from radiopaque.operations.endpoint import read_metrics
    from radiopaque.operations.snapshot import parse

    settings = serving_settings(role, config)
    where = address or settings.metrics
    if where is None:
        raise ConfigError(f"{config} has no `metrics`; add it and restart the {role}")

    def read() -> Snapshot:
        return parse(read_metrics(where, settings.tls, role))

    if as_json:
        print(json.dumps(read().document()))
        return
    from rich.live import Live

    before = read()
    with Live(view(before, before), auto_refresh=False, screen=True) as live:
        while True:
            time.sleep(interval)
            now = read()
            live.update(view(now, before), refresh=True)
            before = now


def view(now: Snapshot, before: Snapshot) -> Group:
    """The screen: a party now, with rates since the reading before."""
    from rich.console import Group
    from rich.text import Text

    from radiopaque.cli.data_owner import printable

    values, party = now.values, now.party
    days = (values.get("radiopaque_certificate_end_seconds", 0.0) - now.seconds) / 86_400
    head = (
        f"{party.get('role')} {party.get('name')}  radiopaque {party.get('release')}, "
        f"protocol {party.get('protocol')}"
    )
    limit = values.get("radiopaque_material_limit_bytes", 0.0)
    lines = [
        head,
        f"memory {values.get('process_resident_memory_bytes', 0.0) / 1e6:.0f} MB, "
        f"{_cpu(now, before):.0f} % of a core, certificate ends in {days:.0f} days",
        "sessions: " + (", ".join(f"{count} {state}" for state, count in now.sessions.items())),
    ]
    if limit:
        used = values.get("radiopaque_material_bytes", 0.0)
        lines.append(f"material: {used / 1e9:.2f} of {limit / 1e9:.2f} GB")
    texts = (
        Text(printable(line), style="" if number else "bold") for number, line in enumerate(lines)
    )
    return Group(*texts, _methods(now, before), _inferences(now))


def _methods(now: Snapshot, before: Snapshot) -> Table:
    from rich.table import Table

    from radiopaque.operations.snapshot import Method

    table = Table("method", "now", "calls", "per s", "not ok", "refused", "p50 s", "p99 s", "MB/s")
    elapsed = max(now.seconds - before.seconds, 1e-9)
    for name, one in sorted(now.methods.items()):
        past = before.methods.get(name, Method())
        moved = _bytes(one) - _bytes(past)
        calls, ok = sum(one.calls.values()), one.calls.get("ok", 0)
        table.add_row(
            *(name, str(one.under_way), str(calls)),
            f"{(calls - sum(past.calls.values())) / elapsed:.1f}",
            *(str(calls - ok), str(sum(one.refused.values()))),
            *("-" if q is None else f"{q:.3f}" for q in (one.quantile(0.5), one.quantile(0.99))),
            f"{moved / 1e6 / elapsed:.1f}",
        )
    return table


def _inferences(now: Snapshot) -> Table:
    from rich.table import Table
    from rich.text import Text

    from radiopaque.cli.data_owner import printable

    table = Table("clinic", "model", "inferences")
    for (clinic, model, version), count in sorted(now.inferences.items()):
        table.add_row(Text(printable(clinic)), Text(printable(f"{model} {version}")), str(count))
    return table


def _bytes(method: Method) -> int:
    return method.received_bytes + method.sent_bytes


def _cpu(now: Snapshot, before: Snapshot) -> float:
    name = "process_cpu_seconds_total"
    used = now.values.get(name, 0.0) - before.values.get(name, 0.0)
    return 100 * used / max(now.seconds - before.seconds, 1e-9)
