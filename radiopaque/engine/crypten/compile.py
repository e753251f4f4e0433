"""Compiling for CrypTen: a program, the list of its tuples, and a check against onnxruntime.

The check is the part that matters. CrypTen overflows without a sign, and several of its functions
are approximations that hold in a range only; so the program is run once in CrypTen's own arithmetic
on an image, and a model whose result is off is refused.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray

from radiopaque.engine.crypten.encoding import encode_plan
from radiopaque.engine.crypten.frontend import Floats, Translated, translate
from radiopaque.engine.crypten.plan import CryptenPlan, validate
from radiopaque.engine.crypten.process import Job, Setup, Worker
from radiopaque.engine.crypten.program import Program
from radiopaque.engine.crypten.tuples import Request, TupleKind
from radiopaque.errors import ManifestError, UnsupportedModelError
from radiopaque.graph.manifest import Manifest
from radiopaque.prg import ID_BYTES, KEY_BYTES, SecretKey
from radiopaque.wire.frames import DIGEST_BYTES

MOST_ERROR: Final = 0.05
"""Largest difference to onnxruntime, for outputs up to 1, and in proportion beyond."""
MOST_BITS: Final = 56
"""Of a value before truncation; at 56 every 128th such value would be grossly wrong."""
TRACE_SECONDS: Final = 1800.0


@dataclass(frozen=True)
class Report:
    """What the compiler saw when it ran the program on one image."""

    largest_error: float
    largest_output: float
    truncations: int
    gross_errors: float
    largest_bits: int


@dataclass(frozen=True)
class CompiledCrypten:
    """The public plan, the model owner's secret tensors by value, and the report."""

    plan: CryptenPlan
    constants: dict[int, Floats] = field(repr=False)
    report: Report


def compile_crypten(
    model: Path | onnx.ModelProto,
    *,
    manifest: Manifest | None = None,
    image: NDArray[np.floating] | None = None,
    batch: int | None = None,
    name: str | None = None,
    version: str | None = None,
) -> CompiledCrypten:
    """Compile a model for CrypTen; takes about as long as an inference.

    ``image``: [n, c, h, w] to check it on, best a real one; by default a pattern. Raises ModelError
    for what CrypTen does not compute, or not well enough, and ConfigError where it is not
    installed.
    """
    translated = translate(model, batch)
    program = translated.program
    shown = _pattern(program) if image is None else _fitting(image, program)
    traced = _trace(program, translated, shown)
    expected = _plaintext(model, translated, shown)
    report = _report(traced, expected)
    _check(report)
    requests = tuple(
        Request(TupleKind(kind), tuple(left), tuple(right), tuple(integers))
        for kind, left, right, integers in traced["requests"]
    )
    plan = _plan(translated, requests, report, manifest, model, name, version)
    validate(plan)
    return CompiledCrypten(plan, dict(translated.constants), report)


def _trace(program: Program, translated: Translated, image: Floats) -> dict[str, Any]:
    bare = encode_plan(CryptenPlan("trace", "1", program, ()))
    setup = Setup(
        Job.TRACE, bytes(ID_BYTES), bytes(DIGEST_BYTES), SecretKey(bytes(KEY_BYTES)), bare
    )
    arrays = [translated.constants[number] for number, _ in program.constant_shapes()]
    with Worker(TRACE_SECONDS) as worker:
        worker.wait_ready()
        worker.start(setup, [*arrays, image])
        traced: dict[str, Any] = json.loads(worker.serve())
    return traced


def _plaintext(
    model: Path | onnx.ModelProto, translated: Translated, image: Floats
) -> NDArray[np.float64]:
    """onnxruntime's outputs before the activation that the data owner applies."""
    import onnxruntime

    loaded = onnx.load(str(model)) if isinstance(model, Path) else model
    if translated.output != loaded.graph.output[0].name:
        exposed = onnx.ModelProto()
        exposed.CopyFrom(loaded)
        del exposed.graph.output[:]
        exposed.graph.output.append(onnx.ValueInfoProto(name=translated.output))
        loaded = exposed
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        loaded.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    entry = session.get_inputs()[0]
    kinds = {"tensor(float16)": np.float16, "tensor(double)": np.float64}
    result = session.run(None, {entry.name: image.astype(kinds.get(entry.type, np.float32))})[0]
    return np.asarray(result, np.float64).reshape(-1)


def _report(traced: dict[str, Any], expected: NDArray[np.float64]) -> Report:
    found = np.asarray(traced["outputs"], np.float64)
    return Report(
        float(np.abs(found - expected).max()),
        float(np.abs(expected).max()),
        int(traced["truncations"]),
        float(traced["gross_errors"]),
        int(traced["largest_bits"]),
    )


def _check(report: Report) -> None:
    """Raise UnsupportedModelError for a model that CrypTen computes wrongly."""
    problems = []
    allowed = MOST_ERROR * max(1.0, report.largest_output)
    if not report.largest_error <= allowed:
        problems.append(
            f"CrypTen's outputs are off by {report.largest_error:.3g} from onnxruntime's, over "
            f"{allowed:.3g}; remedy: scale the activations into the range of CrypTen's "
            "approximations (docs/crypten-engine.md), or replace the operators that it approximates"
        )
    if report.largest_bits > MOST_BITS:
        problems.append(
            f"a value takes {report.largest_bits} of 64 bits before its truncation, over "
            f"{MOST_BITS}: results would often be grossly wrong; remedy: scale the layer down"
        )
    if problems:
        raise UnsupportedModelError(problems)


def _plan(
    translated: Translated,
    requests: tuple[Request, ...],
    report: Report,
    manifest: Manifest | None,
    model: Path | onnx.ModelProto,
    name: str | None,
    version: str | None,
) -> CryptenPlan:
    stem = model.stem if isinstance(model, Path) else model.graph.name or "model"
    if manifest is None:
        return CryptenPlan(
            name or stem,
            version or "1",
            translated.program,
            requests,
            task=translated.task or "raw",
            gross_errors=report.gross_errors,
            largest_output=report.largest_output,
        )
    if translated.task is not None and manifest.task != translated.task:
        raise ManifestError(
            f"the model ends with the activation of a {translated.task} task, the manifest says "
            f"{manifest.task!r}; correct its key 'task'"
        )
    return CryptenPlan(
        name or manifest.name,
        version or manifest.version,
        translated.program,
        requests,
        manifest.classes,
        manifest.task,
        manifest.preprocessing,
        manifest.intended_use,
        report.gross_errors,
        report.largest_output,
    )


def _pattern(program: Program) -> Floats:
    """Waves of every length between -2 and 2: nothing random, nothing flat."""
    size = int(np.prod(program.input_shape))
    steps = np.arange(size, dtype=np.float64)
    waves = np.sin(steps * 0.013) + np.sin(steps * 0.37) * np.cos(steps * 0.0007)
    pattern: Floats = waves.astype(np.float32).reshape(program.input_shape)
    return pattern


def _fitting(image: NDArray[np.floating], program: Program) -> Floats:
    fitting: Floats = np.broadcast_to(image, program.input_shape).astype(np.float32)
    return fitting
