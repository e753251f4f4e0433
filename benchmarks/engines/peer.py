"""What measuring a peer's own processes has in common, whatever the peer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.case import Case, Inputs, spread
from benchmarks.errors import NotAvailableError
from benchmarks.family import Watched
from benchmarks.network import LOOPBACK
from benchmarks.record import Part, Record


def check(case: Case, name: str, no_relay: str, alone: str) -> None:
    """Raises NotAvailableError for what no peer is measured on; ``no_relay``, ``alone`` say why."""
    if case.device != "cpu":
        raise NotAvailableError(f"{name} is measured on the CPU alone")
    if case.network != LOOPBACK:
        raise NotAvailableError(no_relay)
    if case.batch > 1 or case.concurrency > 1:
        raise NotAvailableError(alone)


def give_images(case: Case, inputs: Inputs, folder: Path) -> list[int]:
    """Write images.npy, one to warm up and one for each inference; their numbers."""
    numbers = [0, *(number % len(inputs.images) for number in range(case.inferences))]
    np.save(folder / "images.npy", inputs.images[numbers])
    return numbers


def part(
    case: Case,
    inputs: Inputs,
    numbers: list[int],
    report: Mapping[str, Any],
    watched: Watched,
    more: Record,
) -> Part:
    """The result of a peer that reports ``runs``, the first to warm up; it has no offline phase."""
    first, *runs = report["runs"]
    seconds = spread("online_seconds", [run["online_seconds"] for run in runs])
    answers = [(number, run["logits"]) for number, run in zip(numbers[1:], runs, strict=True)]
    result = {
        **case.record(),
        **seconds,
        **spread("offline_seconds", [0.0]),
        "call_seconds_median": seconds["online_seconds_median"],
        "cold_start_seconds": report["setup_seconds"],
        "cold_online_seconds": first["online_seconds"],
        "online_bytes": round(float(np.median([run["bytes"] for run in runs]))),
        "offline_bytes": 0,
        "cpu_seconds": float(np.mean([run["cpu_seconds"] for run in runs])),
        "peak_rss_bytes": watched.anonymous,
        "resident_bytes": watched.resident,
        "material_bytes": 0,
        "images_per_second": len(runs) / sum(run["online_seconds"] for run in runs),
        **more,
        **inputs.fidelity(answers),
    }
    return Part(result)
