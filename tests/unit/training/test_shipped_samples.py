"""What ships: the sample images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.pixels import apply_modality_lut, apply_voi_lut
from pydicom.uid import ExplicitVRLittleEndian, RLELossless

from training.data import index_folder, parse_name
from training.make_samples import FORMS, NIH_NAME, NIH_SOURCE, main, one_per_patient

REPOSITORY = Path(__file__).resolve().parents[3]
SAMPLES = REPOSITORY / "samples"
SHARED = REPOSITORY.parent / "shared" / "data"

needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data set is not here")


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
