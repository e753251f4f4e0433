"""What ships: the model folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from training.card import render_card
from training.data import CLASSES, index_folder, labels_of
from training.evaluate import logits_of
from training.files import sha256_of

REPOSITORY = Path(__file__).resolve().parents[3]
SAMPLES = REPOSITORY / "samples"
SHARED = REPOSITORY.parent / "shared" / "data"
PIXELS = {"pneumonia-resnet18": 224, "pneumonia-resnet18-112": 112, "pneumonia-lite0-dp": 160}
PICTURES = ("roc.png", "confusion.png", "calibration.png")

needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data set is not here")


def test_these_models_ship() -> None:
    assert {path.name for path in (REPOSITORY / "models").iterdir()} == set(PIXELS)


@pytest.fixture(scope="module", params=PIXELS)
def folder(request: pytest.FixtureRequest) -> Path:
    return REPOSITORY / "models" / str(request.param)


@pytest.fixture(scope="module")
def manifest(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    return content


def test_the_manifest_names_the_file_that_is_there(folder: Path, manifest: dict[str, Any]) -> None:
    path = folder / manifest["onnx"]
    assert manifest["sha256"] == sha256_of(path)
    assert path.stat().st_size < 25_000_000


def test_the_manifest_has_the_agreed_content(folder: Path, manifest: dict[str, Any]) -> None:
    assert manifest["schema"] == 1
    assert manifest["name"] == folder.name
    assert manifest["classes"] == list(CLASSES)
    assert manifest["licence"] == "Apache-2.0"
    preprocessing = manifest["preprocessing"]
    assert preprocessing["channels"] == 1
    assert preprocessing["height"] == preprocessing["width"] == PIXELS[folder.name]
    assert 0.0 < preprocessing["mean"][0] < 1.0
    assert 0.0 < preprocessing["std"][0] < 1.0
    assert manifest["intended_use"]["age_years"] == [1, 5]
    assert {"test", "validation"} <= set(manifest["metrics"])
    assert "CC BY 4.0" in manifest["training_data"]["licence"]


def test_the_card_reports_the_figures_of_the_manifest(
    folder: Path, manifest: dict[str, Any]
) -> None:
    card = (folder / "card.md").read_text(encoding="utf-8")
    figures = manifest["metrics"]["test"]
    assert f"value: {figures['macro_auc']}\n" in card
    assert f"| accuracy | {figures['accuracy']:.3f} |" in card
    assert f"| expected calibration error | {figures['ece']:.3f} |" in card
    assert "must not be used for diagnosis" in " ".join(card.split())
    assert "Known shortcut" in card


def test_the_card_is_what_training_writes_from_the_manifest(
    folder: Path, manifest: dict[str, Any]
) -> None:
    assert {path.name for path in folder.glob("*.png")} == set(PICTURES)
    assert (folder / "card.md").read_text(encoding="utf-8") == render_card(manifest, PICTURES)


def test_the_shipped_file_is_opset_17_with_a_free_batch_dimension(folder: Path) -> None:
    model = onnx.load(str(folder / "model.onnx"))
    onnx.checker.check_model(model, full_check=True)
    assert [entry.version for entry in model.opset_import] == [17]
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "n"


def test_the_shipped_model_tells_the_samples_apart(folder: Path) -> None:
    samples = index_folder(SAMPLES / "labelled")
    assert np.bincount(labels_of(samples)).tolist() == [8, 8, 8]
    assert len({sample.patient for sample in samples}) == 24
    logits = logits_of(folder, samples)
    assert (logits.argmax(axis=1) == labels_of(samples)).mean() >= 0.7
    assert np.abs(logits).max() < 16.0


def test_the_network_and_what_the_plan_is_made_of_are_those_of_its_release() -> None:
    folder = REPOSITORY / "models" / "pneumonia-resnet18"
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    digest = "fc24f8a658b38e9fe307920eed833d8714acc69afb617d28bc7c0ea7e4908115"
    assert manifest["sha256"] == digest
    assert manifest["version"] == "1.0.0"
    assert manifest["preprocessing"]["mean"] == [0.482278]
    assert manifest["preprocessing"]["std"] == [0.236171]
    assert len(manifest["ranges"]) > 20


def test_the_private_model_states_what_every_site_lost() -> None:
    folder = REPOSITORY / "models" / "pneumonia-lite0-dp"
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    sites = manifest["training"]["sites"]
    assert len(sites) == 3
    for site in sites:
        assert site["privacy"]["epsilon_prv"] <= site["privacy"]["epsilon_rdp"] <= 8.0
        assert site["privacy"]["delta"] == 1e-5


def test_every_model_has_value_ranges(manifest: dict[str, Any]) -> None:
    assert len(manifest["ranges"]) > 20


@needs_shared
def test_the_manifest_reports_what_the_shipped_file_does(
    folder: Path, manifest: dict[str, Any]
) -> None:
    samples = index_folder(SHARED / "chest_xray" / "test")[::8]
    logits = logits_of(folder, samples)
    correct = (logits.argmax(axis=1) == labels_of(samples)).mean()
    low, high = manifest["metrics"]["test"]["accuracy_interval95"]
    slack = 2.0 * np.sqrt(0.25 / len(samples))
    assert low - slack <= correct <= high + slack
