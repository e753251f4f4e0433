"""How close a reconstruction is to the original: PSNR and SSIM, and which one is meant for which.

All images are float [n, 1, h, w] with values from 0 to 1.
"""

from __future__ import annotations

import torch
from scipy.optimize import linear_sum_assignment  # type: ignore[import-untyped]
from torch import Tensor
from torch.nn import functional

from training.errors import SettingsError

WINDOW = 11
SIGMA = 1.5
LUMINANCE_CONSTANT = 0.01**2
CONTRAST_CONSTANT = 0.03**2


def psnr(images: Tensor, originals: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in decibels, float [n]; infinite for equal images."""
    _check(images, originals)
    return -10.0 * torch.log10((images - originals).square().mean(dim=(1, 2, 3)))


def ssim(images: Tensor, originals: Tensor) -> Tensor:
    """Mean structural similarity, float [n], 1 for equal images.

    Source: Wang, Bovik, Sheikh, Simoncelli, "Image Quality Assessment: From Error Visibility to
    Structural Similarity", 2004, section III: an 11x11 Gaussian window of deviation 1.5 that stays
    inside the image, K1 = 0.01, K2 = 0.03, range 1.

    Raises:
        SettingsError: the shapes differ, or the images are smaller than the window.
    """
    _check(images, originals)
    if min(images.shape[-2:]) < WINDOW:
        raise SettingsError(
            f"the images are {images.shape[-2]}x{images.shape[-1]}; SSIM needs at least "
            f"{WINDOW}x{WINDOW} pixels"
        )
    offsets = torch.arange(WINDOW, dtype=images.dtype) - WINDOW // 2
    profile = torch.exp(-offsets.square() / (2.0 * SIGMA**2))
    profile = profile / profile.sum()
    window = torch.outer(profile, profile)[None, None]

    def local_mean(values: Tensor) -> Tensor:
        return functional.conv2d(values, window)

    mean_a, mean_b = local_mean(images), local_mean(originals)
    variance_a = local_mean(images.square()) - mean_a.square()
    variance_b = local_mean(originals.square()) - mean_b.square()
    covariance = local_mean(images * originals) - mean_a * mean_b
    luminance = (2.0 * mean_a * mean_b + LUMINANCE_CONSTANT) / (
        mean_a.square() + mean_b.square() + LUMINANCE_CONSTANT
    )
    structure = (2.0 * covariance + CONTRAST_CONSTANT) / (
        variance_a + variance_b + CONTRAST_CONSTANT
    )
    return (luminance * structure).mean(dim=(1, 2, 3))


def best_matches(images: Tensor, originals: Tensor) -> Tensor:
    """Reorder `images` so that the sum of SSIM with `originals` is largest; float [n, 1, h, w].

    A gradient of a batch does not say in which order the images came. The attacker gets the best
    order for free, which can only flatter the attack.
    """
    table = torch.stack([ssim(images, original.expand_as(images)) for original in originals])
    _, columns = linear_sum_assignment(table.numpy(), maximize=True)
    return images[torch.as_tensor(columns)]


def _check(images: Tensor, originals: Tensor) -> None:
    if images.shape != originals.shape or images.ndim != 4 or images.shape[1] != 1:
        raise SettingsError(
            f"cannot compare images of shape {list(images.shape)} with {list(originals.shape)}; "
            "both must be [n, 1, h, w]"
        )
