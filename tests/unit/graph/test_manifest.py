"""manifest.json: strict reading, the ONNX file's digest, ranges written back."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from radiopaque.errors import ManifestError
from radiopaque.graph.compile import compile_model
from radiopaque.graph.manifest import Manifest, file_digest
from radiopaque.graph.ranges import calibrate
from tests.unit.graph.support import make_model, node, rng

SHIPPED = Path(__file__).parents[3] / "models" / "pneumonia-resnet18"
CONTENT: dict[str, Any] = {
    "schema": 1,
    "name": "test",
    "version": "2.1",
    "onnx": "model.onnx",
    "sha256": "",
    "licence": "Apache-2.0",
    "task": "multiclass",
    "classes": ["normal", "pneumonia"],
    "preprocessing": {
        "channels": 1,
        "height": 4,
        "width": 3,
        "resize": "stretch",
        "interpolation": "bilinear",
        "mean": [0.5],
        "std": [0.25],
    },
    "intended_use": {"modalities": ["CR"], "age_years": [1, 5], "statement": "Testing."},
    "metrics": {"accuracy": 0.9},
    "training_data": {"title": "none"},
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    nodes = [node("Flatten", "x", "f"), node("MatMul", "f w", "l"), node("Softmax", "l")]
    model = make_model(nodes, ("n", 1, 4, 3), {"w": rng().normal(size=(12, 2))})
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    write(tmp_path, CONTENT | {"sha256": file_digest(tmp_path / "model.onnx")})
    return tmp_path


def write(folder: Path, content: dict[str, Any]) -> None:
    (folder / "manifest.json").write_text(json.dumps(content), encoding="utf-8")


def edit(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    content = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    change(content)
    write(folder, content)


def test_what_is_in_it_goes_into_the_plan(folder: Path) -> None:
    manifest = Manifest.load(folder)
    assert manifest == Manifest.load(folder / "manifest.json")
    plan = compile_model(manifest.onnx_path, manifest=manifest, ring_bits=64).plan
    assert (plan.name, plan.version, plan.task) == ("test", "2.1", "multiclass")
    assert plan.classes == ("normal", "pneumonia")
    assert plan.preprocessing is not None
    assert plan.preprocessing.mean == (0.5,)
    assert plan.intended_use is not None
    assert plan.intended_use.age_years == (1.0, 5.0)
    renamed = compile_model(
        manifest.onnx_path, manifest=manifest, ring_bits=64, name="other", version="3"
    ).plan
    assert (renamed.name, renamed.version) == ("other", "3")


def test_what_training_says_of_itself_is_kept(folder: Path) -> None:
    said: dict[str, Any] = {
        "description": "Says what it is.",
        "training": {"sites": [{"name": "a", "privacy": {"epsilon_prv": 7.5}}]},
    }
    edit(folder, lambda content: content.update(said))
    Manifest.load(folder).with_ranges({"x": (0.0, 1.0)}).save(folder / "manifest.json")
    content = json.loads((folder / "manifest.json").read_text())
    assert {key: content[key] for key in said} == said
    assert Manifest.load(folder).description == "Says what it is."


def test_ranges_are_written_back_and_used(folder: Path) -> None:
    manifest = Manifest.load(folder)
    ranges = calibrate(manifest.onnx_path, [np.ones((2, 1, 4, 3), np.float32)])
    manifest.with_ranges(ranges).save(folder / "manifest.json")
    again = Manifest.load(folder)
    assert again == manifest.with_ranges(ranges)
    assert again.ranges == ranges
    assert compile_model(again.onnx_path, manifest=again).report.calibrated
    assert not list(folder.glob(".*"))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda c: c.update(colour="red"), "colour"),
        (lambda c: c["preprocessing"].update(gamma=2), "preprocessing.gamma"),
        (lambda c: c["intended_use"].update(sex="F"), "intended_use.sex"),
        (lambda c: c.pop("classes"), "classes"),
        (lambda c: c.update(schema=2), "schema"),
        (lambda c: c.update(task="regression"), "task"),
        (lambda c: c.update(sha256="abc"), "sha256"),
        (lambda c: c.update(name=""), "name"),
        (lambda c: c.update(classes=["a", "a"]), "same name"),
        (lambda c: c.update(classes=[]), "needs its classes"),
        (lambda c: c.update(onnx="../model.onnx"), "same folder"),
        (lambda c: c.update(ranges={"x": [1, 0]}), "smallest first"),
        (lambda c: c.update(ranges={"x": [1]}), "ranges.x"),
        (lambda c: c["preprocessing"].update(std=[0]), "std"),
        (lambda c: c["preprocessing"].update(mean=[0.1, 0.2]), "2 numbers for 1 channels"),
        (lambda c: c["preprocessing"].update(resize="squash"), "resize"),
        (lambda c: c["preprocessing"].update(height=0), "height"),
    ],
)
def test_what_is_wrong_is_named(
    folder: Path, change: Callable[[dict[str, Any]], Any], text: str
) -> None:
    edit(folder, change)
    with pytest.raises(ManifestError, match=text):
        Manifest.load(folder)


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"schema": 1, "schema": 1}', '{"metrics": {"a": NaN}}', "\x00"]
)
def test_no_json(folder: Path, text: str) -> None:
    (folder / "manifest.json").write_text(text, encoding="utf-8")
    with pytest.raises(ManifestError, match=r"manifest\.json"):
        Manifest.load(folder)


def test_another_onnx_file(folder: Path) -> None:
    path = folder / "model.onnx"
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(ManifestError, match="SHA-256"):
        Manifest.load(folder)
    path.unlink()
    with pytest.raises(ManifestError, match="cannot read"):
        Manifest.load(folder)


def test_no_manifest(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="cannot read"):
        Manifest.load(tmp_path)


def test_a_file_that_is_too_large(folder: Path) -> None:
    (folder / "manifest.json").write_bytes(b" " * ((16 << 20) + 1))
    with pytest.raises(ManifestError, match="larger than"):
        Manifest.load(folder)


def test_the_task_must_agree_with_the_last_activation(folder: Path) -> None:
    edit(folder, lambda c: c.update(task="multilabel"))
    manifest = Manifest.load(folder)
    with pytest.raises(ManifestError, match="ends with the activation of a multiclass task"):
        compile_model(manifest.onnx_path, manifest=manifest, ring_bits=64)


def test_the_shipped_manifest() -> None:
    manifest = Manifest.load(SHIPPED)
    assert manifest.task == "multiclass"
    assert len(manifest.classes) == 3


@pytest.mark.parametrize("name", ["manifest.json", "model.onnx"])
def test_devices_are_not_read(folder: Path, name: str) -> None:
    """A device may have no end."""
    (folder / name).unlink()
    (folder / name).symlink_to("/dev/null")
    with pytest.raises(ManifestError, match="not a regular file"):
        Manifest.load(folder)
