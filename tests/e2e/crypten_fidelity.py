"""How far CrypTen over our tuples is from onnxruntime, run by run.

    python -m tests.e2e.crypten_fidelity MODEL [RUNS]

prints one JSON object. MODEL: an ONNX file, a model folder, or one that the benchmarks make, such
as ``resnet18@64``. Runs share out the sample images. A run whose largest logit error is over 0.5
counts as grossly wrong.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.models import choose, obtain, sample_images
from radiopaque.cli.models import find_model
from radiopaque.engine.crypten.compile import compile_crypten
from radiopaque.engine.crypten.local import infer
from tests.unit.graph.support import plaintext

GROSS = 0.5


def measure(name: str, runs: int) -> dict[str, Any]:
    """Compile, run so often, compare each run's outputs with onnxruntime's."""
    import onnx

    source = find_model(Path(name)) if Path(name).exists() else obtain(choose(name))
    images = sample_images(source.preprocessing)
    compiled = compile_crypten(source.onnx, manifest=source.manifest, image=images[:1])
    model = onnx.load(str(source.onnx))
    errors, agreements, seconds = [], [], []
    for number in range(runs):
        image = images[number % len(images)][np.newaxis]
        expected = plaintext(model, image)
        started = time.perf_counter()
        found = infer(compiled, image).outputs
        seconds.append(time.perf_counter() - started)
        errors.append(float(np.abs(found - expected).max()))
        agreements.append(bool((found.argmax(-1) == expected.argmax(-1)).all()))
        print(f"run {number + 1}: error {errors[-1]:.4g}, {seconds[-1]:.1f} s", file=sys.stderr)
    return {
        "model": name,
        "runs": runs,
        "median_error": float(np.median(errors)),
        "largest_error": max(errors),
        "grossly_wrong": sum(error > GROSS for error in errors),
        "agreement": float(np.mean(agreements)),
        "median_seconds": float(np.median(seconds)),
        "report": asdict(compiled.report),
        "cost": asdict(compiled.plan.cost()),
    }


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 20)))
