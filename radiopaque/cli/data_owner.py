"""``radiopaque data-owner``: the clinic."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from radiopaque.engine.names import EngineName
from radiopaque.errors import NotAnImageError, RadiopaqueError, StoreError, UnknownModelError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from data_owner.client import Client
    from data_owner.journal import Journal
    from data_owner.report import InferenceReport

_CONFIG = typer.Option(help="TOML file; see: radiopaque config example data-owner")
_JSON = typer.Option(False, "--json", help="Print one JSON object.")
_ENGINE = typer.Option(None, help="compiled or crypten, instead of what the config says.")


def register(application: typer.Typer) -> None:
    """Add the sub-commands."""
    group = typer.Typer(help="Submit images, prepare sessions, list models.")
    group.command("submit")(_submit)
    group.command("prepare")(_prepare)
    group.command("audit")(_audit)
    group.command("models")(_models)
    application.add_typer(group, name="data-owner")


def _submit(
    images: list[Path] = typer.Argument(help="DICOM, PNG or JPEG files, or folders of them."),
    config: Path = _CONFIG,
    as_json: bool = _JSON,
    engine: EngineName | None = _ENGINE,
    output: Path | None = typer.Option(
        None, help="Folder for a JSON and an HTML report an image, and the journal."
    ),
    again: bool = typer.Option(False, "--again", help="Also images that have a result already."),
) -> None:
    """Classify images without disclosing them.

    With --output, or for folders, a journal keeps each result (OUTPUT/journal.jsonl, or
    journal.jsonl in the store): a second run does only what is missing, and gives all results. In a
    folder, a file that cannot be used does not stop the others; nor does a report that cannot be
    written.

    With --json: {"results": [{...} for each image], "setup_bytes": {...}}; the keys of a result
    are those of the JSON report. Where something failed, besides {"failures": [{"image", "error",
    "message"}]}, and {"error", "message"} where that ended the submission.
    """
    from data_owner.report import make_folder

    if output:
        # a result that cannot be written would have cost a session
        make_folder(output)
    files, folders = _files(images, output)
    run = _Run(output, as_json)
    with _client(config, engine) as client, ExitStack() as stack, _progress() as tell:
        journal = None
        if output or folders:
            journal = stack.enter_context(client.journal(output))
        run.collect(client, files, journal, again, folders, tell)
    run.finish()


@dataclass
class _Run:
    """What a submission gives, shown as it comes."""

    output: Path | None
    as_json: bool
    results: list[dict[str, Any]] = field(default_factory=list)
    failures: list[dict[str, str]] = field(default_factory=list)
    ended: RadiopaqueError | None = None
    code: int = 0
    setup: dict[str, int] = field(default_factory=dict)

    def collect(
        self,
        client: Client,
        files: list[Path],
        journal: Journal | None,
        again: bool,
        lenient: bool,
        tell: Callable[[str], None],
    ) -> None:
        from data_owner.submission import Failure, Wish

        wish = Wish(journal, again, lenient, progress=tell)
        try:
            for outcome in client.submit(files, wish):
                if isinstance(outcome, Failure):
                    self._failed(outcome.error, str(outcome.image))
                else:
                    self._done(outcome)
        except RadiopaqueError as error:
            if not (self.results or self.failures):
                raise
            self.ended = error
        self.setup = setup_bytes(client)

    def _done(self, report: InferenceReport) -> None:
        from data_owner.report import to_json, write_report

        self.results.append(json.loads(to_json(report)))
        if not self.as_json:
            _show(report)
        if self.output is None:
            return
        try:
            page = write_report(self.output, report)[1]
        except StoreError as error:
            # the result is in the journal: the next run writes what is missing
            self._failed(error, report.image)
        else:
            if not self.as_json:
                print(f"report: {page}")

    def _failed(self, error: RadiopaqueError, image: str) -> None:
        self.code = self.code or error.exit_code
        self.failures.append({"image": image, **_error_dict(error)})
        _complain(error)

    def finish(self) -> None:
        """Print what is left to be printed; exit with the first failure's code."""
        answer: dict[str, Any] = {"results": self.results, "setup_bytes": self.setup}
        if self.failures:
            answer["failures"] = self.failures
        if self.ended is not None:
            self.code = self.ended.exit_code
            answer |= _error_dict(self.ended)
            _complain(self.ended)
        if self.as_json:
            print(json.dumps(answer))
        if self.code:
            raise typer.Exit(self.code)


