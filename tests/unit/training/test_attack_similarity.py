"""PSNR and SSIM against slow computations of their definitions, and the matching of batches."""

from __future__ import annotations

import math

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("scipy")

import torch

from training.attack.similarity import best_matches, psnr, ssim
from training.errors import SettingsError


def picture(seed: int, size: int = 24) -> np.ndarray:
    """A smooth random image, float64 [size, size] from 0 to 1."""
    rows, columns = np.mgrid[0:size, 0:size] / size
    a, b, c = np.random.default_rng(seed).uniform(2, 9, 3)
    return 0.5 + 0.25 * np.sin(a * rows + b) + 0.25 * np.cos(c * columns * rows)


def slow_ssim(x: np.ndarray, y: np.ndarray) -> float:
    """The definition, one 11x11 window at a time."""
    offsets = np.arange(-5, 6)
    weights = np.exp(-(offsets[:, None] ** 2 + offsets[None, :] ** 2) / (2 * 1.5**2))
    weights /= weights.sum()
    values = []
    for row in range(x.shape[0] - 10):
        for column in range(x.shape[1] - 10):
            p, q = x[row : row + 11, column : column + 11], y[row : row + 11, column : column + 11]
            mp, mq = (weights * p).sum(), (weights * q).sum()
            vp, vq = (weights * (p - mp) ** 2).sum(), (weights * (q - mq) ** 2).sum()
            cov = (weights * (p - mp) * (q - mq)).sum()
            c1, c2 = 0.01**2, 0.03**2
            values.append(
                (2 * mp * mq + c1) * (2 * cov + c2) / ((mp**2 + mq**2 + c1) * (vp + vq + c2))
            )
    return float(np.mean(values))


def batch(*images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.stack(images))[:, None]


def test_ssim_is_its_definition() -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, (24, 24))
    pairs = [(picture(1), picture(2)), (picture(1), picture(1) + noise), (picture(3), 1 - noise)]
    measured = ssim(batch(*(x for x, _ in pairs)), batch(*(y for _, y in pairs)))
    assert measured.tolist() == pytest.approx([slow_ssim(x, y) for x, y in pairs], abs=1e-10)
    assert len({round(value, 2) for value in measured.tolist()}) == 3


def test_ssim_of_equal_images_is_one_and_of_a_negative_below_zero() -> None:
    image = batch(picture(4))
    assert ssim(image, image).item() == pytest.approx(1.0, abs=1e-12)
    checkers = torch.from_numpy(np.indices((24, 24)).sum(axis=0) % 2 * 1.0)[None, None]
    assert ssim(checkers, 1 - checkers).item() < -0.9


def test_psnr_in_decibels() -> None:
    image = batch(picture(5), picture(6))
    shifted = image.clone()
    shifted[1] += 0.1
    measured = psnr(shifted, image).tolist()
    assert measured[0] == math.inf
    assert measured[1] == pytest.approx(20.0)


def test_reconstructions_are_matched_with_their_originals() -> None:
    originals = batch(*(picture(seed) for seed in range(5)))
    order = torch.tensor([3, 0, 4, 1, 2])
    assert torch.equal(best_matches(originals[order], originals), originals)


def test_the_matching_is_optimal_not_greedy() -> None:
    """The reconstruction most like the first original is needed for the second."""
    first, second = picture(1), picture(2)
    close, closer = 0.5 * first + 0.5 * second, 0.8 * second + 0.2 * first
    originals = batch(second, closer)
    images = batch(closer, close)
    matched = ssim(best_matches(images, originals), originals).sum()
    straight, crossed = ssim(images, originals).sum(), ssim(images.flip(0), originals).sum()
    assert matched == max(straight, crossed)
    assert straight != crossed


def test_images_that_cannot_be_compared_are_refused() -> None:
    with pytest.raises(SettingsError, match="cannot compare"):
        ssim(torch.zeros(1, 1, 16, 16), torch.zeros(2, 1, 16, 16))
    with pytest.raises(SettingsError, match="cannot compare"):
        psnr(torch.zeros(1, 3, 16, 16), torch.zeros(1, 3, 16, 16))
    with pytest.raises(SettingsError, match="11x11"):
        ssim(torch.zeros(1, 1, 10, 16), torch.zeros(1, 1, 10, 16))
