"""A warning, never a silent pass, for what the model card does not cover."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from data_owner.images import ImageMeta, read_image
from data_owner.intended_use import check, describe
from radiopaque.graph.plan import IntendedUse

SAMPLES = sorted((Path(__file__).parents[3] / "samples" / "dicom").glob("*.dcm"))
CARD = IntendedUse(("CR", "DX"), ("CHEST",), ("AP", "PA"), (1.0, 5.0), "Chest, 1 to 5 years.")
GOOD = ImageMeta("dicom", "DX", "CHEST", "PA", 3.0)


def test_nothing_to_say_where_everything_agrees() -> None:
    assert check(GOOD, CARD) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"modality": "CT"}, ("modality is CT", "CR or DX")),
        ({"modality": None}, ("does not state its modality", "CR or DX")),
        ({"body_part": "HAND"}, ("body part is HAND", "CHEST")),
        ({"body_part": None}, ("does not state its body part", "CHEST")),
        ({"view": "LL"}, ("view is LL", "AP or PA")),
        ({"view": None}, ("does not state its view", "AP or PA")),
        ({"age_years": 0.9}, ("age lies outside", "1 to 5 years")),
        ({"age_years": 6.0}, ("age lies outside", "1 to 5 years")),
        ({"age_years": 81.0}, ("age lies outside", "1 to 5 years")),
        ({"age_years": None}, ("does not state the patient's age", "1 to 5 years")),
    ],
)
def test_each_deviation_gives_one_sentence(change, words) -> None:
    warnings = check(replace(GOOD, **change), CARD)
    assert len(warnings) == 1
    assert all(word in warnings[0] for word in words)
    assert "81" not in warnings[0]


@pytest.mark.parametrize("age", [1.0, 5.0, 5.9])
def test_the_range_of_ages_includes_its_ends_in_completed_years(age) -> None:
    assert check(replace(GOOD, age_years=age), CARD) == []


def test_a_fraction_as_upper_end_is_taken_as_it_is() -> None:
    infants = replace(CARD, age_years=(0.0, 0.5))
    assert check(replace(GOOD, age_years=0.5), infants) == []
    assert len(check(replace(GOOD, age_years=0.6), infants)) == 1


def test_all_deviations_are_listed() -> None:
    assert len(check(ImageMeta("dicom"), CARD)) == 4


@pytest.mark.parametrize("source", ["png", "jpeg"])
def test_other_files_get_one_warning_that_all_is_unknown(source) -> None:
    warnings = check(ImageMeta(source), CARD)
    assert len(warnings) == 1
    assert source.upper() in warnings[0]
    assert describe(CARD) in warnings[0]


def test_codes_are_compared_without_case_and_padding() -> None:
    assert check(GOOD, replace(CARD, body_parts=(" chest ",), modalities=("dx",))) == []


@pytest.mark.parametrize("source", ["dicom", "png"])
def test_empty_fields_of_the_card_are_not_checked(source) -> None:
    assert check(ImageMeta(source), IntendedUse(statement="Anything.")) == []
    only_views = IntendedUse(views=("PA",))
    assert len(check(ImageMeta("dicom"), only_views)) == 1


def test_description() -> None:
    assert describe(CARD) == "CR or DX; CHEST; AP or PA; 1 to 5 years"


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.stem)
def test_shipped_samples_are_children_but_for_the_adult(path) -> None:
    warnings = check(read_image(path).meta, CARD)
    if "adult" not in path.stem:
        assert warnings == []
    else:
        assert any("age" in warning for warning in warnings)


def test_there_are_sample_dicom_files() -> None:
    assert any("adult" in path.stem for path in SAMPLES)
    assert len(SAMPLES) >= 4
