"""Pictures for the tests with all parties."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

PATIENT = "Canary^Patient"


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """One picture as PNG, JPEG and DICOM: chest.png, chest.jpeg, chest.dcm."""
    folder = tmp_path_factory.mktemp("pictures")
    rows = np.linspace(0, 255, 48)
    pixels = np.asarray(np.add.outer(rows, rows[::-1]) / 2, np.uint8)
    paths = {kind: folder / f"chest.{kind}" for kind in ("png", "jpeg", "dcm")}
    Image.fromarray(pixels).save(paths["png"])
    Image.fromarray(pixels[:, ::-1].copy()).save(paths["jpeg"], quality=95)
    write_dicom(paths["dcm"], pixels.T.copy())
    return {kind: str(path) for kind, path in paths.items()}


def write_dicom(
    path: Path, pixels: np.ndarray, syntax: str = ExplicitVRLittleEndian, **changes: object
) -> None:
    """An 8-bit chest radiograph of a child of four; ``changes`` are attributes, None removes."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.SOPClassUID = SecondaryCaptureImageStorage
    dataset.SOPInstanceUID = generate_uid()
    dataset.PatientName = PATIENT
    dataset.PatientAge = "004Y"
    dataset.Modality = "CR"
    dataset.BodyPartExamined = "CHEST"
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.HighBit = 7
    dataset.PixelRepresentation = 0
    dataset.PixelData = pixels.tobytes()
    if syntax != ExplicitVRLittleEndian:
        dataset.PixelData = encapsulate([dataset.PixelData])
        dataset["PixelData"].is_undefined_length = True
    for name, value in changes.items():
        if value is None:
            delattr(dataset, name)
        else:
            setattr(dataset, name, value)
    dataset.save_as(path, enforce_file_format=True)
