"""The attacks aimed at the private step that sites really take."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("scipy")
pytest.importorskip("opacus")

import torch

from training.attack import __main__ as command
from training.attack.audit import REAL_SIZE, AuditSettings, problems, run_audit
from training.attack.network import SmallNetwork
from training.attack.steps import (
    calibrate,
    plain_update,
    private_site,
    private_update,
)

# Wrong once in a million where the private step keeps its promise.
SETTINGS = AuditSettings(canaries=1000, guesses=100, steps=5, sample_rate=0.8, confidence=1 - 1e-6)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def site_data() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(6, 1, REAL_SIZE, REAL_SIZE, generator=generator), torch.arange(6) % 3


def test_the_private_step_keeps_its_promise_and_its_absence_is_noticed() -> None:
    noise, nominal = calibrate(SETTINGS)
    assert 1.9 < nominal <= 2.0
    private = run_audit(*site_data(), noise, private_site(SETTINGS), SETTINGS)
    bare = run_audit(*site_data(), 0.0, private_site(SETTINGS), SETTINGS)
    assert private.lower_bound < nominal
    # As many as by tossing a coin would be 50; with this noise about 75 are right.
    assert 55 < private.correct < 95
    assert bare.correct >= 99
    usual = replace(SETTINGS, confidence=0.95)
    assert run_audit(*site_data(), 0.0, private_site(usual), usual).lower_bound > nominal


def test_a_fifth_of_the_noise_is_noticed() -> None:
    settings = replace(SETTINGS, confidence=0.95)
    noise, nominal = calibrate(settings)
    weak = run_audit(*site_data(), noise / 5.0, private_site(settings), settings)
    bare = run_audit(*site_data(), 0.0, private_site(settings), settings)
    assert "more than the" in problems(weak, bare, nominal)[0]


def test_without_noise_and_clipping_the_private_update_is_the_plain_one() -> None:
    torch.manual_seed(0)
    model = SmallNetwork(3, 24, 4)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    images = torch.rand(3, 1, 24, 24, generator=torch.Generator().manual_seed(2))
    labels = torch.arange(3)
    plain = plain_update(model, images, labels)
    bare = private_update(model, images, labels, noise_multiplier=0.0, clip_norm=1e3)
    assert np.allclose(bare.delta, plain.delta, atol=1e-5)
    assert np.abs(plain.delta).max() > 1e-3
    clipped = private_update(model, images, labels, noise_multiplier=0.0, clip_norm=1e-2)
    assert np.linalg.norm(clipped.delta) < 0.1 * 1e-2 * 1.001
    noisy = private_update(model, images, labels, noise_multiplier=1.0, clip_norm=1.0)
    assert np.linalg.norm(noisy.delta - bare.delta) > 0.1 * np.sqrt(len(noisy.delta)) / 3 * 0.9
    after = list(model.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_the_command_audits_with_and_without_noise(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = ["--canaries", "1000", "--guesses", "100", "--steps", "2", "--sample-rate", "0.9"]
    output = ["--output", str(tmp_path), "--threads", "1"]
    assert command.main(["audit", *sizes, *output]) == 0
    printed = capsys.readouterr().out
    assert "noise left out" in printed
    assert printed.endswith("holds\n")
    report = json.loads((tmp_path / "audit.json").read_text())
    assert report["problems"] == []
    private, bare = report["results"]["private"], report["results"]["noise left out"]
    assert private["lower_bound"] < report["nominal_epsilon"] <= 2.0 < bare["lower_bound"]
    assert private["canaries"] == report["settings"]["canaries"] == 1000
    assert bare["noise_multiplier"] == 0.0 < private["noise_multiplier"]


def test_an_audit_too_weak_to_refute_anything_says_so(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert command.main(["audit", "--canaries", "20", "--guesses", "4", "--steps", "1"]) == 1
    assert "could not find a mistake" in capsys.readouterr().out
    assert command.main(["audit", "--canaries", "20", "--guesses", "40"]) == 2
    assert "at most as many" in capsys.readouterr().err
