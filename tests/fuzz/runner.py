"""The long runner: mutations of the corpus, or atheris where it is installed, within limits."""

from __future__ import annotations

import json
import os
import random
import resource
import sys
import time
import traceback
import warnings
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.fuzz.mutate import MOST_BYTES, mutated
from tests.fuzz.targets import Target

MEMORY_BYTES = 4 << 30
"""Address space of a runner."""
GROWTH_KIB = 256 << 10
"""More resident memory for one input is a defect."""
SLOW_SECONDS = 5.0
"""Longer for one input is a defect, too."""
PACKAGES = ("radiopaque", "data_owner", "model_owner", "crypto_provider")


@dataclass(frozen=True)
class Outcome:
    """What one run did. ``growth_kib``: of the process's largest memory, after the seeds ran."""

    target: str
    engine: str
    seed: int
    executions: int
    accepted: int
    seconds: float
    slowest_seconds: float
    growth_kib: int
    defects: int


def limit() -> None:
    """Bound this process's memory, and leave no core file."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def mutate(target: Target, seed: int, executions: int, seconds: float, findings: Path) -> Outcome:
    """Run mutations until ``executions`` or ``seconds`` are over; a defect's bytes are kept."""
    warnings.simplefilter("ignore")
    rng = random.Random(seed)
    seeds = target.seeds()
    known: Counter[str] = Counter()
    accepted = sum(_one(target, data, findings, known) for data in seeds)
    before = most = _resident_kib()
    start = last = time.monotonic()
    done, slowest = len(seeds), 0.0
    # what a crash of the interpreter itself leaves behind
    current = findings / f"{target.name}-{seed}-{os.getpid()}.current"
    keeps = target.name in ("onnx", "dicom", "image", "certificates", "caller")
    while done < executions and last - start < seconds:
        data = mutated(rng, seeds)
        if keeps:
            current.write_bytes(data)
        accepted += _one(target, data, findings, known)
        done += 1
        now, size = time.monotonic(), _resident_kib()
        if size - most > GROWTH_KIB:
            known["memory"] += 1
            _keep(target, data, findings, f"memory-{size - most >> 10}MiB")
        most = size
        if now - last > SLOW_SECONDS:
            known["slow"] += 1
            _keep(target, data, findings, f"slow-{now - last:.0f}s")
        slowest, last = max(slowest, now - last), now
    current.unlink(missing_ok=True)
    return Outcome(
        target.name,
        "mutations",
        seed,
        done,
        accepted,
        round(last - start, 1),
        round(slowest, 3),
        most - before,
        sum(known.values()),
    )


def _resident_kib() -> int:
    """The largest that this process has been, and of those that it started the largest one."""
    whose = resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN
    return sum(resource.getrusage(one).ru_maxrss for one in whose)


def _one(target: Target, data: bytes, findings: Path, known: Counter[str]) -> bool:
    try:
        return target.run(data)
    except Exception as error:  # that is what is looked for
        frames = traceback.extract_tb(error.__traceback__)
        place = f"{type(error).__name__}-{Path(frames[-1].filename).name}-{frames[-1].lineno}"
        if not known[place]:
            _keep(target, data, findings, place)
            print(f"{target.name}: {place}", file=sys.stderr)
            traceback.print_exception(error, limit=-6)
        known[place] += 1
        return False


def _keep(target: Target, data: bytes, findings: Path, name: str) -> None:
    findings.mkdir(parents=True, exist_ok=True)
    (findings / f"{target.name}-{name}").write_bytes(data)


def atheris(target: Target, seed: int, executions: int, seconds: float, findings: Path) -> None:
    """The same under coverage guidance; ends the process. New inputs go to ``findings``."""
    import atheris as engine

    with engine.instrument_imports(include=list(PACKAGES), exclude=_kernels()):
        for data in target.seeds():
            target.run(data)

    def one(data: bytes) -> None:
        target.run(data)

    folder = findings / f"atheris-{target.name}"
    folder.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(target.seeds()):
        (folder / f"seed-{number}").write_bytes(data)
    warnings.simplefilter("ignore")
    engine.Setup(
        [
            sys.argv[0],
            f"-seed={seed}",
            f"-runs={executions}",
            f"-max_total_time={int(seconds)}",
            f"-max_len={MOST_BYTES}",
            f"-rss_limit_mb={MEMORY_BYTES >> 20}",
            f"-artifact_prefix={findings}/{target.name}-",
            str(folder),
        ],
        one,
    )
    engine.Fuzz()


def _kernels() -> list[str]:
    """Modules that Numba compiles, and could not with what measures coverage in them."""
    root = Path(__file__).parents[2]
    paths = (root / "radiopaque" / "kernels").rglob("*.py")
    return [".".join(path.relative_to(root).with_suffix("").parts) for path in paths]


def report(outcome: Outcome) -> str:
    """One line of JSON."""
    return json.dumps(asdict(outcome))
