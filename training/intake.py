"""From a folder in the published layout to checked training and validation images."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from training.config import DataSettings
from training.data import CLASSES, DataError, Sample, index_folder, load_images, split_by_patient
from training.errors import SettingsError
from training.progress import Watch, unwatched

_SHOWN_SKIPPED = 5


@dataclass(frozen=True, slots=True)
class Cohort:
    """Samples and their images, uint8 [n, 1, h, w], in the same order."""

    samples: tuple[Sample, ...]
    images: NDArray[np.uint8]

    def select(self, wanted: Sequence[Sample]) -> Cohort:
        """The part that belongs to some of the samples."""
        place = {sample.path: number for number, sample in enumerate(self.samples)}
        chosen = [place[sample.path] for sample in wanted if sample.path in place]
        return Cohort(tuple(self.samples[number] for number in chosen), self.images[chosen])


@dataclass(frozen=True, slots=True)
class Intake:
    """What a run trains and validates on, and the messages about images that were left out."""

    training: Cohort
    validation: Cohort
    skipped: tuple[str, ...]

    def lines(self) -> list[str]:
        """What was found, for people to read."""
        lines = [f"skipped: {message}" for message in self.skipped[:_SHOWN_SKIPPED]]
        if self.skipped:
            lines.append(f"{len(self.skipped)} unreadable images skipped")
        lines.append(
            f"{len(self.training.samples)} images to train on, {len(self.validation.samples)} to "
            "validate on (other patients)"
        )
        return lines

    def fingerprint(self) -> str:
        """SHA-256, hexadecimal, of names and pixels: a resumed run must have the same."""
        hasher = hashlib.sha256()
        for cohort in (self.training, self.validation):
            for sample in cohort.samples:
                hasher.update(f"{sample.path.parent.name}/{sample.path.name}\n".encode())
            hasher.update(np.ascontiguousarray(cohort.images).data)
        return hasher.hexdigest()


def find_root(folder: Path) -> Path:
    """Return the folder with train/ in it: `folder`, or chest_xray/ inside, as archives have it.

    Raises:
        SettingsError: there is none.
    """
    for root in (folder, folder / "chest_xray"):
        if (root / "train").is_dir():
            return root
    raise SettingsError(
        f"there is no folder {folder / 'train'}; pass the folder that holds train/NORMAL and "
        "train/PNEUMONIA, as the archive of the data set unpacks to"
    )


def read_folder(
    folder: Path, settings: DataSettings, seed: int, watch: Watch = unwatched
) -> Intake:
    """Index, read and cut by patient. The test folder is not touched.

    Raises:
        SettingsError: a folder is missing or empty, a class is empty, or an image is unreadable
            and to be refused.
    """
    cohort, skipped = read_training(folder, settings, watch)
    return cut(cohort, skipped, settings, seed)


def read_training(
    folder: Path, settings: DataSettings, watch: Watch = unwatched
) -> tuple[Cohort, list[str]]:
    """All images to train and validate on, and a message for each that cannot be read.

    Raises:
        SettingsError: a folder is missing or empty, or an image is unreadable and to be refused.
    """
    root = find_root(folder)
    try:
        samples = index_folder(root / "train")
    except DataError as error:
        raise SettingsError(str(error)) from error
    return read_images(samples, settings, watch)


def cut(cohort: Cohort, skipped: Sequence[str], settings: DataSettings, seed: int) -> Intake:
    """Cut images by patient into those to train and those to validate on.

    Raises:
        SettingsError: a class has no image on one side.
    """
    training, validation = split_by_patient(cohort.samples, settings.validation_fraction, seed)
    for part, title in ((training, "train on"), (validation, "validate on")):
        counts = Counter(sample.label for sample in part)
        empty = [title for label, title in enumerate(CLASSES) if not counts[label]]
        if empty:
            where = cohort.samples[0].path.parents[1] if cohort.samples else "train"
            raise SettingsError(
                f"no image of class {', '.join(empty)} to {title} in {where}; every class needs "
                "several patients"
            )
    return Intake(cohort.select(training), cohort.select(validation), tuple(skipped))


def read_images(
    samples: Sequence[Sample], settings: DataSettings, watch: Watch = unwatched
) -> tuple[Cohort, list[str]]:
    """Read images; return those that can be read and one message for each that cannot.

    Raises:
        SettingsError: an image is unreadable and `settings.unreadable` is "refuse".
    """
    kept: list[Sample] = []
    images: list[NDArray[np.uint8]] = []
    skipped: list[str] = []
    for number, sample in enumerate(samples):
        watch("reading images", number, len(samples))
        try:
            images.append(load_images([sample], settings.image_size))
        except DataError as error:
            if settings.unreadable == "refuse":
                raise SettingsError(f'{error}; or set data.unreadable = "skip"') from error
            skipped.append(str(error))
        else:
            kept.append(sample)
    size = settings.image_size
    empty = np.empty((0, 1, size, size), dtype=np.uint8)
    return Cohort(tuple(kept), np.concatenate(images) if images else empty), skipped