def _files(given: list[Path], output: Path | None) -> tuple[list[Path], bool]:
    """Files in order, those of folders by name; and whether a folder was given.

    Hidden files are left out, and what lies in the output folder. Raises NotAnImageError.
    """
    files: list[Path] = []
    for path in given:
        if not path.is_dir():
            files.append(path)
            continue
        held = [found for found in sorted(path.rglob("*")) if _is_meant(found, path, output)]
        if not held:
            raise NotAnImageError(f"there is no file in the folder {path}; name one with images")
        files += held
    return files, any(path.is_dir() for path in given)


def _is_meant(path: Path, folder: Path, output: Path | None) -> bool:
    hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
    ours = output is not None and output.resolve() in path.resolve().parents
    return path.is_file() and not (hidden or ours)


def _prepare(
    count: int = typer.Option(1, min=1, help="How many sessions."),
    config: Path = _CONFIG,
    as_json: bool = _JSON,
    engine: EngineName | None = _ENGINE,
) -> None:
    """Make offline material ahead of time, so that images need not wait for it.

    With `audit_share` in the config, that share of it is opened to the vendor for the dealer audit.
    Where one is wrong, DealerError, exit code 10, and the whole stock is burnt.

    With --json: {"prepared": [{"session", "seconds", "bytes", "opened"}], "stock": n,
    "setup_bytes": {...}}. Where something ends it after the first, besides {"error", "message"}.
    """
    prepared: list[dict[str, Any]] = []
    ended: RadiopaqueError | None = None
    with _client(config, engine) as client, _progress() as tell:
        try:
            for number in range(count):
                tell(f"preparing session {number + 1} of {count}")
                for item in client.prepare():
                    prepared.append({**asdict(item), "session": item.session.hex()})
        except RadiopaqueError as error:
            if not prepared:
                raise
            ended = error
        # asking for the stock of a model that is gone would end in the same error
        stock = 0 if isinstance(ended, UnknownModelError) else client.stock()
        share, setup = client.audit_share, setup_bytes(client)
    answer: dict[str, Any] = {"prepared": prepared, "stock": stock, "setup_bytes": setup}
    if as_json:
        print(json.dumps(answer | ({} if ended is None else _error_dict(ended))))
    else:
        seconds = sum(item["seconds"] for item in prepared)
        made = f"{len(prepared)} of {count}" if ended else count
        print(f"{made} session(s) prepared in {seconds:.1f} s; {stock} in stock")
        if share:
            opened = sum(item["opened"] for item in prepared)
            print(f"dealer audit (audit_share {share:g}): {opened} of them opened, right, and gone")
    if ended is not None:
        _complain(ended)
        raise typer.Exit(ended.exit_code)


def _error_dict(error: RadiopaqueError) -> dict[str, str]:
    """What JSON output says of an error that ended a command."""
    return {"error": type(error).__name__, "message": str(error)}


def _complain(error: RadiopaqueError) -> None:
    print(f"{type(error).__name__}: {printable(str(error))}", file=sys.stderr)


def _audit(
    share: float = typer.Option(0.1, help="Of the stock, above 0 and at most 1; rounded up."),
    config: Path = _CONFIG,
    as_json: bool = _JSON,
    engine: EngineName | None = _ENGINE,
) -> None:
    """Open some prepared sessions, so that the vendor checks what the crypto provider dealt.

    They are drawn at random and cannot be used any more. Where one is wrong, DealerError, exit code
    10, and the rest of the stock is burnt.

    With --json: {"stock_before", "opened", "refused", "stock", "detection": {"1": p, ...}}, the
    probabilities of finding something had so many of the sessions been wrong.
    """
    with _client(config, engine) as client, _progress() as tell:
        tell("opening sessions")
        audited = client.audit(share)
        stock = client.stock()
    most = audited.stock - audited.refused
    chances = {n: audited.detection(n) for n in (1, 2, 5, 10, 20, 50, 100) if n <= most}
    if as_json:
        answer: dict[str, Any] = {"stock_before": audited.stock, "opened": audited.opened}
        answer |= {"refused": audited.refused, "stock": stock, "detection": chances}
        print(json.dumps(answer))
        return
    print(f"{audited.opened} of {audited.stock} session(s) opened and right; {stock} in stock")
    if audited.refused:
        print(f"{audited.refused} session(s) that the vendor had lost are gone, too")
    for number, chance in chances.items():
        print(f"had {number} of them been wrong, this would have shown with {chance:.1%}")


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
