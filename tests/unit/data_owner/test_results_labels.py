"""Labels without scores: from the command that compiles them to the clinic's report."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from data_owner.artefacts import Offer
from data_owner.results import NO_SCORES, report
from data_owner.sessions import Answer
from radiopaque.engine import local
from radiopaque.engine.artefact import ArtefactId
from radiopaque.engine.weights_file import WEIGHTS_FILE, read_compiled
from tests.conftest import Command
from tests.unit.graph.support import make_model, node

SCORES = np.array([[1.0, 3.5, -2.0]], np.float32)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    nodes = [node("MatMul", "x w", "s"), node("Softmax", "s")]
    onnx.save(make_model(nodes, SCORES.shape, {"w": np.eye(3)}), path)
    return path


def test_a_model_compiled_for_labels_says_which_class_and_no_score(
    model: Path, tmp_path: Path, command: Command
) -> None:
    output = tmp_path / "compiled"
    code, found = command("compile", model, "-o", output, "--ring", "64", "--labels-only")
    assert (code, found["output_bits"]) == (0, 2)
    compiled = read_compiled(output)
    assert compiled.plan.labels_only
    outputs = local.infer(compiled.plan, compiled.weights, SCORES).outputs
    plan = replace(compiled.plan, classes=("a", "b", "c"))
    offer = Offer("model", "1", plan, ArtefactId(bytes(32), bytes(16)), bytes(32))
    answer = Answer(bytes(16), outputs, 1.0, 1.0, 3, {})
    made = report(offer, "x.png", answer, 0, None, (), b"", "2026-01-01T00:00:00+00:00")
    assert made.probabilities == made.logits == (0.0, 1.0, 0.0)
    assert made.warnings == (NO_SCORES,)


def test_the_other_engine_has_no_labels(model: Path, tmp_path: Path, command: Command) -> None:
    code, found = command(
        "compile", model, "-o", tmp_path / "compiled", "--engine", "crypten", "--labels-only"
    )
    assert (code, found["error"]) == (2, "ConfigError")
    assert "reveals whole outputs" in found["message"]
    assert not (tmp_path / "compiled").exists()


@pytest.mark.parametrize("engine", ["compiled", "crypten"])
def test_a_compiled_model_is_replaced_only_when_asked(
    model: Path, tmp_path: Path, command: Command, engine: str
) -> None:
    output = tmp_path / "compiled"
    assert command("compile", model, "-o", output, "--ring", "64")[0] == 0
    before = (output / WEIGHTS_FILE).read_bytes()
    words = ("compile", model, "-o", output, "--ring", "64", "--engine", engine)
    code, found = command(*words)
    assert (code, found["error"]) == (2, "ConfigError")
    assert "replace it with --force" in found["message"]
    assert (output / WEIGHTS_FILE).read_bytes() == before
    assert command(*words, "--force")[0] == 0
    assert (output / WEIGHTS_FILE).read_bytes() != before
