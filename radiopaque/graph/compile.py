"""The compiler: an ONNX file and ranges become a public plan, private weights and a report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import onnx

from radiopaque.errors import ManifestError, ModelRangeError, UnsupportedModelError
from radiopaque.graph.divisors import divisors
from radiopaque.graph.draft import Interval
from radiopaque.graph.emit import Emitted, emit
from radiopaque.graph.folding import fold
from radiopaque.graph.intervals import Promise, intervals
from radiopaque.graph.labels import label_only
from radiopaque.graph.lowering.driver import validate_support
from radiopaque.graph.manifest import Manifest
from radiopaque.graph.onnx_file import check_model, load_model
from radiopaque.graph.onnx_import import import_model
from radiopaque.graph.passes import prune, simplify
from radiopaque.graph.plan import LABEL_BITS, Plan, Preprocessing, Task
from radiopaque.graph.preprocessing import reachable
from radiopaque.graph.report import Report, make_report
from radiopaque.graph.scales import POLICIES, targets
from radiopaque.graph.settling import insert_settles
from radiopaque.graph.validate import validate_plan
from radiopaque.graph.weights import Weights

DEFAULT_MARGIN = 4.0
"""How far beyond the calibrated maximum a value may go."""
DEFAULT_OUTPUT_BITS = 16


@dataclass(frozen=True)
class Compiled:
    """The public plan, the model owner's secret weights, and what the compiler has to say."""

    plan: Plan
    weights: Weights = field(repr=False)
    report: Report


def compile_model(
    model: Path | onnx.ModelProto,
    *,
    manifest: Manifest | None = None,
    ranges: Mapping[str, Interval] | None = None,
    ring_bits: int = 32,
    batch: int | None = None,
    margin: float = DEFAULT_MARGIN,
    output_bits: int = DEFAULT_OUTPUT_BITS,
    labels_only: bool = False,
    name: str | None = None,
    version: str | None = None,
) -> Compiled:
    """Compile a model; deterministic.

    ``ranges`` (or else the manifest's) are [smallest, largest] by ONNX tensor name, from training
    images; without any, only a 64-bit ring is possible. ``batch``: images in one inference, for a
    model whose batch dimension is dynamic. ``output_bits``: bits of each output that the data owner
    learns; ``labels_only``: it learns which classes apply and no score. Raises ModelError.
    """
    if ring_bits not in POLICIES:
        raise ModelRangeError(f"the ring has 32 or 64 bits, not {ring_bits}")
    if not 1 <= output_bits <= 63:
        raise ModelRangeError(f"{output_bits} output bits are not in 1 to 63; 16 is the default")
    if not 1 <= margin <= 1024:
        raise ModelRangeError(f"the margin {margin} is not in 1 to 1024; 4 is the default")
    if batch is not None and batch < 1:
        raise ModelRangeError(f"a batch of {batch} images is not possible; use 1 or more")
    if ranges is None and manifest is not None:
        ranges = manifest.ranges or None
    loaded = load_model(model) if isinstance(model, Path) else model
    if not isinstance(model, Path):
        check_model(loaded)
    imported = import_model(loaded, batch)
    simplified = simplify(prune(imported.graph))
    draft = validate_support(simplified.graph, (*imported.problems, *simplified.problems))
    if ranges is None and ring_bits == 32:
        raise ModelRangeError(
            "no ranges are known for this model, and in the 32-bit ring every bit counts: "
            "calibrate with --calibration DIR (images from training data), or use --ring 64"
        )
    if labels_only:
        task = manifest.task if manifest is not None else simplified.task
        draft = label_only(draft, task or "raw")
        output_bits = LABEL_BITS
    ops = insert_settles(fold(draft.ops))
    policy = POLICIES[ring_bits]
    if ranges is not None and manifest is not None:
        ranges = _reachable(ranges, imported.graph.input, manifest.preprocessing, margin)
    bounds = intervals(ops, Promise(ranges, margin))
    shared = divisors(ops)
    scales = targets(ops, bounds.allowed, shared.clashing, policy, margin, output_bits)
    emitted = emit(ops, bounds, shared, scales, policy, output_bits)
    plan = _plan(emitted, manifest, simplified.task, ring_bits, name, version, model)
    validate_plan(plan)
    report = make_report(plan, ops, emitted.sources, ranges, margin)
    return Compiled(plan, emitted.weights, report)


def check_support(model: Path | onnx.ModelProto, batch: int | None = None) -> tuple[str, ...]:
    """Every reason why a model cannot be compiled, without ranges; empty if there is none.

    Raises ModelFileError, UnsupportedOpsetError, InvalidWeightsError.
    """
    loaded = load_model(model) if isinstance(model, Path) else model
    imported = import_model(loaded, batch)
    simplified = simplify(prune(imported.graph))
    try:
        validate_support(simplified.graph, (*imported.problems, *simplified.problems))
    except UnsupportedModelError as error:
        return error.problems
    return ()


def _reachable(
    ranges: Mapping[str, Interval], tensor: str, spec: Preprocessing, margin: float
) -> Mapping[str, Interval]:
    """Ranges in which the input, margin included, covers all that preprocessing can produce.

    A clinic must never have to refuse an image: the vendor would learn which.
    """
    low, high = (end / margin for end in reachable(spec))
    before = ranges.get(tensor, (low, high))
    return {**ranges, tensor: (min(low, before[0]), max(high, before[1]))}


def _plan(
    emitted: Emitted,
    manifest: Manifest | None,
    task: Task | None,
    ring_bits: int,
    name: str | None,
    version: str | None,
    model: Path | onnx.ModelProto,
) -> Plan:
    stem = model.stem if isinstance(model, Path) else model.graph.name or "model"
    if manifest is None:
        return Plan(ring_bits, name or stem, version or "1", emitted.steps, task=task or "raw")
    if task is not None and manifest.task != task:
        raise ManifestError(
            f"the model ends with the activation of a {task} task, the manifest says "
            f"{manifest.task!r}; correct its key 'task'"
        )
    return Plan(
        ring_bits,
        name or manifest.name,
        version or manifest.version,
        emitted.steps,
        manifest.classes,
        manifest.task,
        manifest.preprocessing,
        manifest.intended_use,
    )
