"""Random changes of images: bounded, repeatable, and never a mirror image."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")

import torch

from training.augment import Augmentation, augment


def test_augmentation_changes_images_within_bounds() -> None:
    images = torch.rand(6, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    changed = augment(images, Augmentation(), torch.Generator().manual_seed(1))
    again = augment(images, Augmentation(), torch.Generator().manual_seed(1))
    assert changed.shape == images.shape
    assert torch.equal(changed, again)
    assert 0.0 <= float(changed.min()) <= float(changed.max()) <= 1.0
    assert float((changed - images).abs().mean()) > 0.05


def test_augmentation_never_mirrors() -> None:
    image = torch.zeros(1, 1, 40, 40)
    image[:, :, 10:30, 28:32] = 1.0
    generator = torch.Generator().manual_seed(2)
    for _ in range(50):
        changed = augment(image, Augmentation(), generator)[0, 0]
        changed = (changed - changed.median()).clamp(min=0.0)
        centre = (changed.sum(dim=0) * torch.arange(40)).sum() / changed.sum()
        assert float(centre) > 20.0


def test_augmentation_of_no_size_changes_nothing() -> None:
    images = torch.rand(2, 1, 16, 16).clamp(min=1e-3)
    still = Augmentation(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    changed = augment(images, still, torch.Generator())
    assert torch.allclose(changed, images, atol=1e-5)
