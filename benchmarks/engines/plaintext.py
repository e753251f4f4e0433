"""onnxruntime in the clear: what the same image costs where there is nothing to hide."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

from benchmarks.case import Case, Inputs, Tell, spread
from benchmarks.errors import NotAvailableError
from benchmarks.family import run_watched
from benchmarks.network import LOOPBACK
from benchmarks.record import Part


def measure(case: Case, inputs: Inputs, folder: Path, tell: Tell) -> Part:
    """See :class:`benchmarks.case.Engine`."""
    if case.device != "cpu":
        raise NotAvailableError("onnxruntime is measured on the CPU alone")
    if case.network != LOOPBACK or case.concurrency > 1:
        raise NotAvailableError("one process without a network; measured on loopback, one by one")
    np.save(folder / "images.npy", inputs.images)
    tell(f"{case.inferences} inferences")
    command = [sys.executable, "-m", "benchmarks.peers.plaintext", str(inputs.source.onnx)]
    command += ["--images", str(folder / "images.npy"), "--batch", str(case.batch)]
    command += ["--threads", str(case.threads), "--inferences", str(case.inferences)]
    watched = run_watched(command)
    report = json.loads(watched.output)
    answers = [
        (number, logits)
        for run in report["runs"]
        for number, logits in zip(run["images"], run["logits"], strict=True)
    ]
    seconds = spread("online_seconds", [run["seconds"] for run in report["runs"]])
    result = {
        **case.record(),
        **seconds,
        "call_seconds_median": seconds["online_seconds_median"],
        "cold_start_seconds": report["load_seconds"],
        "cold_online_seconds": report["cold_seconds"],
        "online_bytes": 0,
        "offline_bytes": 0,
        "setup_bytes": 0,
        "round_trips": 0,
        "one_way_delays": 0,
        "cpu_seconds": float(np.mean([run["cpu_seconds"] for run in report["runs"]])),
        "peak_rss_bytes": watched.anonymous,
        "resident_bytes": watched.resident,
        "material_bytes": 0,
        "images_per_second": sum(len(run["images"]) for run in report["runs"])
        / sum(run["seconds"] for run in report["runs"]),
        **inputs.fidelity(answers),
    }
    return Part(result)
