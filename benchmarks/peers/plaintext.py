"""Inference with onnxruntime in a process of its own; prints one JSON object.

python -m benchmarks.peers.plaintext MODEL.onnx --images FILE.npy
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np

from radiopaque.cli.fidelity import plaintext_session


def main() -> None:
    """One inference that warms up, then as many as asked for."""
    parser = argparse.ArgumentParser(description="Time onnxruntime on a model.")
    parser.add_argument("model", type=Path)
    parser.add_argument("--images", type=Path, required=True, help=".npy, float32 [n, c, h, w]")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--inferences", type=int, default=5)
    given = parser.parse_args()
    images = np.load(given.images, allow_pickle=False)
    began = time.perf_counter()
    infer = plaintext_session(given.model, given.threads)
    loaded = time.perf_counter()
    infer(images[: given.batch])
    cold = time.perf_counter()
    runs = []
    for number in range(given.inferences):
        chosen = np.arange(number * given.batch, (number + 1) * given.batch) % len(images)
        cpu, start = time.process_time(), time.perf_counter()
        logits = infer(images[chosen])
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
        runs.append(
            {
                "seconds": seconds,
                "cpu_seconds": cpu,
                "images": chosen.tolist(),
                "logits": logits.reshape(len(chosen), -1).tolist(),
            }
        )
    print(json.dumps({"load_seconds": loaded - began, "cold_seconds": cold - loaded, "runs": runs}))


if __name__ == "__main__":
    main()
