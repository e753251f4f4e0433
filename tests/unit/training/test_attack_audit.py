"""The audit against mechanisms whose privacy is known, and on data that it must not disturb."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("scipy")

import torch
from torch import nn

from training.attack.audit import (
    REAL_SIZE,
    AuditResult,
    AuditSettings,
    Canaries,
    Probe,
    correct_guesses,
    problems,
    run_audit,
)
from training.errors import SettingsError
from training.site import SiteStep, SiteUpdate, Weights

# One step on everything: the Gaussian mechanism. For epsilon 2 and delta 1e-5 it needs noise of
# 1.9938 (Balle and Wang, 2018, theorem 8, solved numerically).
SETTINGS = AuditSettings(canaries=1000, guesses=200, steps=1, sample_rate=1.0, confidence=0.999)
NOISE = 1.9938


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def textbook_site(seed: int, clip_norm: float = SETTINGS.clip_norm, count: float = 1.0):
    """A private step in a few lines of NumPy: one linear layer, softmax, clip, add noise.

    `count` is how often every image counts: 2 is the mistake of clipping at twice the norm.
    """
    generator = np.random.default_rng(seed)

    def make(
        model: nn.Module, images: torch.Tensor, labels: torch.Tensor, noise: float
    ) -> SiteStep:
        pixels = images.reshape(len(images), -1).numpy()
        truth = np.eye(3)[labels.numpy()]

        def step(_: nn.Module, weights: Weights) -> SiteUpdate:
            logits = pixels @ weights["head.weight"].numpy().T
            chances = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
            gradients = (chances - truth)[:, :, None] * pixels[:, None, :]
            lengths = np.sqrt((gradients**2).sum(axis=(1, 2)))
            factors = np.minimum(1.0, clip_norm / np.maximum(lengths, 1e-12))
            total = count * (gradients * factors[:, None, None]).sum(axis=0)
            total += noise * clip_norm * generator.standard_normal(total.shape)
            delta = (-0.01 * total / len(images)).astype(np.float32).ravel()
            return SiteUpdate(delta, len(images))

        return step

    return make


def site_data() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(12, 1, REAL_SIZE, REAL_SIZE, generator=generator), torch.arange(12) % 3


def audited(noise: float, seed: int, **mistake: float) -> AuditResult:
    return run_audit(*site_data(), noise, textbook_site(seed, **mistake), SETTINGS)


def test_a_private_step_stays_below_its_claim() -> None:
    bounds = [audited(NOISE, seed).lower_bound for seed in range(9)]
    assert max(bounds) < 2.0
    # Not by guessing badly: the bound comes close enough to mean something.
    assert np.median(bounds) > 0.1


def test_without_noise_the_bound_exceeds_the_claim() -> None:
    result = audited(0.0, seed=0)
    assert result.correct == result.guesses == 200
    assert result.lower_bound > 2.0
    assert 400 < result.included < 600


def test_a_tenth_of_the_noise_is_found_out() -> None:
    """Noise that was, for instance, divided by the number of images once too often."""
    assert audited(NOISE / 10.0, seed=0).lower_bound > 2.0


def test_too_much_weight_for_an_image_is_found_out() -> None:
    assert audited(NOISE, seed=0, count=10.0).lower_bound > 2.0


def test_every_canary_has_a_pixel_of_its_own_where_real_images_are_black() -> None:
    canaries = Canaries.draw(50)
    images, labels = site_data()
    canvas, all_labels = canaries.training_set(images, labels)
    included = int(canaries.included.sum())
    assert canvas.shape == (12 + included, 1, REAL_SIZE + 4, REAL_SIZE)
    assert len(all_labels) == len(canvas)
    assert torch.equal(canvas[:12, :, :REAL_SIZE], images)
    assert not canvas[:12, :, REAL_SIZE:].any()
    planted = canvas[12:].reshape(included, -1)
    assert torch.equal(planted.sum(dim=1), torch.ones(included))
    assert not planted[:, : REAL_SIZE**2].any()
    assert len(set(planted.argmax(dim=1).tolist())) == included


def test_coins_are_fair_and_differ_between_runs() -> None:
    coins = Canaries.draw(4000).included
    assert abs(int(coins.sum()) - 2000) < 6 * np.sqrt(1000)
    assert not np.array_equal(coins, Canaries.draw(4000).included)


def test_scores_follow_the_gradient_of_each_canary() -> None:
    """Plain gradient descent on one canary moves that canary's score and no other."""
    coins = np.zeros(9, dtype=bool)
    coins[4] = True
    canaries = Canaries(np.arange(9) % 3, coins, REAL_SIZE + 1)
    model = Probe((REAL_SIZE + 1) * REAL_SIZE, 3)
    canvas, labels = canaries.training_set(torch.zeros(0, 1, REAL_SIZE, REAL_SIZE), EMPTY)
    nn.functional.cross_entropy(model(canvas), labels).backward()
    gradient = model.head.weight.grad
    assert gradient is not None
    scores = canaries.scores(-gradient.numpy().ravel())
    assert scores[4] == pytest.approx(2 / 3)
    assert np.flatnonzero(scores).tolist() == [4]
    # What the settings promise: clipping at 0.5 always bites.
    assert float(gradient.norm()) == pytest.approx(np.sqrt(2 / 3))


EMPTY = torch.zeros(0, dtype=torch.int64)


def test_guesses_are_the_extremes() -> None:
    scores = np.array([0.1, 0.9, -0.5, 0.4, 0.0, 0.8])
    included = np.array([True, True, False, False, True, False])
    assert correct_guesses(scores, included, 2) == 2
    assert correct_guesses(scores, included, 4) == 2
    assert correct_guesses(scores, included, 6) == 2
    assert correct_guesses(-scores, included, 2) == 0


def result(lower_bound: float) -> AuditResult:
    return AuditResult(1.0, 1000, 500, 200, 150, 1e-5, 0.95, lower_bound, 1.0)


def test_what_counts_as_a_problem() -> None:
    assert problems(result(0.7), result(4.0), nominal=2.0) == []
    assert "more than the 2.000" in problems(result(2.5), result(4.0), nominal=2.0)[0]
    assert "could not find a mistake" in problems(result(0.7), result(1.9), nominal=2.0)[0]


def test_settings_that_cannot_be_audited_are_refused() -> None:
    with pytest.raises(SettingsError, match="at most as many"):
        AuditSettings(canaries=100, guesses=102)
    with pytest.raises(SettingsError, match="equal halves"):
        AuditSettings(canaries=100, guesses=51)
