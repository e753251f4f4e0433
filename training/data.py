"""The chest X-ray folder: which images there are, their classes, their patients, their pixels.

Layout: `train|val|test/NORMAL|PNEUMONIA/*.jpeg`, as published by Kermany, Zhang and Goldbaum
(doi 10.17632/rscbjbr9sj). The class of a pneumonia is in the file name, and so is the patient.
"""

from __future__ import annotations

import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

CLASSES = ("normal", "bacterial pneumonia", "viral pneumonia")
IMAGE_SIZE = 224

_SUFFIXES = frozenset({".jpeg", ".jpg", ".png"})
_PNEUMONIA = re.compile(r"^(person\d+)_(bacteria|virus)_")
_NORMAL = re.compile(r"^(?:NORMAL\d*-)?(IM-\d+)-")
_KIND_TO_LABEL = {"bacteria": 1, "virus": 2}


class DataError(ValueError):
    """A folder or an image is not what training expects; the message says what to change."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One labelled image. `label` is an index into CLASSES; `patient` groups images of a child."""

    path: Path
    label: int
    patient: str


def parse_name(name: str) -> tuple[int, str]:
    """Return (label, patient) of a file name of the data set.

    Normal images of both naming schemes (`IM-0115-0001`, `NORMAL2-IM-0115-0001`) share the number
    space: grouping them together can only make the split stricter. For the same reason the
    bacterial and viral images of one `personN` are one patient.

    Raises:
        DataError: the name follows neither scheme.
    """
    if match := _PNEUMONIA.match(name):
        return _KIND_TO_LABEL[match[2]], match[1]
    if match := _NORMAL.match(name):
        return 0, match[1]
    raise DataError(
        f"the file name {name!r} carries no class: expected personN_bacteria_M, personN_virus_M "
        "or [NORMAL2-]IM-NNNN-MMMM; rename the file or take it out of the folder"
    )


def index_folder(folder: Path) -> list[Sample]:
    """List the images below `folder/NORMAL` and `folder/PNEUMONIA`, in sorted order.

    Raises:
        DataError: a class folder is missing or empty, or a file's name contradicts its folder.
    """
    samples: list[Sample] = []
    for class_folder in ("NORMAL", "PNEUMONIA"):
        paths = _image_paths(folder / class_folder)
        for path in paths:
            label, patient = parse_name(path.name)
            if (label == 0) != (class_folder == "NORMAL"):
                raise DataError(
                    f"{path} lies under {class_folder}, but its name says {CLASSES[label]!r}; "
                    "move it to the other folder"
                )
            samples.append(Sample(path, label, patient))
    return samples


def _image_paths(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise DataError(
            f"there is no folder {folder}; pass the folder that holds train/NORMAL and the like"
        )
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in _SUFFIXES)
    if not paths:
        raise DataError(f"{folder} holds no .jpeg or .png image; check that it was unpacked")
    return paths


def split_by_patient(
    samples: Sequence[Sample], fraction: float, seed: int
) -> tuple[list[Sample], list[Sample]]:
    """Cut `samples` into (training, validation) so that no patient is on both sides.

    Patients are drawn at random within each class (the class most of their images have), until
    validation holds `fraction` of the images of that class.

    Raises:
        DataError: `fraction` is not strictly between 0 and 1.
    """
    if not 0.0 < fraction < 1.0:
        raise DataError(f"the validation fraction is {fraction}; it must lie between 0 and 1")
    by_patient: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        by_patient[sample.patient].append(sample)
    by_class: dict[int, list[str]] = defaultdict(list)
    for patient in sorted(by_patient):
        counts = Counter(sample.label for sample in by_patient[patient])
        by_class[counts.most_common(1)[0][0]].append(patient)

    generator = random.Random(seed)
    held_out: set[str] = set()
    for label in sorted(by_class):
        patients = by_class[label]
        generator.shuffle(patients)
        wanted = fraction * sum(len(by_patient[patient]) for patient in patients)
        taken = 0
        for patient in patients:
            if taken >= wanted:
                break
            held_out.add(patient)
            taken += len(by_patient[patient])
    training = [sample for sample in samples if sample.patient not in held_out]
    validation = [sample for sample in samples if sample.patient in held_out]
    return training, validation


def load_images(samples: Iterable[Sample], size: int = IMAGE_SIZE) -> NDArray[np.uint8]:
    """Read images as grey levels, uint8 [n, 1, size, size], stretched to the square where needed.

    Raises:
        DataError: a file is not a readable image.
    """
    images = [_load_image(sample.path, size) for sample in samples]
    if not images:
        return np.empty((0, 1, size, size), dtype=np.uint8)
    return np.stack(images)[:, np.newaxis]


def _load_image(path: Path, size: int) -> NDArray[np.uint8]:
    try:
        with Image.open(path) as image:
            grey = image.convert("L")
    except (OSError, UnidentifiedImageError) as error:
        raise DataError(f"{path} cannot be read as an image ({error}); fetch it again") from error
    if grey.size != (size, size):
        grey = grey.resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(grey, dtype=np.uint8)


def labels_of(samples: Iterable[Sample]) -> NDArray[np.int64]:
    """Return the labels, int64 [n]."""
    return np.array([sample.label for sample in samples], dtype=np.int64)
