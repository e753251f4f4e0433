"""The index of the data folder and the split by patient."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from training.data import (
    DataError,
    Sample,
    index_folder,
    labels_of,
    load_images,
    parse_name,
    split_by_patient,
)

REPOSITORY = Path(__file__).resolve().parents[3]
SHARED = REPOSITORY.parent / "shared" / "data" / "chest_xray"


@pytest.mark.parametrize(
    ("name", "label", "patient"),
    [
        ("IM-0115-0001.jpeg", 0, "IM-0115"),
        ("IM-0011-0001-0002.jpeg", 0, "IM-0011"),
        ("NORMAL2-IM-0115-0001.jpeg", 0, "IM-0115"),
        ("person1_bacteria_2.jpeg", 1, "person1"),
        ("person1_virus_6.jpeg", 2, "person1"),
        ("person10_virus_35_2.jpeg", 2, "person10"),
    ],
)
def test_a_name_gives_label_and_patient(name: str, label: int, patient: str) -> None:
    assert parse_name(name) == (label, patient)


@pytest.mark.parametrize("name", ["scan.jpeg", "person1_fungus_2.jpeg", "personX_virus_1.jpeg"])
def test_a_name_without_a_class_is_refused(name: str) -> None:
    with pytest.raises(DataError, match=name):
        parse_name(name)


def make_samples(count: int) -> list[Sample]:
    """Patients with one to five images; the numbers of bacterial and viral cases overlap."""
    samples: list[Sample] = []
    for number in range(count):
        for image in range(1 + number % 5):
            for label, patient in ((0, f"IM-{number}"), (1 + image % 2, f"person{number}")):
                samples.append(Sample(Path(f"{patient}-{image}-{label}.jpeg"), label, patient))
    return samples


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_no_patient_is_on_both_sides_and_no_image_is_lost(seed: int) -> None:
    samples = make_samples(100)
    training, validation = split_by_patient(samples, 0.2, seed)
    assert not {s.patient for s in training} & {s.patient for s in validation}
    assert sorted(s.path for s in (*training, *validation)) == sorted(s.path for s in samples)


def test_every_class_has_about_its_fraction_in_validation() -> None:
    samples = make_samples(200)
    _, validation = split_by_patient(samples, 0.25, 7)
    for label in range(3):
        total = sum(sample.label == label for sample in samples)
        held_out = sum(sample.label == label for sample in validation)
        assert 0.2 * total <= held_out <= 0.3 * total


def test_the_split_depends_on_the_seed_alone() -> None:
    samples = make_samples(60)
    assert split_by_patient(samples, 0.2, 3) == split_by_patient(samples, 0.2, 3)
    assert split_by_patient(samples, 0.2, 3) != split_by_patient(samples, 0.2, 4)


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, float("nan")])
def test_a_fraction_that_is_none_is_refused(fraction: float) -> None:
    with pytest.raises(DataError, match="between 0 and 1"):
        split_by_patient(make_samples(4), fraction, 0)


def write_image(path: Path, level: int, size: tuple[int, int] = (224, 224)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size, level).save(path, quality=95)


def test_a_folder_is_indexed_by_class_folder_and_name(tmp_path: Path) -> None:
    write_image(tmp_path / "NORMAL" / "IM-0001-0001.jpeg", 10)
    write_image(tmp_path / "PNEUMONIA" / "person2_virus_3.jpeg", 20)
    write_image(tmp_path / "PNEUMONIA" / "person1_bacteria_1.jpeg", 30)
    (tmp_path / "NORMAL" / "notes.txt").write_text("not an image")
    samples = index_folder(tmp_path)
    assert [(s.path.name, s.label, s.patient) for s in samples] == [
        ("IM-0001-0001.jpeg", 0, "IM-0001"),
        ("person1_bacteria_1.jpeg", 1, "person1"),
        ("person2_virus_3.jpeg", 2, "person2"),
    ]
    assert labels_of(samples).tolist() == [0, 1, 2]


def test_an_image_in_the_wrong_folder_is_refused(tmp_path: Path) -> None:
    write_image(tmp_path / "NORMAL" / "person1_virus_1.jpeg", 0)
    write_image(tmp_path / "PNEUMONIA" / "person2_virus_1.jpeg", 0)
    with pytest.raises(DataError, match="viral pneumonia"):
        index_folder(tmp_path)


def test_a_missing_or_empty_class_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no folder"):
        index_folder(tmp_path)
    (tmp_path / "NORMAL").mkdir()
    with pytest.raises(DataError, match=r"no \.jpeg"):
        index_folder(tmp_path)


def test_images_become_grey_squares(tmp_path: Path) -> None:
    write_image(tmp_path / "wide.png", 200, (448, 112))
    images = load_images([Sample(tmp_path / "wide.png", 0, "p")], 224)
    assert images.shape == (1, 1, 224, 224)
    assert images.dtype == np.uint8
    assert (images == 200).all()


def test_a_file_that_is_no_image_is_refused(tmp_path: Path) -> None:
    (tmp_path / "broken.jpeg").write_bytes(b"\xff\xd8 not a JPEG")
    with pytest.raises(DataError, match=r"broken\.jpeg"):
        load_images([Sample(tmp_path / "broken.jpeg", 0, "p")])


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data set is not here")
def test_the_data_set_has_the_published_counts() -> None:
    for split, expected in (("train", [1341, 2530, 1345]), ("test", [117, 126, 79])):
        assert np.bincount(labels_of(index_folder(SHARED / split))).tolist() == expected
