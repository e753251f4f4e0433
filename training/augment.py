"""Random changes of training images: small affine maps and changes of brightness.

No mirror images: the heart lies on the left, and a mirrored chest X-ray shows a rare anomaly.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True, slots=True)
class Augmentation:
    """Largest changes; each image draws its own, uniformly. Angles in degrees, the rest relative.

    `stretch` scales height and width independently: how much an original was squeezed to the
    square differs between the classes of this data set, and must not be worth learning.
    """

    rotation: float = 10.0
    zoom: float = 0.12
    stretch: float = 0.15
    shift: float = 0.06
    contrast: float = 0.25
    brightness: float = 0.12
    gamma: float = 0.25


def _uniform(count: int, limit: float, generator: torch.Generator) -> Tensor:
    """Draw float [count] from -limit to limit."""
    return (torch.rand(count, generator=generator) * 2.0 - 1.0) * limit


def augment(images: Tensor, settings: Augmentation, generator: torch.Generator) -> Tensor:
    """Return changed copies of `images`, float [n, 1, h, w] of values from 0 to 1.

    What the affine map brings in from outside the image is black.
    """
    count = images.shape[0]
    angle = _uniform(count, math.radians(settings.rotation), generator)
    zoom = torch.exp(_uniform(count, settings.zoom, generator))
    stretch = torch.exp(_uniform(count, settings.stretch / 2.0, generator))
    scale_x, scale_y = zoom * stretch, zoom / stretch
    maps = torch.zeros(count, 2, 3)
    maps[:, 0, 0] = torch.cos(angle) * scale_x
    maps[:, 0, 1] = -torch.sin(angle) * scale_y
    maps[:, 1, 0] = torch.sin(angle) * scale_x
    maps[:, 1, 1] = torch.cos(angle) * scale_y
    # Coordinates run from -1 to 1, so a shift by a fraction of the width is twice that number.
    maps[:, 0, 2] = _uniform(count, 2.0 * settings.shift, generator)
    maps[:, 1, 2] = _uniform(count, 2.0 * settings.shift, generator)
    grid = functional.affine_grid(maps, list(images.shape), align_corners=False)
    changed = functional.grid_sample(images, grid, align_corners=False)

    gamma = torch.exp(_uniform(count, settings.gamma, generator))[:, None, None, None]
    contrast = 1.0 + _uniform(count, settings.contrast, generator)[:, None, None, None]
    brightness = _uniform(count, settings.brightness, generator)[:, None, None, None]
    changed = changed.clamp(1e-4, 1.0).pow(gamma)
    return ((changed - 0.5) * contrast + 0.5 + brightness).clamp(0.0, 1.0)
