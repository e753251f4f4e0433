"""Gradient inversion on a network and an image that take seconds."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("scipy")

import torch
from torch.nn import functional

from training.attack.inversion import InversionSettings, invert, total_variation
from training.attack.network import SmallNetwork
from training.attack.similarity import ssim
from training.errors import SettingsError

SIZE = 24
SETTINGS = InversionSettings(iterations=300, total_variation=0.03)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def network() -> SmallNetwork:
    torch.manual_seed(0)
    return SmallNetwork(classes=3, size=SIZE, width=12)


def original() -> torch.Tensor:
    """A bright disc and a dark bar on a slope, float [1, 1, SIZE, SIZE]."""
    rows, columns = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    image = 0.3 + 0.4 * columns / SIZE
    image[(rows - 8) ** 2 + (columns - 9) ** 2 < 30] = 0.95
    image[15:18, 4:20] = 0.05
    return image[None, None]


def gradient_of(model: SmallNetwork, images: torch.Tensor, labels: torch.Tensor) -> np.ndarray:
    loss = functional.cross_entropy(model(images), labels)
    parts = torch.autograd.grad(loss, list(model.parameters()))
    return np.concatenate([part.numpy().ravel() for part in parts])


def test_a_gradient_gives_its_image_away_and_noise_does_not() -> None:
    model, image, label = network(), original(), torch.tensor([2])
    observed = gradient_of(model, image, label)
    found = invert(model, observed, label, SIZE, SETTINGS)
    assert found.images.shape == image.shape
    assert 0.0 <= float(found.images.min()) <= float(found.images.max()) <= 1.0
    assert found.cosine_distance < 0.05
    assert float(ssim(found.images, image)) > 0.6

    noise = np.random.default_rng(0).normal(size=observed.shape)
    lost = invert(model, noise, label, SIZE, SETTINGS)
    assert lost.cosine_distance > 0.5
    assert float(ssim(lost.images, image)) < 0.2


def test_only_the_direction_of_the_update_counts_and_the_seed_decides() -> None:
    model, label = network(), torch.tensor([0])
    observed = gradient_of(model, original(), label)
    few = InversionSettings(iterations=5)
    first = invert(model, observed, label, SIZE, few)
    scaled = invert(model, observed * 2.0**10, label, SIZE, few)
    assert torch.equal(first.images, scaled.images)
    other = invert(model, observed, label, SIZE, InversionSettings(iterations=5, seed=1))
    assert not torch.equal(first.images, other.images)


def test_the_network_is_left_as_it_was() -> None:
    model, label = network(), torch.tensor([1])
    before = [parameter.clone() for parameter in model.parameters()]
    observed = gradient_of(model, original(), label)
    invert(model, observed, label, SIZE, InversionSettings(iterations=3))
    after = list(model.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert all(parameter.grad is None for parameter in after)


def test_total_variation_by_hand() -> None:
    image = torch.tensor([[[[0.0, 1.0], [0.5, 0.25]]]])
    assert float(total_variation(image)) == pytest.approx((0.5 + 0.75) / 2 + (1.0 + 0.25) / 2)


def test_wrong_updates_are_refused() -> None:
    model, label = network(), torch.tensor([0])
    count = sum(parameter.numel() for parameter in model.parameters())
    with pytest.raises(SettingsError, match=f"{count} parameters"):
        invert(model, np.ones(count - 1), label, SIZE, SETTINGS)
    for useless in (np.zeros(count), np.full(count, np.nan)):
        with pytest.raises(SettingsError, match="no direction"):
            invert(model, useless, label, SIZE, SETTINGS)


def test_sizes_that_the_strides_do_not_divide_are_refused() -> None:
    for size in (12, 30, 8):
        with pytest.raises(SettingsError, match="multiple of 8"):
            SmallNetwork(classes=3, size=size)
