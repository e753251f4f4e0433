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

from benchmarks.case import Case, Inputs, Tell
from benchmarks.engines import peer
from benchmarks.errors import NotAvailableError
from benchmarks.family import run_watched
from benchmarks.record import Part
from radiopaque.engine.crypten.process import check_installed
from radiopaque.errors import ConfigError


def measure(case: Case, inputs: Inputs, folder: Path, tell: Tell) -> Part:
    """See :class:`benchmarks.case.Engine`."""
    try:
        check_installed()
    except ConfigError as error:
        raise NotAvailableError(str(error)) from None
    peer.check(
        case,
        "CrypTen",
        "its two processes connect on ports of their own choice, where no relay can stand",
        "its state is global: one image at a time, one by one",
    )
    numbers = peer.give_images(case, inputs, folder)
    tell(f"{case.inferences} inferences after a first one, in two processes")
    command = [sys.executable, "-m", "benchmarks.peers.crypten_stock", str(inputs.source.onnx)]
    command += ["--images", str(folder / "images.npy"), "--threads", str(case.threads)]
    watched = run_watched(command)
    report = json.loads(watched.output)
    runs = report["runs"][1:]
    rounds = round(float(np.median([run["rounds"] for run in runs])))
    more = {
        "dealing_seconds_median": float(np.median([run["dealing_seconds"] for run in runs])),
        "round_trips": rounds,
        "one_way_delays": rounds,
    }
    return peer.part(case, inputs, numbers, report, watched, more)
