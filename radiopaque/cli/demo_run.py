"""What the demo does: certificates, compiling, three processes, the comparison."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from radiopaque.certificates import CertificateFiles, Role, init_directory
from radiopaque.cli.memory import MemoryWatch
from radiopaque.cli.models import find_model, tensors
from radiopaque.cli.parties import COMMAND, Parties, peer_table
from radiopaque.errors import RadiopaqueError

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Wish:
    """What to demonstrate."""

    model: Path
    image: Path
    ring_bits: int
    repeat: int
    output: Path | None


def run_demo(folder: Path, wish: Wish, tell: Tell) -> dict[str, Any]:
    """One demonstration in ``folder``; returns the keys that ``radiopaque demo --json`` prints."""
    model, image = wish.model, wish.image
    tell("making certificates for the three roles")
    certificates = init_directory(folder / "certificates")
    tell(f"compiling {model.name} (ONNX to plan and weights)")
    plan_task = _compile(model, folder / "compiled", wish.ring_bits)
    with _started(folder, certificates, tell) as (data_owner_config, memory):
        tell(f"data owner: fetching the model, preparing {_sessions(wish.repeat)}")
        base = [*COMMAND, "data-owner"]
        config = ["--config", str(data_owner_config), "--json"]
        prepared = _call([*base, "prepare", "--count", str(wish.repeat), *config])
        tell(f"data owner: submitting {image.name}")
        extra = ["--output", str(wish.output)] if wish.output else []
        submitted = _call([*base, "submit", *[str(image)] * wish.repeat, *config, *extra])
    tell("running the same image through onnxruntime in the clear, to compare")
    plain, plain_probabilities = _plaintext(model, image, plan_task)
    results = submitted["results"]
    report = results[0]
    errors = [
        abs(a - b) for result in results for a, b in zip(result["logits"], plain, strict=True)
    ]
    setup = {
        key: value + submitted["setup_bytes"][key] for key, value in prepared["setup_bytes"].items()
    }
    return {
        "model": report["model"],
        "version": report["version"],
        "image": image.name,
        "classes": report["classes"],
        "secure_probabilities": report["probabilities"],
        "plaintext_probabilities": plain_probabilities,
        "secure_logits": report["logits"],
        "plaintext_logits": plain,
        "max_abs_logit_error": max(errors),
        "repeat": wish.repeat,
        "online_seconds": median(result["online_seconds"] for result in results),
        "offline_seconds": median(item["seconds"] for item in prepared["prepared"]),
        "prepare_seconds": median(result["prepare_seconds"] for result in results),
        "round_trips": report["round_trips"],
        "online_bytes": report["online_bytes"],
        "offline_bytes": prepared["prepared"][0]["bytes"],
        "setup_bytes": setup,
        "memory_bytes": memory,
        "warnings": report["warnings"],
    }


def _sessions(count: int) -> str:
    return "a session" if count == 1 else f"{count} sessions"


def _compile(model: Path, output: Path, ring_bits: int) -> Any:
    from radiopaque.engine.weights_file import write_compiled
    from radiopaque.graph.compile import compile_model

    source = find_model(model)
    compiled = compile_model(source.onnx, manifest=source.manifest, ring_bits=ring_bits)
    write_compiled(output, compiled.plan, compiled.weights)
    return compiled.plan.task


def _plaintext(model: Path, image: Path, task: Any) -> tuple[list[float], list[float]]:
    from data_owner.results import probabilities
    from radiopaque.cli.fidelity import plaintext_session

    source = find_model(model)
    tensor = next(tensors([image], source.preprocessing))
    logits = plaintext_session(source.onnx)(tensor).reshape(-1)
    return logits.tolist(), probabilities(logits, task).tolist()


@contextmanager
def _started(
    folder: Path, certificates: dict[Role, CertificateFiles], tell: Tell
) -> Iterator[tuple[Path, dict[str, int]]]:
    """Crypto provider and model owner as processes.

    Yields the data owner's configuration, and their peak memory, complete when the block is over.
    """
    with Parties(folder, certificates) as parties:
        tell("starting the crypto provider")
        provider = peer_table(Role.CRYPTO_PROVIDER, parties.serve(Role.CRYPTO_PROVIDER))
        tell("starting the model owner")
        models = f'[[models]]\npath = "{folder / "compiled"}"\n'
        owner = peer_table(Role.MODEL_OWNER, parties.serve(Role.MODEL_OWNER, provider + models))
        name = _hosted_name(folder / "compiled")
        config = parties.configure(Role.DATA_OWNER, f'model = "{name}"\n', owner + provider)
        watched = {
            str(role).replace("-", "_"): process.pid for role, process in parties.processes.items()
        }
        with MemoryWatch(watched) as watch:
            yield config, watch.peaks


def _hosted_name(compiled: Path) -> str:
    from radiopaque.engine.weights_file import PLAN_FILE
    from radiopaque.wire.plans import decode_plan

    return decode_plan((compiled / PLAN_FILE).read_bytes()).name


def _call(command: list[str]) -> dict[str, Any]:
    """Run a data owner's command in a process of its own and read its JSON."""
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise RadiopaqueError(f"{' '.join(command[3:6])} failed: {result.stderr.strip()[-2000:]}")
    answer: dict[str, Any] = json.loads(result.stdout)
    return answer
