"""ResNet-18 for single-channel images.

Source: He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition", CVPR 2016, table 1
(18 layers) and figure 2; the shortcut of a block that changes shape is option B, a 1x1 convolution.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

BLOCKS_PER_STAGE = 2
STAGES = 4


def _convolution(in_channels: int, out_channels: int, kernel: int, stride: int) -> nn.Conv2d:
    """A convolution that keeps the size at stride 1; batch norm follows, so it has no bias."""
    return nn.Conv2d(
        in_channels, out_channels, kernel, stride=stride, padding=kernel // 2, bias=False
    )


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch norm, and a shortcut around them."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _convolution(in_channels, out_channels, 3, stride)
        self.norm1 = nn.BatchNorm2d(out_channels)
        self.conv2 = _convolution(out_channels, out_channels, 3, 1)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                _convolution(in_channels, out_channels, 1, stride), nn.BatchNorm2d(out_channels)
            )

    def forward(self, images: Tensor) -> Tensor:
        """Map float [n, in_channels, h, w] to float [n, out_channels, h / stride, w / stride]."""
        residual: Tensor = self.relu(self.norm1(self.conv1(images)))
        residual = self.norm2(self.conv2(residual))
        output: Tensor = self.relu(residual + self.shortcut(images))
        return output


class ResNet18(nn.Module):
    """ResNet-18: 7x7 stem, 3x3 max-pool, four stages of two blocks, global average pool, linear.

    `width` is the number of channels of the stem and of the first stage (64 in the paper); the
    later stages have 2, 4 and 8 times as many. A small width makes a network for tests.
    """

    def __init__(self, classes: int = 3, channels: int = 1, width: int = 64) -> None:
        super().__init__()
        self.stem = _convolution(channels, width, 7, 2)
        self.norm = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        blocks: list[nn.Module] = []
        current = width
        for stage in range(STAGES):
            following = width << stage
            for position in range(BLOCKS_PER_STAGE):
                stride = 2 if stage > 0 and position == 0 else 1
                blocks.append(BasicBlock(current, following, stride))
                current = following
        self.stages = nn.Sequential(*blocks)
        self.average = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(current, classes)
        self._initialise()

    def _initialise(self) -> None:
        """He initialisation; each block starts as its shortcut, which makes early training stable.

        Source: Goyal et al., "Accurate, Large Minibatch SGD", 2017, section 5.1 (zero gamma).
        """
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, BasicBlock):
                nn.init.zeros_(module.norm2.weight)

    def forward(self, images: Tensor) -> Tensor:
        """Map normalised images, float [n, channels, h, w], to logits, float [n, classes]."""
        features: Tensor = self.pool(self.relu(self.norm(self.stem(images))))
        features = self.average(self.stages(features))
        logits: Tensor = self.head(torch.flatten(features, 1))
        return logits
