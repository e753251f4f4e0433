"""Does the picture lie inside what the model card says the model was made for?

A model answers anything it is shown. What the file says about itself is compared with the card, and
every deviation becomes a sentence for the report: unknown counts as a deviation, because silence
would read as approval. The sentences quote codes of the image (modality, body part, view), never a
patient's age.
"""

from __future__ import annotations

import math

from data_owner.images import ImageMeta
from radiopaque.graph.plan import IntendedUse


def check(meta: ImageMeta, card: IntendedUse) -> list[str]:
    """Sentences to warn with, in a fixed order; an empty list where everything agrees.

    Empty fields of the card are not checked. PNG and JPEG files carry none of the facts and get one
    warning in all. Ages are compared in completed years with both ends included: "1 to 5 years"
    ends on the sixth birthday.
    """
    if not (card.modalities or card.body_parts or card.views or card.age_years):
        return []
    if meta.source != "dicom":
        return [
            (
                f"{meta.source.upper()} files do not state modality, body part, view or age: "
                f"check yourself that the image is one the model was made for ({describe(card)})."
            )
        ]
    checks = (
        _check_code("modality", meta.modality, card.modalities),
        _check_code("body part", meta.body_part, card.body_parts),
        _check_code("view", meta.view, card.views),
        _check_age(meta.age_years, card.age_years),
    )
    return [warning for warning in checks if warning is not None]


def describe(card: IntendedUse) -> str:
    """The checked fields of a card on one line: "CR or DX; CHEST; AP or PA; 1 to 5 years"."""
    parts = [
        " or ".join(codes) for codes in (card.modalities, card.body_parts, card.views) if codes
    ]
    if card.age_years is not None:
        parts.append(_years(card.age_years))
    return "; ".join(parts)


def _check_code(name: str, found: str | None, made_for: tuple[str, ...]) -> str | None:
    if not made_for:
        return None
    expected = " or ".join(made_for)
    if found is None:
        return f"The image does not state its {name}; the model was made for {expected}."
    if found.strip().upper() not in {code.strip().upper() for code in made_for}:
        return f"The {name} is {found}; the model was made for {expected}."
    return None


def _check_age(found: float | None, made_for: tuple[float, float] | None) -> str | None:
    if made_for is None:
        return None
    if found is None:
        ages = _years(made_for)
        return f"The image does not state the patient's age; the model was made for {ages}."
    youngest, oldest = made_for
    completed = math.floor(found) if float(oldest).is_integer() else found
    if found < youngest or completed > oldest:
        return f"The patient's age lies outside {_years(made_for)}, which the model was made for."
    return None


def _years(ages: tuple[float, float]) -> str:
    return f"{ages[0]:g} to {ages[1]:g} years"
