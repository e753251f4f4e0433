"""Three parties as processes over gRPC with mutual TLS: what all engines on them share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks import breakdown
from benchmarks.breakdown import Spans
from benchmarks.case import Case, Inputs, Tell, spread
from benchmarks.deployment import Deployment, Hosted, deployed
from benchmarks.family import FamilyWatch
from benchmarks.processes import cpu_seconds
from benchmarks.record import Part, Record
from benchmarks.spans import load_all
from benchmarks.trace import Timeline


def measure(case: Case, inputs: Inputs, folder: Path, tell: Tell, hosted: Hosted) -> Part:
    """Start the parties in ``folder``, run the case, and take apart what was seen."""
    np.save(folder / "images.npy", inputs.images)
    tell("starting three parties")
    with deployed(folder, hosted, case) as deployment:
        observed = _observe(deployment, case, tell)
    runs = observed["runs"]
    begin = min(run["times"][0] for run in runs)
    end = max(run["times"][-1] for run in runs)
    spans = breakdown.in_window(load_all(folder), begin, end)
    traffic = breakdown.traffic(hosted.predicted, spans, runs)
    breakdown.check(hosted.predicted, traffic, runs)
    answers = [
        (number, logits)
        for run in runs
        for number, logits in zip(run["images"], run["outputs"], strict=True)
    ]
    result = {
        **case.record(),
        **observed["result"],
        **inputs.fidelity(answers),
        **hosted.known,
    }
    return Part(
        result,
        traffic,
        _parties(deployment, observed),
        breakdown.gates(hosted.gates, spans, len(runs)) if hosted.timed else [],
        timeline=_timeline(hosted.gates, spans, runs),
    )


def _observe(deployment: Deployment, case: Case, tell: Tell) -> dict[str, Any]:
    """Everything that is seen while the parties run."""
    clinic = deployment.clinic
    with FamilyWatch({str(role): pid for role, pid in deployment.processes.items()}) as watch:
        fetched = clinic.ask(do="fetch")
        tell("first session")
        prepared = clinic.ask(do="prepare")
        material = deployment.material_bytes()
        first = clinic.ask(do="infer")
        tell(f"{case.inferences} inferences")
        before = _cpu(deployment)
        done = clinic.ask(do="run", count=case.inferences, workers=case.concurrency)
        after = _cpu(deployment)
    runs = done["runs"]
    cpu = {role: (after[role] - before[role]) / len(runs) for role in after}
    offline_cpu = None
    if case.concurrency == 1:
        offline_cpu = {
            role: float(np.mean([run["cpu"][1][role] - run["cpu"][0][role] for run in runs]))
            for role in cpu
        }
    last = runs[-1]
    return {
        "runs": runs,
        "cpu": cpu,
        "offline_cpu": offline_cpu,
        "memory": watch,
        "result": {
            **spread("online_seconds", [run["online_seconds"] for run in runs]),
            **spread("offline_seconds", [run["offline"]["seconds"] for run in runs]),
            "load_seconds_median": median(run["load_seconds"] for run in runs),
            "call_seconds_median": median(
                (run["times"][2] - run["times"][1]) / 1e9 for run in runs
            ),
            "cold_start_seconds": deployment.start_seconds + fetched["seconds"],
            "cold_online_seconds": first["online_seconds"],
            "cold_offline_seconds": prepared["seconds"],
            "online_bytes": sum(last["online_bytes"].values()),
            "offline_bytes": sum(last["offline"]["bytes"].values()),
            "setup_bytes": sum(fetched["bytes"].values()),
            "round_trips": last["round_trips"],
            "cpu_seconds": sum(cpu.values()),
            "offline_cpu_seconds": sum(offline_cpu.values()) if offline_cpu else None,
            "peak_rss_bytes": max(watch.peaks.values()),
            "resident_bytes": max(watch.resident.values()),
            "material_bytes": material,
            "images_per_second": len(runs) * case.batch / done["seconds"],
            "broken": sum(run["broken"] for run in runs),
        },
    }


def _timeline(gates: Sequence[str], spans: Spans, runs: Sequence[Mapping[str, Any]]) -> Timeline:
    """Of the fastest inference."""
    times = min(runs, key=lambda run: float(run["online_seconds"]))["times"]
    return Timeline(gates, breakdown.in_window(spans, times[0], times[-1]), times)


def _cpu(deployment: Deployment) -> dict[str, float]:
    return {str(role): cpu_seconds(pid) for role, pid in deployment.processes.items()}


def _parties(deployment: Deployment, observed: dict[str, Any]) -> list[Record]:
    offline = observed["offline_cpu"]
    return [
        {
            "party": str(role).replace("-", "_"),
            "cpu_seconds": observed["cpu"][role],
            "offline_cpu_seconds": offline[role] if offline else None,
            "peak_rss_bytes": observed["memory"].peaks[role],
            "resident_bytes": observed["memory"].resident[role],
        }
        for role in deployment.processes
    ]
