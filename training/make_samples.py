"""Make `samples/`: a few images of the data set as they are, and a few as DICOM files.

    python -m training.make_samples --data data --output samples

`--data` holds `chest_xray/test`, `originals` (the same set at original size) and `dicom`. Which
images are taken follows from sorted names alone, so no model had a say in it. Runs are repeatable:
the same input gives the same bytes.
"""

from __future__ import annotations

import argparse
import io
import shutil
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filewriter import dcmwrite
from pydicom.uid import (
    UID,
    ComputedRadiographyImageStorage,
    DigitalXRayImageStorageForPresentation,
    ExplicitVRLittleEndian,
    RLELossless,
)

from training.data import CLASSES, DataError, Sample, index_folder
from training.files import write_atomically

IMAGES_PER_CLASS = 8
NIH_SOURCE = "1.3.6.1.4.1.11129.5.5.110503645592756492463169821050252582267888.dcm"
NIH_NAME = "nih-chestxray14-adult.dcm"

# The 12-bit file stores 12 v + 400 of a grey level v; rescaling gives 6 v, and this window maps
# 0..1530 linearly to 0..255 (PS3.3 C.11.2.1.2.1), which is v again.
STORED_SLOPE, STORED_OFFSET = 12, 400
RESCALE_SLOPE, RESCALE_INTERCEPT = "0.5", "-200"
WINDOW_CENTRE, WINDOW_WIDTH = "765.5", "1531"

_UID_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "radiopaque/samples")


@dataclass(frozen=True, slots=True)
class DicomForm:
    """How one image is wrapped: everything here is invented, except `label`."""

    label: int
    modality: str
    age: str
    inverted: bool = False
    twelve_bit: bool = False
    compressed: bool = False


FORMS = (
    DicomForm(label=0, modality="CR", age="003Y"),
    DicomForm(label=0, modality="DX", age="004Y", twelve_bit=True),
    DicomForm(label=1, modality="DX", age="002Y"),
    DicomForm(label=1, modality="CR", age="005Y", inverted=True),
    DicomForm(label=2, modality="DX", age="001Y"),
    DicomForm(label=2, modality="CR", age="003Y", compressed=True),
)


def one_per_patient(samples: Sequence[Sample], label: int, count: int) -> list[Sample]:
    """Return the first `count` images of a class in order of their names, one for each patient.

    Raises:
        DataError: there are fewer.
    """
    chosen: dict[str, Sample] = {}
    for sample in sorted(samples, key=lambda sample: sample.path.name):
        if sample.label == label:
            chosen.setdefault(sample.patient, sample)
    if len(chosen) < count:
        raise DataError(
            f"{count} images of class {CLASSES[label]!r} from different patients are needed, "
            f"{len(chosen)} found; pass the complete data folder"
        )
    return list(chosen.values())[:count]


def copy_labelled(test_folder: Path, output: Path) -> list[Path]:
    """Copy IMAGES_PER_CLASS test images of each class, names and bytes unchanged."""
    samples = index_folder(test_folder)
    copies: list[Path] = []
    for label in range(len(CLASSES)):
        for sample in one_per_patient(samples, label, IMAGES_PER_CLASS):
            copy = output / sample.path.parent.name / sample.path.name
            write_atomically(copy, sample.path.read_bytes())
            copies.append(copy)
    return copies


def _uid(*parts: str) -> UID:
    """Return a UID under 2.25 (PS3.5 B.2: a UUID as one number) that depends on `parts` alone."""
    return UID(f"2.25.{uuid.uuid5(_UID_NAMESPACE, '/'.join(parts)).int}")


