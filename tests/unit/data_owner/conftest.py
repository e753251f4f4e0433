"""DICOM files made on the spot, so that every field of a test picture is in sight."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom import dcmwrite
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

DicomMaker = Callable[..., bytes]

DIGITAL_X_RAY = "1.2.840.10008.5.1.4.1.1.1.1"


def write_dicom(dataset: Dataset, syntax: str = ExplicitVRLittleEndian) -> bytes:
    """The bytes of a DICOM file with preamble."""
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.file_meta.MediaStorageSOPClassUID = dataset.get("SOPClassUID", DIGITAL_X_RAY)
    dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.3.4"
    stream = BytesIO()
    dcmwrite(
        stream,
        dataset,
        implicit_vr=syntax == ImplicitVRLittleEndian,
        little_endian=syntax != ExplicitVRBigEndian,
        enforce_file_format=True,
    )
    return stream.getvalue()


def make(
    stored: NDArray[np.integer],
    *,
    bits: int | None = None,
    photometric: str = "MONOCHROME2",
    syntax: str = ExplicitVRLittleEndian,
    **elements: Any,
) -> bytes:
    """A native DICOM file of ``stored`` [h, w] or [h, w, 3]; ``None`` as a value leaves one out."""
    size = stored.dtype.itemsize
    order: Literal["<", ">"] = ">" if syntax == ExplicitVRBigEndian else "<"
    bits = bits or 8 * size
    values: dict[str, Any] = {
        "SOPClassUID": DIGITAL_X_RAY,
        "SOPInstanceUID": "1.2.3.4",
        "Modality": "DX",
        "PhotometricInterpretation": photometric,
        "SamplesPerPixel": 1 if stored.ndim == 2 else stored.shape[2],
        "Rows": stored.shape[0],
        "Columns": stored.shape[1],
        "BitsAllocated": 8 * size,
        "BitsStored": bits,
        "HighBit": bits - 1,
        "PixelRepresentation": int(np.issubdtype(stored.dtype, np.signedinteger)),
    }
    if stored.ndim == 3:
        values["PlanarConfiguration"] = 0
    values |= elements
    dataset = Dataset()
    for keyword, value in values.items():
        if value is not None:
            setattr(dataset, keyword, value)
    dataset.PixelData = stored.astype(stored.dtype.newbyteorder(order)).tobytes()
    if len(dataset.PixelData) % 2:
        dataset.PixelData += b"\0"
    dataset["PixelData"].VR = "OB" if size == 1 else "OW"
    return write_dicom(dataset, syntax)


@pytest.fixture(scope="session")
def make_dicom() -> DicomMaker:
    return make


@pytest.fixture(scope="session")
def dicom_bytes() -> Callable[[Dataset, str], bytes]:
    return write_dicom


@pytest.fixture(scope="session")
def bundled() -> Callable[[str], Path]:
    """Path of a file that pydicom brings along; never downloads one."""

    def find(name: str) -> Path:
        path = get_testdata_file(name, download=False)
        if path is None:
            pytest.fail(f"pydicom no longer bundles {name}")
        return Path(str(path))

    return find


@pytest.fixture(scope="session")
def shared_dicom() -> Path:
    folder = Path(__file__).parents[4] / "shared" / "data" / "dicom"
    if not folder.is_dir():
        pytest.skip("../shared/data/dicom is not here")
    return folder
