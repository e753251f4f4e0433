"""``radiopaque demo``: three real processes, one real X-ray, the plaintext result beside it."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer

from radiopaque.errors import ConfigError

_MODEL = "pneumonia-lite0-dp"
_SAMPLE = "NORMAL2-IM-1427-0001.dcm"


def register(application: typer.Typer) -> None:
    """Add the sub-command."""
    application.command("demo")(_demo)


def _demo(
    model: Path | None = typer.Option(None, help="Folder of a model (default: the shipped one)."),
    image: Path | None = typer.Option(None, help="DICOM, PNG or JPEG (default: a shipped sample)."),
    ring: int = typer.Option(32, help="Bits of the ring: 32 or 64."),
    repeat: int = typer.Option(1, min=1, max=40, help="Inferences; times are their medians."),
    output: Path | None = typer.Option(None, help="Folder for the HTML and JSON report."),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object."),
) -> None:
    """Watch a chest X-ray being classified under secret sharing by three processes.

    JSON keys: model, version, image, classes, secure_probabilities, plaintext_probabilities,
    secure_logits, plaintext_logits, max_abs_logit_error, repeat, online_seconds, offline_seconds,
    prepare_seconds, round_trips, online_bytes, offline_bytes, setup_bytes, memory_bytes (peak
    RssAnon of the two servers), warnings. Bytes are by direction, as counted on messages sent.
    """
    from radiopaque.cli.demo_run import Wish, run_demo

    wish = Wish(
        model or _data_root() / "models" / _MODEL,
        image or _sample(_data_root()),
        ring,
        repeat,
        output,
    )
    with tempfile.TemporaryDirectory(prefix="radiopaque-demo-") as folder, _status() as tell:
        result = run_demo(Path(folder), wish, tell)
    if as_json:
        print(json.dumps(result))
    else:
        _show(result)


def _data_root() -> Path:
    """Where models/ and samples/ are: the checkout, or the current folder."""
    for root in (Path(__file__).resolve().parents[2], Path.cwd()):
        if (root / "models").is_dir():
            return root
    raise ConfigError(
        "no folder models/ here; run the demo from a checkout, or give --model and --image"
    )


def _sample(root: Path) -> Path:
    sample = root / "samples" / "dicom" / _SAMPLE
    if not sample.exists():
        raise ConfigError(f"{sample} is missing; give --image")
    return sample


@contextmanager
def _status() -> Iterator[Any]:
    """Steps as they happen: a spinner on a terminal, plain lines elsewhere; always on stderr."""
    if not sys.stderr.isatty():
        yield lambda text: print(f"- {text}", file=sys.stderr, flush=True)
        return
    from rich.console import Console
    from rich.markup import escape

    console = Console(stderr=True)
    with console.status("starting") as status:

        def tell(text: str) -> None:
            console.print(f"- {text}", markup=False, highlight=False)
            status.update(escape(text))

        yield tell


def _show(result: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    title = f"{result['image']} with {result['model']} {result['version']}"
    console.print(f"\n[bold]{escape(title)}[/bold]", highlight=False)
    table = Table(box=None, pad_edge=False)
    for title in ("class", "secure", "plaintext (onnxruntime)"):
        table.add_column(title, justify="left" if title == "class" else "right")
    rows = zip(
        result["classes"],
        result["secure_probabilities"],
        result["plaintext_probabilities"],
        strict=True,
    )
    for name, secure, plain in rows:
        table.add_row(escape(name), f"{secure:.4f}", f"{plain:.4f}")
    console.print(table)
    online, offline = result["online_bytes"], result["offline_bytes"]
    console.print(
        f"largest logit difference  {result['max_abs_logit_error']:.5f}\n"
        f"online   {result['online_seconds']:.3f} s, {result['round_trips']} round trips, "
        f"{_mb(online['data_owner_to_model_owner'])} to the vendor, "
        f"{_mb(online['model_owner_to_data_owner'])} back\n"
        f"offline  {result['offline_seconds']:.2f} s before the image existed; "
        f"loading it {result['prepare_seconds']:.2f} s",
        highlight=False,
    )
    for link, size in offline.items():
        console.print(f"         {link.replace('_', ' '):<36} {_mb(size):>12}", highlight=False)
    setup = sum(result["setup_bytes"].values())
    console.print(
        f"setup    {_mb(setup)} once per model (plan and masked weights)\n", highlight=False
    )
    for warning in result["warnings"]:
        console.print(f"warning: {warning}", style="yellow", markup=False, highlight=False)
    console.print(
        "[bold]data owner[/bold]       saw its image and the result; not the weights\n"
        "[bold]model owner[/bold]      saw random numbers; not the image, not the result\n"
        "[bold]crypto provider[/bold]  saw the plan and keys; no image, no weight, no result",
        highlight=False,
    )
    console.print("Holds for semi-honest parties that do not collude. Not for diagnosis.")


def _mb(size: int) -> str:
    return f"{size / 1e6:.2f} MB" if size >= 10_000 else f"{size} B"
