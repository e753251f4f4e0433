"""The card: what it says of which model, and that its tables and its header are well-formed."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest

from training.card import render_card
from training.sources import INTENDED_USE, OWN

SHIPPED = Path(__file__).resolve().parents[3] / "models" / "pneumonia-resnet18" / "manifest.json"
LOSS = {
    "epsilon_prv": 7.4,
    "epsilon_rdp": 8.0,
    "delta": 1e-5,
    "noise_multiplier": 4.6,
    "clip_norm": 1.0,
    "sample_rate": 0.3,
    "steps": 600,
    "steps_of_run": 600,
    "budget": 8.0,
    "accountant": "prv",
}


@pytest.fixture
def plain() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(SHIPPED.read_text(encoding="utf-8"))
    return content


@pytest.fixture
def private(plain: dict[str, Any]) -> dict[str, Any]:
    """The manifest as that of a federated, securely aggregated, private head would be."""
    training = plain["training"]
    training |= {"mode": "federated", "private": True, "secure_aggregation": True}
    training |= {"chosen_by": "validation", "chosen_round": 18, "rounds": 20, "notes": []}
    training["network"] = {
        "name": "efficientnet-lite0",
        "options": {"taps": [4, 5]},
        "title": "EfficientNet-Lite0",
        "source": "Tan and Le, ICML 2019",
        "pretrained": {"data": "ImageNet", "package": "weights 0.1.0", "licence": "Apache-2.0"},
        "trained": "head",
    }
    training["settings"]["federation"] = {"split": "size", "skew": 0.4}
    del training["settings"]["augmentation"]
    training["sites"] = [
        {"name": f"site-{n}", "images": 1000 + n, "privacy": dict(LOSS)} for n in (1, 2, 3)
    ]
    del plain["training_data"]["images_by_class"]
    return plain


def words(card: str) -> str:
    """The text without its line breaks."""
    return " ".join(card.split())


def check_form(card: str) -> None:
    header, body = card.removeprefix("---\n").split("\n---\n", 1)
    for line in header.splitlines():
        assert re.fullmatch(r' *(- )?([a-z_-]+: ?("(\\.|[^"\\])*"|[\w. ,-]*)|[a-z_-]+)', line), line
    assert body.startswith("\n# ")
    for block in body.split("\n\n"):
        lines = block.strip().splitlines()
        if lines and lines[0].startswith("|"):
            assert len({line.count("|") for line in lines}) == 1, block
            assert set(lines[1]) == {"|", "-"}
        else:
            assert all(len(line) <= 100 or " " not in line.strip("- ") for line in lines), block
    for nothing in ("None", "nan", "{", "}", "  \n"):
        assert nothing not in body


def test_a_plain_model(plain: dict[str, Any]) -> None:
    card = render_card(plain)
    check_form(card)
    text = words(card)
    assert "A ResNet-18 (He et al., CVPR 2016)" in text
    assert "Trained without differential privacy" in text
    assert "which are public" in text
    assert "by up to 15 % to weaken this" in text
    assert "CC BY 4.0" in text
    assert "322 of the official 624" in text
    assert "neither validation nor test images chose them" in text
    assert "1 of 8" in text
    for foreign in ("EfficientNet", "ImageNet", "epsilon (PRV)", "site-1", ".png"):
        assert foreign not in text


def test_a_private_model(private: dict[str, Any]) -> None:
    card = render_card(private, ("roc.png",))
    check_form(card)
    text = words(card)
    assert "An EfficientNet-Lite0" in text
    assert "only the last layer was trained" in text
    assert "weights 0.1.0, Apache-2.0" in text
    assert "| site-2 | 1002 | 7.40 | 8.00 | 1e-05 | 4.6 | 1 | 0.3 | 600 |" in card
    assert "summed under masks" in text
    assert "The sites are a simulation" in text
    assert "round 18 of 20" in text
    for left_out in (
        "for a child with k images",
        "chosen by earlier runs on the same images",
        "The validation images are not protected",
        "The number of images of a site",
        "The weights that training started from",
    ):
        assert left_out in text
    assert "![roc](roc.png)" in card
    assert "differential-privacy" in card.split("\n---\n")[0]
    for foreign in ("Trained without differential privacy", "ResNet", "to weaken this"):
        assert foreign not in text


def test_a_site_that_took_no_part_and_one_with_earlier_steps(private: dict[str, Any]) -> None:
    sites = private["training"]["sites"]
    del sites[0]["privacy"]
    sites[1]["privacy"]["steps_of_run"] = 500
    card = render_card(private)
    check_form(card)
    assert "| site-1 | 1001 | took no part |" in card
    assert "site-2 100 steps" in words(card)


def test_what_is_said_without_masks_and_across_machines(private: dict[str, Any]) -> None:
    private["training"] |= {"secure_aggregation": False, "placement": "several machines"}
    text = words(render_card(private))
    assert "whoever summed saw that of each site" in text
    assert "stayed on its machines" in text
    assert "nobody can check what it reports" in text
    assert "simulation" not in text


def test_images_of_ones_own_are_not_given_anybodys_licence(plain: dict[str, Any]) -> None:
    plain |= {"training_data": dict(OWN), "intended_use": dict(INTENDED_USE["own"])}
    del plain["metrics"]["test"]["unseen_numbers"]
    card = render_card(plain)
    check_form(card)
    text = words(card)
    for foreign in ("Kermany", "CC BY", "Known shortcut", "; ages", "624", "which are public"):
        assert foreign not in text
    assert "licence: not stated" in text.lower()


def test_nothing_measured(private: dict[str, Any]) -> None:
    private["metrics"] = {}
    card = render_card(private)
    check_form(card)
    assert "Not measured on any image" in card
    assert "model-index" not in card


def test_a_name_cannot_break_the_header(plain: dict[str, Any]) -> None:
    plain = copy.deepcopy(plain)
    plain["training_data"]["title"] = 'a: "b" \n- c'
    check_form(render_card(plain).replace('A: "b" \n- c', ""))
    assert r'name: "a: \"b\" \n- c"' in render_card(plain)
