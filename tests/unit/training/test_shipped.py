"""What ships: the model folder and the sample images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pydicom
import pytest
from PIL import Image
from pydicom.pixels import apply_modality_lut, apply_voi_lut
from pydicom.uid import ExplicitVRLittleEndian, RLELossless

from training.card import render_card
from training.data import CLASSES, index_folder, labels_of, parse_name
from training.evaluate import logits_of
from training.files import sha256_of
from training.make_samples import FORMS, NIH_NAME, NIH_SOURCE, main, one_per_patient

REPOSITORY = Path(__file__).resolve().parents[3]
MODEL = REPOSITORY / "models" / "pneumonia-resnet18"
SAMPLES = REPOSITORY / "samples"
SHARED = REPOSITORY.parent / "shared" / "data"

needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data set is not here")


@pytest.fixture(scope="module")
def manifest() -> dict[str, Any]:
    content: dict[str, Any] = json.loads((MODEL / "manifest.json").read_text(encoding="utf-8"))
    return content


def test_the_manifest_names_the_file_that_is_there(manifest: dict[str, Any]) -> None:
    path = MODEL / manifest["onnx"]
    assert manifest["sha256"] == sha256_of(path)
    assert path.stat().st_size < 25_000_000


def test_the_manifest_has_the_agreed_content(manifest: dict[str, Any]) -> None:
    assert manifest["schema"] == 1
    assert manifest["name"] == MODEL.name
    assert manifest["classes"] == list(CLASSES)
    assert manifest["licence"] == "Apache-2.0"
    preprocessing = manifest["preprocessing"]
    assert (preprocessing["channels"], preprocessing["height"], preprocessing["width"]) == (
        1,
        224,
        224,
    )
    assert 0.0 < preprocessing["mean"][0] < 1.0
    assert 0.0 < preprocessing["std"][0] < 1.0
    assert manifest["intended_use"]["age_years"] == [1, 5]
    assert {"test", "validation"} <= set(manifest["metrics"])
    assert "CC BY 4.0" in manifest["training_data"]["licence"]


def test_the_card_reports_the_figures_of_the_manifest(manifest: dict[str, Any]) -> None:
    card = (MODEL / "card.md").read_text(encoding="utf-8")
    figures = manifest["metrics"]["test"]
    assert f"value: {figures['macro_auc']}\n" in card
    assert f"| accuracy | {figures['accuracy']:.3f} |" in card
    assert f"| expected calibration error | {figures['ece']:.3f} |" in card
    assert "must not be used for diagnosis" in " ".join(card.split())
    assert "Known shortcut" in card


def test_the_card_is_what_training_writes_from_the_manifest(manifest: dict[str, Any]) -> None:
    shown = sorted(path.name for path in MODEL.glob("*.png"))
    assert shown == ["calibration.png", "confusion.png", "roc.png"]
    pictures = ("roc.png", "confusion.png", "calibration.png")
    assert (MODEL / "card.md").read_text(encoding="utf-8") == render_card(manifest, pictures)


def test_the_network_and_what_the_plan_is_made_of_are_those_of_its_release(
    manifest: dict[str, Any],
) -> None:
    digest = "fc24f8a658b38e9fe307920eed833d8714acc69afb617d28bc7c0ea7e4908115"
    assert manifest["sha256"] == digest
    assert manifest["version"] == "1.0.0"
    assert manifest["preprocessing"]["mean"] == [0.482278]
    assert manifest["preprocessing"]["std"] == [0.236171]
    assert len(manifest["ranges"]) > 20


def test_the_shipped_file_is_opset_17_with_a_free_batch_dimension() -> None:
    model = onnx.load(str(MODEL / "model.onnx"))
    onnx.checker.check_model(model, full_check=True)
    assert [entry.version for entry in model.opset_import] == [17]
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "n"


def test_the_shipped_model_tells_the_samples_apart() -> None:
    samples = index_folder(SAMPLES / "labelled")
    assert np.bincount(labels_of(samples)).tolist() == [8, 8, 8]
    assert len({sample.patient for sample in samples}) == 24
    logits = logits_of(MODEL, samples)
    assert (logits.argmax(axis=1) == labels_of(samples)).mean() >= 0.7
    assert np.abs(logits).max() < 8.0


@needs_shared
def test_the_manifest_reports_what_the_shipped_file_does(manifest: dict[str, Any]) -> None:
    samples = index_folder(SHARED / "chest_xray" / "test")[::8]
    logits = logits_of(MODEL, samples)
    correct = (logits.argmax(axis=1) == labels_of(samples)).mean()
    low, high = manifest["metrics"]["test"]["accuracy_interval95"]
    slack = 2.0 * np.sqrt(0.25 / len(samples))
    assert low - slack <= correct <= high + slack


def dicom_paths() -> list[Path]:
    return sorted(path for path in (SAMPLES / "dicom").glob("*.dcm") if path.name != NIH_NAME)


def as_grey(dataset: pydicom.Dataset) -> np.ndarray:
    """Return the image as shown, [h, w], on the scale of 0 to 255."""
    pixels = apply_voi_lut(apply_modality_lut(dataset.pixel_array, dataset), dataset)
    if "WindowWidth" in dataset:
        # The window's output range is that of the values put in: 6 v spans 4095 / 2 - 200.
        low, high = -200.0, (4095 * 0.5) - 200.0
        pixels = (pixels - low) / (high - low) * 255.0
    return 255.0 - pixels if dataset.PhotometricInterpretation == "MONOCHROME1" else pixels


def test_the_dicom_samples_cover_the_forms() -> None:
    datasets = [pydicom.dcmread(path) for path in dicom_paths()]
    assert len(datasets) == len(FORMS)
    syntaxes = [dataset.file_meta.TransferSyntaxUID for dataset in datasets]
    assert syntaxes.count(ExplicitVRLittleEndian) >= 3
    assert syntaxes.count(RLELossless) == 1
    assert {dataset.Modality for dataset in datasets} == {"CR", "DX"}
    assert sum(dataset.PhotometricInterpretation == "MONOCHROME1" for dataset in datasets) == 1
    assert sorted(dataset.BitsStored for dataset in datasets) == [8, 8, 8, 8, 8, 12]
    assert sorted(parse_name(path.name)[0] for path in dicom_paths()) == [0, 0, 1, 1, 2, 2]
    uids = [dataset.SOPInstanceUID for dataset in datasets]
    assert len(set(uids)) == len(uids)
    for dataset in datasets:
        assert dataset.SOPInstanceUID.is_valid
        assert dataset.PatientName == "EXAMPLE^NOT A PATIENT"
        assert dataset.PatientID.startswith("EXAMPLE-")
        assert dataset.BodyPartExamined == "CHEST"
        assert dataset.ViewPosition == "AP"
        assert 1 <= int(dataset.PatientAge[:3]) <= 5
        assert dataset.pixel_array.shape == (dataset.Rows, dataset.Columns)


@needs_shared
@pytest.mark.parametrize("path", dicom_paths(), ids=lambda path: path.stem)
def test_a_dicom_sample_shows_the_original_grey_levels(path: Path) -> None:
    (original,) = (SHARED / "originals").rglob(f"{path.stem}.jpeg")
    with Image.open(original) as image:
        expected = np.asarray(image.convert("L"), dtype=np.float64)
    assert np.abs(as_grey(pydicom.dcmread(path)) - expected).max() < 1e-6


@needs_shared
def test_the_samples_are_repeatable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["--data", str(SHARED), "--output", str(tmp_path)]
    monkeypatch.setattr("sys.argv", ["make_samples", *arguments])
    main()
    made = {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("*.*")}
    assert len(made) == 24 + len(FORMS) + 1
    for name, content in made.items():
        assert (SAMPLES / name).read_bytes() == content, name
    assert (SHARED / "dicom" / NIH_SOURCE).read_bytes() == made[Path("dicom") / NIH_NAME]


def test_one_image_is_taken_for_each_patient() -> None:
    samples = index_folder(SAMPLES / "labelled")
    doubled = sorted((*samples, *samples), key=lambda sample: sample.path.name)
    chosen = one_per_patient(doubled, 1, 8)
    assert [sample.path.name for sample in chosen] == sorted(
        sample.path.name for sample in samples if sample.label == 1
    )


def test_the_samples_are_attributed_and_small() -> None:
    text = (SAMPLES / "ATTRIBUTION.md").read_text(encoding="utf-8")
    for path in (SAMPLES / "dicom").glob("*.dcm"):
        assert path.name in text
    for needed in ("CC BY 4.0", "10.17632/rscbjbr9sj", "NIH Clinical Center", "CVPR 2017"):
        assert needed in text
    size = sum(path.stat().st_size for path in SAMPLES.rglob("*") if path.is_file())
    assert size < 20_000_000
