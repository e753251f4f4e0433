"""Compares configurations over several seeds, by the AUC on validation images of each seed.

python -m training.study --data chest_xray --output runs/study --seeds 1 2 3 examples/study/*.toml

A seed decides the cut into training and validation images, that into sites, and the training.
Features of a frozen base are computed once for all runs. The test folder is not read.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.errors import SettingsError, TrainingError
from training.progress import Bar, Watch, unwatched

if TYPE_CHECKING:
    from training.config import DataSettings, TrainingSettings
    from training.intake import Cohort

JSON_FILE, TABLE_FILE = "study.json", "study.md"

Report = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Row:
    """A configuration and its best validation AUC by seed, in the order of the seeds."""

    title: str
    file: str
    best_auc: list[float]
    best_round: list[int]
    last_auc: list[float]

    @property
    def mean(self) -> float:
        """Mean over seeds of the best validation AUC."""
        return sum(self.best_auc) / len(self.best_auc)


def study(
    files: Sequence[Path],
    data: Path,
    output: Path,
    seeds: Sequence[int],
    *,
    resume: bool = False,
    threads: int | None = None,
    report: Report = print,
    watch: Watch = unwatched,
) -> list[Row]:
    """Train every configuration with every seed; write a table, Markdown and JSON, to `output`.

    `threads` replaces that key of the files, which does not change what they say.

    Raises:
        TrainingError: see the message; runs and rounds that are done are kept.
    """
    from training.features import FeatureStore

    plans = {file: [_settings(file, seed, threads) for seed in seeds] for file in files}
    images = _Images(data, watch)
    store = FeatureStore()
    rows: list[Row] = []
    for file, runs in plans.items():
        row = Row(runs[0].output.description or file.stem, file.name, [], [], [])
        for settings in runs:
            folder = output / file.stem / f"seed-{settings.seed}"
            _run(row, settings, images, folder, store, resume, report, watch)
        rows.append(row)
    _write(output, seeds, rows)
    return rows


def _run(
    row: Row,
    settings: TrainingSettings,
    images: _Images,
    folder: Path,
    store: Any,
    resume: bool,
    report: Report,
    watch: Watch,
) -> None:
    """Train once and enter the figures into the row."""
    from training import checkpoint
    from training.federated import run
    from training.intake import cut

    started = time.monotonic()
    title = f"{row.file}, seed {settings.seed}"
    cohort, skipped = images.of(settings.data)
    outcome = run(
        settings,
        cut(cohort, skipped, settings.data, settings.seed),
        folder,
        resume=resume and (folder / checkpoint.FILE).exists(),
        report=lambda line: None,
        watch=lambda what, done, total: watch(f"{title}, {what}", done, total),
        store=store,
    )
    if outcome.failed is not None:
        raise outcome.failed
    progress = outcome.progress
    last = progress.records[-1].validation_auc
    row.best_auc.append(progress.best_auc)
    row.best_round.append(progress.best_round)
    row.last_auc.append(progress.best_auc if last is None else last)
    report(
        f"{title}: validation AUC {progress.best_auc:.4f} (round {progress.best_round}), "
        f"{time.monotonic() - started:.0f} s"
    )


class _Images:
    """The images of a folder, read once for each size."""

    def __init__(self, folder: Path, watch: Watch) -> None:
        self._folder = folder
        self._watch = watch
        self._read: dict[DataSettings, tuple[Cohort, list[str]]] = {}

    def of(self, settings: DataSettings) -> tuple[Cohort, list[str]]:
        from training.intake import read_training

        if settings not in self._read:
            self._read[settings] = read_training(self._folder, settings, self._watch)
        return self._read[settings]


def _settings(file: Path, seed: int, threads: int | None) -> TrainingSettings:
    """The configuration of one run.

    Raises:
        SettingsError: it cannot be read, or cannot be compared.
    """
    from training.config import read_values, settings_from

    values = {**read_values(file), "seed": seed}
    if threads is not None:
        values["threads"] = threads
    settings = settings_from(values, str(file))
    if settings.privacy is not None:
        raise SettingsError(
            f"{file} has a section [privacy]: a budget belongs to the images of a site, and every "
            "seed cuts other sites; compare private settings run by run"
        )
    if settings.search:
        raise SettingsError(f"{file} has a section [search]; take it out")
    return settings


def table(seeds: Sequence[int], rows: Sequence[Row]) -> str:
    """A Markdown table: rows as given, a column for each seed, and the mean."""
    head = ["", *(f"seed {seed}" for seed in seeds), "mean"]
    lines = [head, ["---"] * len(head)]
    for row in rows:
        figures = [f"{area:.3f}" for area in (*row.best_auc, row.mean)]
        lines.append([row.title, *figures])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _write(output: Path, seeds: Sequence[int], rows: Sequence[Row]) -> None:
    from training.files import write_atomically

    content = {
        "figure": "macro AUC on the validation images, best round",
        "seeds": list(seeds),
        "rows": [{**asdict(row), "mean": row.mean} for row in rows],
    }
    text = json.dumps(content, indent=1, allow_nan=False)
    write_atomically(output / JSON_FILE, (text + "\n").encode())
    write_atomically(output / TABLE_FILE, table(seeds, rows).encode())


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of `python -m training.study`."""
    parser = argparse.ArgumentParser(
        prog="python -m training.study",
        description="Train several configurations with several seeds; write study.md, study.json.",
    )
    add = parser.add_argument
    add("files", type=Path, nargs="+", metavar="TOML", help="configurations to compare")
    add("--data", type=Path, required=True, help="folder that holds train/NORMAL and the like")
    add("--output", type=Path, required=True, help="folder for the table and the runs")
    add("--seeds", type=int, nargs="+", default=[1, 2, 3], help="default: 1 2 3")
    add("--threads", type=int, help="CPU threads (default: as the files say)")
    add("--resume", action="store_true", help="go on after the last finished round")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    options = build_parser().parse_args(arguments)
    bar = Bar(shown=sys.stderr.isatty())

    def report(line: str) -> None:
        bar.clear()
        print(line, flush=True)

    try:
        rows = study(
            options.files,
            options.data,
            options.output,
            options.seeds,
            resume=options.resume,
            threads=options.threads,
            report=report,
            watch=bar,
        )
        report(f"\n{table(options.seeds, rows)}\nwrote {options.output / TABLE_FILE}, {JSON_FILE}")
    except TrainingError as error:
        bar.clear()
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2 if isinstance(error, SettingsError) else 1
    except KeyboardInterrupt:
        report(f"interrupted; go on with --resume --output {options.output}")
        return 130
    finally:
        bar.clear()
    return 0


if __name__ == "__main__":
    sys.exit(main())
