"""Results as Markdown: side by side, as ratios within a run, and between two runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from benchmarks.record import Record, Report

IDENTITY = (
    "model",
    "image_size",
    "engine",
    "device",
    "network",
    "threads",
    "batch",
    "concurrency",
)
"""Keys that say what was measured."""
COMPARED = (
    "online_seconds_median",
    "offline_seconds_median",
    "online_bytes",
    "offline_bytes",
    "round_trips",
    "cpu_seconds",
    "peak_rss_bytes",
    "images_per_second",
)
_HARDWARE = ("processor", "cores", "memory_bytes", "architecture", "accelerator")
FAILED = "failed: "
"""What the reason begins with where a case went wrong, rather than not being for its engine."""
_OWN_VERSIONS = ("radiopaque", "commit")
"""What a comparison is meant to be about."""
_BUSY_LOAD = 1.0
_PEERS = ("crypten-stock", "crypten", "spu")


def _seconds(value: float) -> str:
    return f"{value * 1e3:.3g} ms" if value < 0.1 else f"{value:.3g} s"


def _megabytes(value: float) -> str:
    return f"{value / 1e6:,.1f}" if value >= 1e5 else f"{value / 1e6:.3g}"


def _count(value: float) -> str:
    return f"{value:,.0f}"


def _plain(value: float) -> str:
    return f"{float(f'{value:.3g}'):,.0f}" if value >= 1e3 else f"{value:.3g}"


_COLUMNS: tuple[tuple[str, str, Callable[[float], str]], ...] = (
    ("online", "online_seconds_median", _seconds),
    ("× plaintext", "online_over_plaintext", _plain),
    ("× floor", "online_over_floor", _plain),
    ("offline", "offline_seconds_median", _seconds),
    ("load", "load_seconds_median", _seconds),
    ("CPU, all parties", "cpu_seconds", _seconds),
    ("online MB", "online_bytes", _megabytes),
    ("offline MB", "offline_bytes", _megabytes),
    ("round trips", "round_trips", _count),
    ("memory MB", "peak_rss_bytes", _megabytes),
    ("images/s", "images_per_second", _plain),
    ("largest error", "max_abs_logit_error", _plain),
    ("agreement", "argmax_agreement", _plain),
)


def markdown(report: Report) -> str:
    """The whole report for people."""
    machine = report.machine
    broken_off = report.planned - len(report.results) - len(report.skipped)
    parts = [
        f"{machine['processor']}, {machine['cores']} cores, "
        f"{machine['memory_bytes'] / 2**30:.0f} GiB, {machine['system']}, load average "
        f"{machine['load_average']} before; {report.created[:10]}. "
        "Seconds are medians; what each column counts is said in docs/benchmarks.md.",
    ]
    if broken_off > 0:
        parts.append(f"Broken off: {broken_off} of {report.planned} cases were not reached.")
    failed = [record for record in report.skipped if record["reason"].startswith(FAILED)]
    if failed:
        parts += ["**FAILED:**", _reasons(failed, with_model=True)]
    parts.append(results_table(report.results))
    if report.floors:
        parts += [
            "Floors: kernels and bytes by themselves on this machine, one thread, added up:",
            floors_table(report),
        ]
    if ratios := _ratios(report.results):
        parts += ["How many times less (images/s: more) than a peer needs, in this run:", ratios]
    if report.fits:
        parts += ["Growth with the number of comparisons:", fits_table(report.fits)]
    skipped = [record for record in report.skipped if record not in failed]
    if skipped:
        parts += ["Not measured:", _reasons(skipped, with_model=False)]
    return "\n\n".join(parts) + "\n"


def _reasons(skipped: Sequence[Record], with_model: bool) -> str:
    """A list of what was not measured and why, each reason of an engine once."""
    lines: dict[str, None] = {}
    for record in skipped:
        model = f"{record['model']}@{record['image_size']}, " if with_model else ""
        where = f"{engine_name(record)} on {record['network']}, {record['device']}"
        lines[f"- {model}{where}: {record['reason']}"] = None
    return "\n".join(lines)


def results_table(results: Sequence[Record]) -> str:
    """One row a result."""
    rows = [
        [
            f"{record['model']}@{record['image_size']}",
            engine_name(record),
            record["network"],
            *(_cell(record[key], shown) for _, key, shown in _COLUMNS),
        ]
        for record in results
    ]
    return table(["model", "engine", "network", *(title for title, _, _ in _COLUMNS)], rows)


def floors_table(report: Report) -> str:
    """One row a floor: its parts, and the rates that they were computed from."""
    rows = []
    for floor in report.floors:
        record = report.results[floor["result"]]
        gates = ("model_owner", "data_owner")
        rows.append(
            [
                f"{record['model']}@{record['image_size']}",
                engine_name(record),
                record["network"],
                _seconds(floor["linear_seconds"]),
                _seconds(sum(floor[f"{party}_comparison_seconds"] for party in gates)),
                _seconds(floor["transfer_seconds"]),
                _seconds(floor["floor_seconds"]),
                f"{floor['multiply_adds_per_second'] / 1e9:.3g} G/s",
                *(f"{floor[f'{party}_seconds_per_comparison'] * 1e9:.3g} ns" for party in gates),
                f"{floor['bytes_per_second'] / 1e6:,.0f} MB/s",
            ]
        )
    head = ["model", "engine", "network", "linear", "comparisons", "transfer", "floor"]
    head += ["multiply-adds", "a comparison, vendor", "clinic", "wire"]
    return table(head, rows)


def engine_name(record: Record) -> str:
    """An engine with what is not usual about it."""
    more = [
        f"{record[key]} {name}"
        for key, name in (("threads", "threads"), ("batch", "images"), ("concurrency", "at once"))
        if record[key] > 1
    ]
    return ", ".join([record["engine"], *more])


def _cell(value: float | None, shown: Callable[[float], str]) -> str:
    return "-" if value is None else shown(value)


def _ratios(results: Sequence[Record]) -> str:
    """Compiled engines against peers, where all else is equal."""
    rows = []
    for own in results:
        if not own["engine"].startswith("compiled"):
            continue
        for peer in results:
            others = [key for key in IDENTITY if key != "engine"]
            if peer["engine"] in _PEERS and all(peer[key] == own[key] for key in others):
                rows.append(
                    [
                        f"{own['model']}@{own['image_size']}",
                        f"{own['engine']} : {peer['engine']}",
                        own["network"],
                        _ratio(peer["online_seconds_median"], own["online_seconds_median"]),
                        _ratio(_without_dealing(peer), own["online_seconds_median"]),
                        _ratio(peer["online_bytes"], own["online_bytes"]),
                        _ratio(peer["round_trips"], own["round_trips"]),
                        _ratio(peer["one_way_delays"], own["one_way_delays"]),
                        _ratio(_total_seconds(peer), _total_seconds(own)),
                        _ratio(peer["cpu_seconds"], own["cpu_seconds"]),
                        _ratio(own["images_per_second"], peer["images_per_second"]),
                    ]
                )
    titles = [
        "online",
        "its dealing left out",
        "online bytes",
        "rounds",
        "one-way delays",
        "offline + load + online",
    ]
    head = ["model", "engines", "network", *titles, "CPU, all parties", "images/s"]
    return table(head, rows) if rows else ""


def _without_dealing(record: Record) -> float | None:
    """Online time of a peer that deals online and says how long that takes."""
    dealing = record["dealing_seconds_median"]
    return None if dealing is None else float(record["online_seconds_median"] - dealing)


def _total_seconds(record: Record) -> float:
    """Of everything that one inference takes, whenever it is done."""
    parts = ("offline_seconds_median", "load_seconds_median", "online_seconds_median")
    return float(sum(record[part] or 0.0 for part in parts))


def _ratio(above: float | None, below: float | None) -> str:
    return "-" if above is None or not below else _plain(above / below)


def fits_table(fits: Sequence[Record]) -> str:
    """One row a fit."""
    rows = [
        [
            record["model"],
            record["engine"],
            record["network"],
            record["measure"],
            f"{record['per_million']:.4g}",
            f"{record['constant']:.4g}",
            f"{record['r_squared']:.5f}",
            f"{100 * record['largest_residual']:.1f} %",
            str(record["points"]),
        ]
        for record in fits
    ]
    titles = ["measure", "per million", "constant", "R²", "largest residual", "points"]
    return table(["model", "engine", "network", *titles], rows)


def comparison(first: Report, second: Report) -> str:
    """Ratios of the second run to the first, for what both measured."""
    rows = []
    for before in first.results:
        for after in second.results:
            if all(before[key] == after[key] for key in IDENTITY):
                rows.append(
                    [
                        f"{after['model']}@{after['image_size']}",
                        engine_name(after),
                        after["network"],
                        *(_ratio(after[key], before[key]) for key in COMPARED),
                    ]
                )
    if not rows:
        return "The two runs have no configuration in common.\n"
    head = ["model", "engine", "network", *(key.replace("_", " ") for key in COMPARED)]
    warnings = "".join(f"WARNING: {text}\n\n" for text in differences(first, second))
    return f"{warnings}Second run divided by the first; below 1 is less.\n\n{table(head, rows)}\n"


def differences(first: Report, second: Report) -> list[str]:
    """What two runs do not have in common, so that their ratios say little about the code."""
    found = []
    for before, after, keys, what in (
        (first.machine, second.machine, _HARDWARE, "machines"),
        (first.versions, second.versions, sorted({*first.versions, *second.versions}), "versions"),
    ):
        changed = [
            f"{key} {before.get(key)} and {after.get(key)}"
            for key in keys
            if before.get(key) != after.get(key) and key not in _OWN_VERSIONS
        ]
        if changed:
            found.append(f"the two runs are of different {what}: {', '.join(changed)}.")
    busy = [str(one.machine["load_average"]) for one in (first, second)]
    if max(map(float, busy)) > _BUSY_LOAD:
        found.append(f"a machine was busy beforehand: load average {' and '.join(busy)}.")
    return found


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose columns are as wide as what is in them; figures to the right."""
    texts = [[str(cell) for cell in row] for row in (head, *rows)]
    widths = [max(3, *(len(row[column]) for row in texts)) for column in range(len(head))]
    left = 3

    def line(row: Sequence[str]) -> str:
        cells = [
            cell.ljust(width) if column < left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        return f"| {' | '.join(cells)} |"

    rule = [
        "-" * width if column < left else "-" * (width - 1) + ":"
        for column, width in enumerate(widths)
    ]
    return "\n".join([line(texts[0]), line(rule), *(line(row) for row in texts[1:])])
