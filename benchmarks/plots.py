"""Plots of a report: each is drawn where the report has at least two points for it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib

from benchmarks.record import Record, Report

matplotlib.use("Agg")
from matplotlib import pyplot

_SHARES = {
    "vendor: convolutions, products": ("Convolution", "MatrixProduct", "Multiply"),
    "vendor: comparisons": ("Relu",),
    "vendor: truncations": ("Truncate", "Remask"),
}
_LINKS = {
    ("online", "data_owner_to_model_owner"): "online, clinic to vendor",
    ("online", "model_owner_to_data_owner"): "online, vendor to clinic",
    ("offline", "crypto_provider_to_model_owner"): "offline, dealer to vendor",
    ("offline", "data_owner_to_model_owner"): "offline, clinic to vendor",
}
_INCH_PER_BAR = 0.35
_WIDTH = 9.0
_COLOURS = 10
"""Of matplotlib's cycle."""
Bars = dict[str, list[float]]


def draw(report: Report, folder: Path) -> list[Path]:
    """Write PNG files; returns those that there were figures for."""
    folder.mkdir(parents=True, exist_ok=True)
    plots: dict[str, Callable[[Report], Any]] = {
        "latency": _latency,
        "traffic": _traffic,
        "round-trip-time": _round_trip_time,
        "scaling": _scaling,
        "throughput": _throughput,
    }
    written = []
    for name, plot in plots.items():
        figure = plot(report)
        if figure is not None:
            path = folder / f"{name}.png"
            # neither date nor version, so that the same figures give the same file
            figure.savefig(path, dpi=120, bbox_inches="tight", metadata={"Software": None})
            pyplot.close(figure)
            written.append(path)
    return written


def _alone(report: Report) -> list[Record]:
    """Results of compiled engines for one image at a time."""
    return [
        record
        for record in report.results
        if record["engine"].startswith("compiled")
        and record["batch"] == record["concurrency"] == record["threads"] == 1
    ]


def _on_loopback(report: Report) -> list[Record]:
    return [record for record in _alone(report) if record["network"] == "loopback"]


def _name(record: Record) -> str:
    return f"{record['model']}@{record['image_size']} k={record['engine'][-2:]}"


def _latency(report: Report) -> Any:
    """Online time, stacked by who computes what; the rest is network, waiting and scheduling."""
    records = _on_loopback(report)
    bars: Bars = defaultdict(list)
    for record in records:
        gates = [gate for gate in report.of(report.gates, record) if gate["phase"] == "online"]
        parts = _parts(gates)
        rest = max(0.0, record["online_seconds_median"] - sum(parts.values()))
        for title, seconds in (*parts.items(), ("network, waiting", rest)):
            bars[title].append(seconds)
    floors = [record["floor_seconds"] for record in records]
    return _stacked(records, bars, "online seconds", "Where the online time goes, loopback", floors)


def _parts(gates: Sequence[Record]) -> dict[str, float]:
    """Seconds of computing by party and kind of gate, and of serialising."""
    vendor = [gate for gate in gates if gate["party"] == "model_owner"]
    parts = {
        title: _sum(gate["compute_seconds"] for gate in vendor if gate["gate"] in kinds)
        for title, kinds in _SHARES.items()
    }
    parts["vendor: sums, slices"] = _sum(gate["compute_seconds"] for gate in vendor) - sum(
        parts.values()
    )
    clinic = [gate["compute_seconds"] for gate in gates if gate["party"] == "data_owner"]
    parts["clinic: its half"] = _sum(clinic)
    parts["both: serialising"] = _sum(gate["serialise_seconds"] for gate in gates)
    return parts


def _traffic(report: Report) -> Any:
    records = _on_loopback(report)
    bars: Bars = defaultdict(list)
    for record in records:
        sizes = {(t["phase"], t["link"]): t["bytes"] for t in report.of(report.traffic, record)}
        for link, title in _LINKS.items():
            bars[title].append(sizes.get(link, 0) / 1e6)
    return _stacked(records, bars, "MB (10^6 bytes) an inference", "Bytes of an inference by link")


