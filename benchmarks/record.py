"""What a benchmark writes down: flat records, and what their keys mean.

One file holds the machine, the versions, and lists of flat records: ``results``, one for each
configuration; ``traffic``, ``parties`` and ``gates``, which take a result apart and name it by its
number in ``result``; ``floors``; ``fits``; ``skipped``. Keys that do not apply are null.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Self

from benchmarks.errors import BenchmarkError
from benchmarks.processes import machine, versions
from benchmarks.trace import Timeline

SCHEMA: Final = 1
Record = dict[str, Any]

RESULT_KEYS: Final[Mapping[str, str]] = {
    "model": "name of the network",
    "image_size": "side of its square images",
    "engine": "compiled-32, compiled-64, crypten, crypten-stock, onnxruntime, spu",
    "device": "cpu or cuda",
    "network": "what lies between any two parties",
    "rtt_ms": "round-trip time that the relays add",
    "mbit_per_second": "rate of each direction of each link; null: not limited",
    "threads": "threads that each party computes with",
    "batch": "images in one inference",
    "concurrency": "inferences under way at once",
    "inferences": "how many were measured, after a first one that warms up",
    "online_seconds_min": "from the preprocessed tensor to the logits at its owner; fastest",
    "online_seconds_median": "median",
    "online_seconds_max": "slowest",
    "offline_seconds_min": "making one inference's material, before the image; fastest",
    "offline_seconds_median": "median",
    "offline_seconds_max": "slowest",
    "load_seconds_median": "bringing stored material into memory at both parties",
    "call_seconds_median": "from the data owner's call with an image to its logits, all included",
    "dealing_seconds_median": "the part of the online time in which a peer deals",
    "cold_start_seconds": "from nothing to parties that are ready for a first inference",
    "cold_online_seconds": "online part of the first inference",
    "cold_offline_seconds": "offline part of the first inference",
    "online_bytes": "messages of one inference, all links and directions",
    "offline_bytes": "messages of making its material, all links and directions",
    "setup_bytes": "messages once for each model version",
    "round_trips": "messages that one party needs before it can go on, there and back",
    "one_way_delays": "network delays on the critical path, each half a round-trip time",
    "cpu_seconds": "processor time of one inference with its material, all parties added up",
    "offline_cpu_seconds": "the part of making material; null where it cannot be told apart",
    "peak_rss_bytes": "most anonymous memory of the party that needs most, sampled",
    "resident_bytes": "its high-water mark by the kernel, mapped files included",
    "material_bytes": "material of one inference on disk",
    "images_per_second": "sustained, material made on the way",
    "max_abs_logit_error": "largest difference to onnxruntime in the clear",
    "mean_abs_logit_error": "mean difference",
    "argmax_agreement": "fraction of images with the same top class as onnxruntime",
    "images": "different images that the errors are over",
    "floor_seconds": "what the kernels and the bytes take by themselves (compiled, loopback)",
    "online_over_floor": "the median online time by that",
    "online_over_plaintext": "the median online time by onnxruntime's in this run",
    "broken": "inferences that a broken connection cost, each repeated on fresh material",
    "comparisons": "comparisons of one inference (compiled engines)",
    "multiply_adds": "ring multiply-adds of one inference (compiled engines)",
    "weight_bytes": "ring words of the weights (compiled engines)",
    "largest_value_bytes": "ring words of the network's largest value (compiled engines)",
}


@dataclass
class Part:
    """One configuration's figures, and what takes them apart."""

    result: Record
    traffic: list[Record] = field(default_factory=list)
    parties: list[Record] = field(default_factory=list)
    gates: list[Record] = field(default_factory=list)
    floors: list[Record] = field(default_factory=list)
    timeline: Timeline | None = field(default=None, repr=False)
    accelerator: str | None = None
    """Name of the GPU that computed, where one did."""


@dataclass
class Report:
    """All figures of one run of the harness, which was to measure ``planned`` cases."""

    created: str
    machine: Mapping[str, Any]
    versions: Mapping[str, str]
    planned: int = 0
    results: list[Record] = field(default_factory=list)
    traffic: list[Record] = field(default_factory=list)
    parties: list[Record] = field(default_factory=list)
    gates: list[Record] = field(default_factory=list)
    floors: list[Record] = field(default_factory=list)
    fits: list[Record] = field(default_factory=list)
    skipped: list[Record] = field(default_factory=list)

    @classmethod
    def empty(cls) -> Self:
        """A report of this machine, now."""
        return cls(datetime.now(UTC).isoformat(timespec="seconds"), machine(), versions())

    def add(self, part: Part) -> None:
        """Append a configuration; keys that it leaves out are null."""
        unknown = set(part.result) - set(RESULT_KEYS)
        if unknown:
            raise ValueError(f"results have no keys {sorted(unknown)}")
        if part.accelerator is not None:
            self.machine = {**self.machine, "accelerator": part.accelerator}
        number = len(self.results)
        self.results.append(_rounded({key: part.result.get(key) for key in RESULT_KEYS}))
        for own, records in (
            (self.traffic, part.traffic),
            (self.parties, part.parties),
            (self.gates, part.gates),
            (self.floors, part.floors),
        ):
            own += [_rounded({"result": number, **record}) for record in records]

    def of(self, records: list[Record], result: Record) -> list[Record]:
        """Those of ``traffic``, ``parties``, ``gates`` or ``floors`` that belong to a result."""
        number = self.results.index(result)
        return [record for record in records if record["result"] == number]

    def save(self, path: Path) -> None:
        """Write as JSON, one record a line. The file is whole at any time, old or new."""
        lists = {
            key: "[\n" + ",\n".join(f"    {json.dumps(record)}" for record in value) + "\n  ]"
            if isinstance(value, list) and value
            else json.dumps(value)
            for key, value in asdict(self).items()
        }
        body = ",\n".join(f"  {json.dumps(key)}: {value}" for key, value in lists.items())
        path.parent.mkdir(parents=True, exist_ok=True)
        # beside the file, so that replacing it is one step of the file system
        new = path.with_name(f".{path.name}.new")
        new.write_text(f'{{\n  "schema": {SCHEMA},\n{body}\n}}\n')
        new.replace(path)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what :meth:`save` wrote. Raises BenchmarkError for anything else."""
        try:
            content = json.loads(path.read_text())
        except OSError as error:
            raise BenchmarkError(f"cannot read {path}: {error.strerror}") from error
        except ValueError as error:
            raise BenchmarkError(f"{path} is no JSON file: {error}") from error
        if not isinstance(content, dict) or content.pop("schema", None) != SCHEMA:
            raise BenchmarkError(f"{path} was not written by radiopaque bench --json")
        try:
            report = cls(**content)
        except TypeError as error:
            raise BenchmarkError(f"{path} lacks or has keys of another version: {error}") from error
        # an older file lacks what was not measured yet
        empty = dict.fromkeys(RESULT_KEYS)
        report.results = [{**empty, **record} for record in report.results]
        return report


def _rounded(record: Record) -> Record:
    """Floats to seven significant digits: the rest is noise, and hard to read."""
    return {
        key: float(f"{value:.7g}") if isinstance(value, float) else value
        for key, value in record.items()
    }
