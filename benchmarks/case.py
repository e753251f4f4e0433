"""One configuration to measure, and what all engines are given for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from benchmarks.models import Choice
from benchmarks.network import Network
from benchmarks.record import Part, Record
from radiopaque.cli.models import ModelSource

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Case:
    """What is measured."""

    model: Choice
    engine: str
    network: Network
    device: str = "cpu"
    threads: int = 1
    batch: int = 1
    concurrency: int = 1
    inferences: int = 5

    def __str__(self) -> str:
        more = [
            f"{count} {name}"
            for name, count in (
                ("threads", self.threads),
                ("images at once", self.batch),
                ("inferences at once", self.concurrency),
            )
            if count > 1
        ]
        device = [] if self.device == "cpu" else [self.device]
        return ", ".join([f"{self.model} {self.engine} on {self.network.name}", *device, *more])

    def record(self) -> Record:
        """The keys of a result that say what was measured."""
        rate = self.network.mbit
        return {
            "model": self.model.name,
            "image_size": self.model.size,
            "engine": self.engine,
            "device": self.device,
            "network": self.network.name,
            "rtt_ms": self.network.rtt_ms,
            "mbit_per_second": rate if np.isfinite(rate) else None,
            "threads": self.threads,
            "batch": self.batch,
            "concurrency": self.concurrency,
            "inferences": self.inferences,
        }


@dataclass(frozen=True)
class Inputs:
    """A model's folder, its images, float32 [n, c, h, w], and their logits in the clear."""

    source: ModelSource
    images: NDArray[np.float32] = field(repr=False)
    reference: NDArray[np.float64] = field(repr=False)

    def fidelity(self, answers: Sequence[tuple[int, Sequence[float]]]) -> Record:
        """How far off answers are, each with the number of its image."""
        found = np.array([logits for _, logits in answers])
        true = self.reference[[number for number, _ in answers]]
        errors = np.abs(found - true)
        return {
            "max_abs_logit_error": float(errors.max()),
            "mean_abs_logit_error": float(errors.mean()),
            "argmax_agreement": float((found.argmax(1) == true.argmax(1)).mean()),
            "images": len({number for number, _ in answers}),
        }


class Engine(Protocol):
    """Something that can be measured. Raises NotAvailableError where a case is not for it."""

    def __call__(self, case: Case, inputs: Inputs, folder: Path, tell: Tell) -> Part:
        """Measure in an empty folder, which may be left as it is."""
        ...


def spread(name: str, seconds: list[float]) -> Record:
    """Smallest, median and largest of a list, as keys of a result."""
    return {
        f"{name}_min": min(seconds),
        f"{name}_median": float(np.median(seconds)),
        f"{name}_max": max(seconds),
    }
