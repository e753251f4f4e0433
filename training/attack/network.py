"""The network under attack: small, and easier to invert than the shipped ones."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from training.errors import SettingsError

# Fixed numbers instead of the data set's: nothing about the data enters the network.
PIXEL_MEAN = 0.5
PIXEL_STD = 0.25


class SmallNetwork(nn.Module):
    """Four convolutions with ReLU, three of them of stride 2, and a linear layer on all positions.

    No normalisation layer, no pooling: the worst case for the images, because every position
    keeps its own gradient. `width` is the number of channels of the first convolution, `size` the
    height and width of the images, a multiple of 8.
    """

    def __init__(self, classes: int, size: int, width: int = 16) -> None:
        super().__init__()
        if size % 8 or size < 16:
            raise SettingsError(
                f"the image size is {size}; it must be a multiple of 8, at least 16"
            )
        self.features = nn.Sequential(
            nn.Conv2d(1, width, 5, stride=2, padding=2),
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(2 * width, 4 * width, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(4 * width, 4 * width, 3, padding=1),
            nn.ReLU(),
        )
        self.head = nn.Linear(4 * width * (size // 8) ** 2, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Map images, float [n, 1, size, size] from 0 to 1, to logits, float [n, classes]."""
        features = self.features((images - PIXEL_MEAN) / PIXEL_STD)
        logits: Tensor = self.head(torch.flatten(features, 1))
        return logits
