"""``radiopaque data-owner``: the clinic."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from radiopaque.engine.names import EngineName

if TYPE_CHECKING:
    from collections.abc import Iterator

    from data_owner.client import Client
    from data_owner.report import InferenceReport

_CONFIG = typer.Option(help="TOML file; see: radiopaque config example data-owner")
_JSON = typer.Option(False, "--json", help="Print one JSON object.")
_ENGINE = typer.Option(None, help="compiled or crypten, instead of what the config says.")


def register(application: typer.Typer) -> None:
    """Add the sub-commands."""
    group = typer.Typer(help="Submit images, prepare sessions, list models.")
    group.command("submit")(_submit)
    group.command("prepare")(_prepare)
    group.command("models")(_models)
    application.add_typer(group, name="data-owner")


def _submit(
    images: list[Path] = typer.Argument(help="DICOM, PNG or JPEG files."),
    config: Path = _CONFIG,
    as_json: bool = _JSON,
    engine: EngineName | None = _ENGINE,
    output: Path | None = typer.Option(None, help="Folder for a JSON and an HTML report an image."),
) -> None:
    """Classify images without disclosing them.

    With --json: {"results": [one object per image], "setup_bytes": {...}}; the keys of a result
    are those of the JSON report.
    """
    from data_owner.report import make_folder, to_json, write_report

    if output:
        # a result that cannot be written would have cost a session
        make_folder(output)
    with _client(config, engine) as client, _progress() as tell:
        reports = client.infer_many(images, tell)
        setup = setup_bytes(client)
    written = [write_report(output, report) for report in reports] if output else []
    if as_json:
        results = [json.loads(to_json(report)) for report in reports]
        print(json.dumps({"results": results, "setup_bytes": setup}))
        return
    for report in reports:
        _show(report)
    for _, page in written:
        print(f"report: {page}")


def _prepare(
    count: int = typer.Option(1, min=1, help="How many sessions."),
    config: Path = _CONFIG,
    as_json: bool = _JSON,
    engine: EngineName | None = _ENGINE,
) -> None:
    """Make offline material ahead of time, so that images need not wait for it.

    With --json: {"prepared": [{"session", "seconds", "bytes"}], "stock": n, "setup_bytes": {...}}.
    """
    with _client(config, engine) as client, _progress() as tell:
        prepared: list[dict[str, Any]] = []
        for number in range(count):
            tell(f"preparing session {number + 1} of {count}")
            for item in client.prepare():
                prepared.append({**asdict(item), "session": item.session.hex()})
        stock = client.stock()
        setup = setup_bytes(client)
    if as_json:
        print(json.dumps({"prepared": prepared, "stock": stock, "setup_bytes": setup}))
    else:
        seconds = sum(item["seconds"] for item in prepared)
        print(f"{count} session(s) prepared in {seconds:.1f} s; {stock} in stock")


def _models(config: Path = _CONFIG, as_json: bool = _JSON) -> None:
    """List what the vendor offers.

    With --json: {"models": [{"name", "version", "plan_digest"}]}.
    """
    with _client(config) as client:
        models = client.models()
    if as_json:
        rows = [{"name": n, "version": v, "plan_digest": d} for n, v, d in models]
        print(json.dumps({"models": rows}))
        return
    for name, version, digest in models:
        print(f"{printable(name)} {printable(version)}  plan {digest[:16]}")


def setup_bytes(client: Client) -> dict[str, int]:
    """What fetching the model moved in this run; small where F was at hand already."""
    return {
        "model_owner_to_data_owner": client.setup.received_bytes,
        "data_owner_to_model_owner": client.setup.sent_bytes,
    }


@contextmanager
def _client(config: Path, engine: EngineName | None = None) -> Iterator[Client]:
    from data_owner.client import Client
    from radiopaque import telemetry

    telemetry.configure("WARNING")
    with Client.from_config(config, engine) as client:
        yield client


@contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    """A live status line on a terminal, nothing elsewhere."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.markup import escape

    console = Console(stderr=True)
    with console.status("connecting") as status:
        yield lambda text: status.update(escape(printable(text)))


def _show(report: InferenceReport) -> None:
    from rich.console import Console

    def line(text: str, style: str = "") -> None:
        # names come from files and from the vendor: no markup, nothing that steers a terminal
        console.print(printable(text), style=style, markup=False, highlight=False)

    console = Console()
    line(f"{report.image}  {report.model} {report.version}", "bold")
    for name, value in _lines(report):
        bar = "█" * round(30 * value) if report.probabilities else ""
        line(f"  {name:<24} {value:8.4f}  {bar}")
    for warning in report.warnings:
        line(f"  warning: {warning}", "yellow")
    sent = sum(report.online_bytes.values()) / 1e6
    line(
        f"  {report.online_seconds:.2f} s online, {sent:.1f} MB, {report.round_trips} round trips. "
        "Not for diagnosis."
    )


def printable(text: str) -> str:
    """A text without control characters, for the terminal."""
    return "".join(character if character.isprintable() else "?" for character in text)


def _lines(report: InferenceReport) -> list[tuple[str, float]]:
    values = report.probabilities or report.logits
    return list(zip(report.classes, values, strict=True))
