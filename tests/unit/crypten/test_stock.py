"""Against CrypTen as it comes: its own processes, communicator, provider, generator, front end."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx

from benchmarks.peers import crypten_stock
from radiopaque.engine.crypten.compile import compile_crypten
from radiopaque.engine.crypten.local import infer
from tests.unit.graph.support import make_model, node, plaintext, rng

SHAPE = (1, 2, 12, 12)


def network() -> onnx.ModelProto:
    """With every attribute written out, as CrypTen's own front end wants them."""
    draw = rng(8).standard_normal
    constants = {
        "w": draw((4, 2, 3, 3)) * 0.4,
        "b": draw(4) * 0.1,
        "d": draw((3, 144)) * 0.2,
        "e": draw(3) * 0.1,
    }
    window = {"strides": [1, 1], "pads": [1, 1, 1, 1], "dilations": [1, 1]}
    nodes = [
        node("Conv", "x w b", "t1", group=1, **window),
        node("Relu", "t1", "t2"),
        node("MaxPool", "t2", "t3", kernel_shape=[2, 2], strides=[2, 2], pads=[0, 0, 0, 0]),
        node("Flatten", "t3", "t4", axis=1),
        node("Gemm", "t4 d e", alpha=1.0, beta=1.0, transB=1),
    ]
    return make_model(nodes, SHAPE, constants)


def test_results_bytes_and_rounds_are_those_of_crypten(crypten: None, tmp_path: Path) -> None:
    model, image = network(), rng(2).uniform(-2, 2, SHAPE).astype(np.float32)
    onnx.save(model, str(tmp_path / "net.onnx"))
    stock = crypten_stock.run(tmp_path / "net.onnx", image, front_end="crypten")
    (run,) = stock["runs"]
    compiled = compile_crypten(model, image=image)
    ours = infer(compiled, image)
    expected = plaintext(model, image)
    assert np.abs(ours.outputs - np.reshape(run["logits"], expected.shape)).max() < 1e-3
    assert np.abs(ours.outputs - expected).max() < 1e-3
    cost = compiled.plan.cost()
    assert run["rounds"] == cost.round_trips
    # besides there is our key of the common streams; CrypTen shares its seeds before it counts
    assert run["bytes"] == cost.to_model_owner_bytes + cost.to_data_owner_bytes - 32
    assert {"online_seconds", "dealing_seconds", "cpu_seconds"} <= set(run)
    assert stock["provider"].endswith("in the clear")
