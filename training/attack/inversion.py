"""Reconstruction of training images from a gradient.

Source: Geiping, Bauermeister, Dröge, Moeller, "Inverting Gradients: How easy is it to break
privacy in federated learning?", NeurIPS 2020, equation 4: search images in [0, 1] whose gradient
points where the observed one points (cosine distance) and whose total variation is small, by Adam
on the sign of the gradient, with steps that shrink at 3/8, 5/8 and 7/8 of the way. The labels are
taken as known, as there (section 3): that helps the attacker.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from training.errors import SettingsError

STEP_CUTS = (3 / 8, 5 / 8, 7 / 8)


@dataclass(frozen=True, slots=True)
class InversionSettings:
    """How hard to try. `total_variation` weighs the prior against the cosine distance."""

    iterations: int = 800
    learning_rate: float = 0.1
    total_variation: float = 0.1
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Reconstruction:
    """Images, float [n, 1, h, w] from 0 to 1, and the cosine distance (0 to 2) that is left."""

    images: Tensor
    cosine_distance: float


def total_variation(images: Tensor) -> Tensor:
    """Mean absolute difference of neighbouring pixels of [n, c, h, w], vertical + horizontal."""
    vertical = (images[:, :, 1:] - images[:, :, :-1]).abs().mean()
    horizontal = (images[:, :, :, 1:] - images[:, :, :, :-1]).abs().mean()
    return vertical + horizontal


def invert(
    model: nn.Module,
    observed: NDArray[np.floating],
    labels: Tensor,
    size: int,
    settings: InversionSettings,
) -> Reconstruction:
    """Search images whose gradient points in the direction of `observed`.

    `observed` is float [parameters], a gradient of the mean cross-entropy in the order of
    `model.parameters()`, times any positive number; `labels` is int64 [n]. The result depends on
    `settings.seed` alone.

    Raises:
        SettingsError: `observed` has another length than the model, is zero or not finite.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    target = _unflatten(observed, parameters)
    generator = torch.Generator().manual_seed(settings.seed)
    start = 0.5 + 0.1 * torch.randn(len(labels), 1, size, size, generator=generator)
    images = start.requires_grad_(True)
    optimiser = torch.optim.Adam([images], lr=settings.learning_rate)
    cuts = [int(settings.iterations * cut) for cut in STEP_CUTS]
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimiser, cuts, gamma=0.1)
    for _ in range(settings.iterations):
        distance = _distance(model, parameters, images, labels, target)
        objective = distance + settings.total_variation * total_variation(images)
        (direction,) = torch.autograd.grad(objective, [images])
        images.grad = direction.sign()
        optimiser.step()
        schedule.step()
        with torch.no_grad():
            images.clamp_(0.0, 1.0)
    left = _distance(model, parameters, images, labels, target)
    return Reconstruction(images.detach(), float(left.detach()))


def _distance(
    model: nn.Module,
    parameters: Sequence[nn.Parameter],
    images: Tensor,
    labels: Tensor,
    target: Sequence[Tensor],
) -> Tensor:
    """One minus the cosine between the gradient of `images` and `target`, which has length 1."""
    loss = functional.cross_entropy(model(images), labels)
    gradient = torch.autograd.grad(loss, parameters, create_graph=True)
    product = torch.stack([(a * b).sum() for a, b in zip(gradient, target, strict=True)]).sum()
    length = torch.stack([part.square().sum() for part in gradient]).sum().sqrt()
    # A dead network has no gradient and no direction; without the floor it would be 0 / 0.
    return 1.0 - product / length.clamp_min(1e-12)


def _unflatten(observed: NDArray[np.floating], parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    expected = sum(parameter.numel() for parameter in parameters)
    if observed.shape != (expected,):
        raise SettingsError(
            f"the update has shape {list(observed.shape)}, but the network has {expected} "
            "parameters; attack the network that the update belongs to"
        )
    flat = torch.from_numpy(observed.astype(np.float64))
    length = float(flat.norm())
    if not 0.0 < length < float("inf"):
        raise SettingsError(f"the update has length {length}; there is no direction to follow")
    parts = torch.split((flat / length).float(), [parameter.numel() for parameter in parameters])
    return [part.view_as(parameter) for part, parameter in zip(parts, parameters, strict=True)]