def wrap(grey: NDArray[np.uint8], name: str, number: int, form: DicomForm) -> Dataset:
    """Return a DICOM data set with the image `grey`, uint8 [h, w], in the given form.

    The patient is invented and says so; the acquisition values are invented too.
    """
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.SOPClassUID = (
        DigitalXRayImageStorageForPresentation
        if form.modality == "DX"
        else ComputedRadiographyImageStorage
    )
    dataset.SOPInstanceUID = _uid("instance", name)
    dataset.StudyInstanceUID = _uid("study", name)
    dataset.SeriesInstanceUID = _uid("series", name)
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian

    dataset.PatientName = "EXAMPLE^NOT A PATIENT"
    dataset.PatientID = f"EXAMPLE-{number:04d}"
    dataset.PatientBirthDate = ""
    dataset.PatientSex = "O"
    dataset.PatientAge = form.age
    dataset.StudyDate = ""
    dataset.StudyTime = ""
    dataset.StudyID = ""
    dataset.AccessionNumber = ""
    dataset.ReferringPhysicianName = ""
    dataset.SeriesNumber = "1"
    dataset.InstanceNumber = "1"
    dataset.Modality = form.modality
    dataset.Manufacturer = "Invented for a sample file"
    dataset.ImageComments = "Kermany et al., doi 10.17632/rscbjbr9sj.2, CC BY 4.0"
    dataset.BodyPartExamined = "CHEST"
    dataset.ViewPosition = "AP"
    dataset.PatientOrientation = ["L", "F"]
    if form.modality == "DX":
        dataset.ImageLaterality = "U"
        dataset.PresentationIntentType = "FOR PRESENTATION"
        dataset.PixelIntensityRelationship = "LOG"
        dataset.PixelIntensityRelationshipSign = -1
        dataset.PresentationLUTShape = "INVERSE" if form.inverted else "IDENTITY"
        dataset.BurnedInAnnotation = "NO"
        dataset.LossyImageCompression = "01"
    _set_pixels(dataset, grey, form)
    return dataset


def _set_pixels(dataset: Dataset, grey: NDArray[np.uint8], form: DicomForm) -> None:
    stored: NDArray[np.integer] = 255 - grey if form.inverted else grey
    bits = 8
    if form.twelve_bit:
        stored = stored.astype(np.uint16) * STORED_SLOPE + STORED_OFFSET
        bits = 12
        dataset.RescaleSlope = RESCALE_SLOPE
        dataset.RescaleIntercept = RESCALE_INTERCEPT
        dataset.RescaleType = "US"
        dataset.WindowCenter = WINDOW_CENTRE
        dataset.WindowWidth = WINDOW_WIDTH
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME1" if form.inverted else "MONOCHROME2"
    dataset.Rows, dataset.Columns = grey.shape
    dataset.BitsAllocated = 16 if bits > 8 else 8
    dataset.BitsStored = bits
    dataset.HighBit = bits - 1
    dataset.PixelRepresentation = 0
    pixels = stored.astype("<u2" if bits > 8 else np.uint8).tobytes()
    dataset.PixelData = pixels + b"\0" * (len(pixels) % 2)
    dataset["PixelData"].VR = "OW" if bits > 8 else "OB"
    if form.compressed:
        dataset.compress(RLELossless, generate_instance_uid=False)


def make_dicoms(originals: Path, output: Path) -> list[Path]:
    """Wrap one original for each of FORMS; images of the `val` folder first, it was not trained on.

    `val` has no viral case, so those come from `train`.
    """
    not_trained_on = index_folder(originals / "val")
    trained_on = index_folder(originals / "train")
    wanted = [form.label for form in FORMS]
    supply: dict[int, list[Sample]] = {}
    for label in sorted(set(wanted)):
        present = any(sample.label == label for sample in not_trained_on)
        source = not_trained_on if present else trained_on
        supply[label] = one_per_patient(source, label, wanted.count(label))
    written: list[Path] = []
    for number, form in enumerate(FORMS, start=1):
        sample = supply[form.label].pop(0)
        with Image.open(sample.path) as image:
            grey = np.asarray(image.convert("L"), dtype=np.uint8)
        buffer = io.BytesIO()
        dcmwrite(buffer, wrap(grey, sample.path.stem, number, form), enforce_file_format=True)
        path = output / f"{sample.path.stem}.dcm"
        write_atomically(path, buffer.getvalue())
        written.append(path)
    return written


def main() -> None:
    """Write the sample images below the output folder."""
    parser = argparse.ArgumentParser(
        prog="python -m training.make_samples", description=main.__doc__
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with the data sets")
    parser.add_argument("--output", type=Path, required=True, help="folder to write samples to")
    arguments = parser.parse_args()
    try:
        copy_labelled(arguments.data / "chest_xray" / "test", arguments.output / "labelled")
        make_dicoms(arguments.data / "originals", arguments.output / "dicom")
    except DataError as error:
        parser.exit(2, f"error: {error}\n")
    shutil.copyfile(arguments.data / "dicom" / NIH_SOURCE, arguments.output / "dicom" / NIH_NAME)


if __name__ == "__main__":
    main()
