"""What `radiopaque bench` does: choose cases, measure them, and show what came out.

Exit codes are those of `radiopaque`; 1 where a case failed, after all others were measured.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import typer

from benchmarks import growth as lines
from benchmarks import presets, tables
from benchmarks.case import Case
from benchmarks.engines import ENGINES
from benchmarks.errors import BenchmarkError
from benchmarks.estimate import describe
from benchmarks.harness import Harness
from benchmarks.models import choose, usual
from benchmarks.network import network
from benchmarks.record import Report
from radiopaque.engine.names import DeviceName
from radiopaque.errors import RadiopaqueError

_DEFAULT_ENGINES = ("onnxruntime", "compiled-32")
_INTERRUPTED = 130


def bench(
    model: list[str] = typer.Option([], help="NAME or NAME@SIZE (default: the shipped one)."),
    engine: list[str] = typer.Option(
        [], help=f"Of {', '.join(ENGINES)} (default: {', '.join(_DEFAULT_ENGINES)})."
    ),
    net: list[str] = typer.Option(
        ["loopback"],
        "--network",
        help="loopback, lan, metro, wan, or NAME:rtt_ms=15,mbit=50[,cut_mb=3].",
    ),
    device: list[str] = typer.Option(["cpu"], help="cpu or cuda."),
    threads: list[int] = typer.Option([1], min=1, help="Threads of each party."),
    batch: list[int] = typer.Option([1], min=1, help="Images in one inference."),
    concurrency: list[int] = typer.Option([1], min=1, help="Inferences under way at once."),
    inferences: int = typer.Option(7, min=1, help="Inferences measured, after one to warm up."),
    quick: bool = typer.Option(False, "--quick", help="The shipped model against its peers."),
    speed: bool = typer.Option(False, "--speed", help="What docs/performance.md has goals for."),
    growth: bool = typer.Option(False, "--growth", help="Two networks over five image sizes."),
    full: bool = typer.Option(False, "--full", help="All of benchmarks/results; over an hour."),
    json_file: Path | None = typer.Option(None, "--json", help="Write all figures here."),
    markdown: Path | None = typer.Option(None, help="Write the tables here as well."),
    plots: Path | None = typer.Option(None, help="Folder for plots."),
    trace: Path | None = typer.Option(None, help="Write a Perfetto trace of one inference."),
    estimate: bool = typer.Option(False, "--estimate", help="Say what would run, and how long."),
    show: Path | None = typer.Option(None, help="Tables and plots of a JSON file; no run."),
    compare: tuple[Path, Path] | None = typer.Option(
        None, help="Ratios between two JSON files; no run."
    ),
) -> None:
    """Measure engines side by side on one machine, each party a process of its own.

    Options that may be repeated are combined with each other. Without any, the shipped model runs
    under onnxruntime and the compiled engine on loopback.
    """
    if compare is not None:
        print(tables.comparison(*(Report.load(path) for path in compare)), end="")
        return
    if show is not None:
        _show(Report.load(show), markdown, plots)
        return
    named = {"quick": quick, "speed": speed, "growth": growth, "full": full}
    wanted = [name for name, given in named.items() if given]
    if wanted and (len(wanted) > 1 or model or engine):
        raise BenchmarkError(
            f"--{wanted[0]} says itself what is measured; leave out other presets, "
            "--model and --engine"
        )
    cases = (
        getattr(presets, wanted[0])()
        if wanted
        else _Wish(model, engine, net, device, threads, batch, concurrency, inferences).cases()
    )
    if estimate:
        print(describe(cases, _tell), end="")
        return
    harness = Harness(_tell)
    for _ in harness.measured(cases):
        harness.report.fits = lines.fits(harness.report.results)
        if json_file is not None:  # a run of hours that breaks off leaves what it has
            harness.report.save(json_file)
    if trace is not None:
        if harness.timeline is None:
            raise BenchmarkError("only a compiled engine leaves a trace; add --engine compiled-32")
        harness.timeline.save(trace)
    _show(harness.report, markdown, plots)
    written = {"figures": json_file, "tables": markdown, "plots": plots, "trace": trace}
    for what, path in written.items():
        if path is not None:
            _tell(f"{what}: {path}")
    if harness.failures:
        _tell(f"{harness.failures} of {len(cases)} cases FAILED; the reasons are above the tables")
        raise typer.Exit(1)


@dataclass(frozen=True)
class _Wish:
    """The options that are combined with each other."""

    models: Sequence[str]
    engines: Sequence[str]
    networks: Sequence[str]
    devices: Sequence[str]
    threads: Sequence[int]
    batches: Sequence[int]
    concurrencies: Sequence[int]
    inferences: int

    def cases(self) -> list[Case]:
        """Every combination. Raises BenchmarkError for a name that is not known."""
        for engine in self.engines:
            if engine not in ENGINES:
                raise BenchmarkError(
                    f"there is no engine {engine!r}; choose of {', '.join(ENGINES)}"
                )
        for device in self.devices:
            if device not in tuple(DeviceName):
                raise BenchmarkError(f"there is no device {device!r}; choose cpu or cuda")
        models = [choose(name) for name in self.models or [usual()]]
        networks = [network(text) for text in self.networks]
        return [
            Case(model, engine, over, device, threads, batch, concurrency, self.inferences)
            for model in models
            for over in networks
            for device in self.devices
            for threads in self.threads
            for batch in self.batches
            for concurrency in self.concurrencies
            for engine in self.engines or _DEFAULT_ENGINES
        ]


def _show(report: Report, markdown: Path | None, plots: Path | None) -> None:
    text = tables.markdown(report)
    print(text, end="")
    if markdown is not None:
        markdown.parent.mkdir(parents=True, exist_ok=True)
        markdown.write_text(text)
    if plots is not None:
        from benchmarks.plots import draw

        draw(report, plots)


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _interrupt(*_: object) -> None:
    """Every party ends when the blocks do that started it."""
    raise KeyboardInterrupt


def main(words: Sequence[str] | None = None) -> None:
    """Run the command line."""
    signal.signal(signal.SIGTERM, _interrupt)
    application = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    application.command()(bench)
    try:
        application(args=words, prog_name="radiopaque bench")
    except RadiopaqueError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(_INTERRUPTED)