def _round_trip_time(report: Report) -> Any:
    lines: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for record in _alone(report):
        lines[_name(record)].append((record["rtt_ms"], record["online_seconds_median"]))
    title = "Online time by network, each with its own rate"
    return _lines(lines, "round-trip time added, ms", "online seconds", title)


def _throughput(report: Report) -> Any:
    lines: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for record in report.results:
        if record["batch"] == 1 and record["engine"].startswith("compiled"):
            key = f"{_name(record)}, {record['network']}"
            lines[key].append((record["concurrency"], record["images_per_second"]))
    title = "Throughput, material made on the way"
    return _lines(lines, "inferences under way at once", "images a second", title)


def _scaling(report: Report) -> Any:
    """Online time against comparisons, with the fits, and against the side of the image."""
    by_model: dict[str, list[Record]] = defaultdict(list)
    for record in _on_loopback(report):
        by_model[f"{record['model']} k={record['engine'][-2:]}"].append(record)
    grown = {
        name: sorted(records, key=lambda record: int(record["image_size"]))
        for name, records in by_model.items()
        if len({record["image_size"] for record in records}) > 1
    }
    if not grown:
        return None
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(_WIDTH, 4.2), layout="constrained")
    figure.suptitle("Online time by size, loopback")
    for name, records in grown.items():
        seconds = [record["online_seconds_median"] for record in records]
        comparisons = [record["comparisons"] / 1e6 for record in records]
        (points,) = left.plot(comparisons, seconds, "o", label=name)
        right.plot([record["image_size"] for record in records], seconds, "o-", label=name)
        for fit in report.fits:
            same = f"{fit['model']} k={fit['engine'][-2:]}" == name
            if same and fit["measure"] == "online_seconds_median" and fit["network"] == "loopback":
                ends = [0.0, max(comparisons)]
                line = [fit["constant"] + fit["per_million"] * x for x in ends]
                left.plot(ends, line, "--", color=points.get_color(), linewidth=1)
    left.set(xlabel="comparisons, millions (lines: fits)", ylabel="online seconds")
    right.set(xlabel="side of the image, pixels", ylabel="online seconds")
    for axes in (left, right):
        axes.set_ylim(bottom=0)
        axes.set_xlim(left=0)
        axes.grid(alpha=0.3)
    left.legend(fontsize=8)
    return figure


def _stacked(
    records: Sequence[Record],
    bars: Bars,
    label: str,
    title: str,
    floors: Sequence[float | None] = (),
) -> Any:
    if not records:
        return None
    figure, axes = pyplot.subplots(figsize=(_WIDTH, 1.6 + _INCH_PER_BAR * len(records)))
    names = [_name(record) for record in records]
    places = range(len(names))
    left = [0.0] * len(names)
    for part, values in bars.items():
        axes.barh(places, values, left=left, label=part, height=0.7)
        left = [start + value for start, value in zip(left, values, strict=True)]
    marks = [(floor, place) for place, floor in enumerate(floors) if floor is not None]
    if marks:
        axes.plot(*zip(*marks, strict=True), "k|", markersize=14, label="floor")
    axes.set_yticks(places, names, fontsize=8)
    axes.margins(y=0.01)
    axes.invert_yaxis()
    axes.set(xlabel=label, title=title)
    axes.grid(axis="x", alpha=0.3)
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1.0))
    return figure


def _lines(
    lines: dict[str, list[tuple[float, float]]], x_label: str, y_label: str, title: str
) -> Any:
    several = {name: sorted(points) for name, points in lines.items() if len(set(points)) > 1}
    several = {name: points for name, points in several.items() if points[0][0] < points[-1][0]}
    if not several:
        return None
    figure, axes = pyplot.subplots(figsize=(_WIDTH * 0.7, 4.2))
    for number, (name, points) in enumerate(several.items()):
        # two sets of colours that no two lines share
        style = "o-" if number < _COLOURS else "s--"
        axes.plot(*zip(*points, strict=True), style, label=name)
    axes.set(xlabel=x_label, ylabel=y_label, title=title)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1.0))
    return figure


def _sum(values: Iterable[float]) -> float:
    return float(sum(values))
