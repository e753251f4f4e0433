"""CrypTen as it comes, in its own two processes, with its default provider: dealing in the clear.

Its provider has rank 0 draw every triple, so that the party that owns the model knows all masks.
That dealing is inside its online time, and stated apart, so that it can be taken out; there is no
offline phase, and its bytes leave dealing out, as rank 0 hands nothing over.
"""

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
from radiopaque.engine.crypten.process import check_installed
from radiopaque.errors import ConfigError


def measure(case: Case, inputs: Inputs, folder: Path, tell: Tell) -> Part:
    """See :class:`benchmarks.case.Engine`."""
    try:
        check_installed()
    except ConfigError as error:
        raise NotAvailableError(str(error)) from None
    if case.device != "cpu":
        raise NotAvailableError("CrypTen is measured on the CPU alone")
    if case.network != LOOPBACK:
        raise NotAvailableError(
            "its two processes connect on ports of their own choice, where no relay can stand"
        )
    if case.batch > 1 or case.concurrency > 1:
        raise NotAvailableError("its state is global: one image at a time, one by one")
    numbers = [0, *(number % len(inputs.images) for number in range(case.inferences))]
    np.save(folder / "images.npy", inputs.images[numbers])
    tell(f"{case.inferences} inferences after a first one, in two processes")
    command = [sys.executable, "-m", "benchmarks.peers.crypten_stock", str(inputs.source.onnx)]
    command += ["--images", str(folder / "images.npy"), "--threads", str(case.threads)]
    watched = run_watched(command)
    report = json.loads(watched.output)
    first, *runs = report["runs"]
    answers = [(number, run["logits"]) for number, run in zip(numbers[1:], runs, strict=True)]
    seconds = spread("online_seconds", [run["online_seconds"] for run in runs])
    rounds = round(float(np.median([run["rounds"] for run in runs])))
    result = {
        **case.record(),
        **seconds,
        "offline_seconds_min": 0.0,
        "offline_seconds_median": 0.0,
        "offline_seconds_max": 0.0,
        "call_seconds_median": seconds["online_seconds_median"],
        "dealing_seconds_median": float(np.median([run["dealing_seconds"] for run in runs])),
        "cold_start_seconds": report["setup_seconds"],
        "cold_online_seconds": first["online_seconds"],
        "online_bytes": round(float(np.median([run["bytes"] for run in runs]))),
        "offline_bytes": 0,
        "round_trips": rounds,
        "one_way_delays": rounds,
        "cpu_seconds": float(np.mean([run["cpu_seconds"] for run in runs])),
        "peak_rss_bytes": watched.anonymous,
        "resident_bytes": watched.resident,
        "material_bytes": 0,
        "images_per_second": len(runs) / sum(run["online_seconds"] for run in runs),
        **inputs.fidelity(answers),
    }
    return Part(result)
