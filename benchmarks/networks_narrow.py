"""Networks that save multiplications: dense connections and depthwise convolutions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

_GROWTH = 32
_DENSE_BLOCKS = (6, 12, 24, 16)


class DenseLayer(nn.Module):
    """Norm, ReLU, 1x1, norm, ReLU, 3x3; the result is appended to the input's channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, 4 * _GROWTH, 1, bias=False),
            nn.BatchNorm2d(4 * _GROWTH),
            nn.ReLU(),
            nn.Conv2d(4 * _GROWTH, _GROWTH, 3, padding=1, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.body(x)], 1)


def densenet121(inputs: int, classes: int) -> nn.Module:
    """Four dense blocks with halving transitions.

    Source: Huang, Liu, van der Maaten, Weinberger, "Densely Connected Convolutional Networks",
    CVPR 2017, table 1 (DenseNet-121).
    """
    channels = 2 * _GROWTH
    layers: list[nn.Module] = [
        nn.Conv2d(inputs, channels, 7, 2, 3, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, 1),
    ]
    for number, count in enumerate(_DENSE_BLOCKS):
        for _ in range(count):
            layers.append(DenseLayer(channels))
            channels += _GROWTH
        layers += [nn.BatchNorm2d(channels), nn.ReLU()]
        if number < len(_DENSE_BLOCKS) - 1:
            layers += [nn.Conv2d(channels, channels // 2, 1, bias=False), nn.AvgPool2d(2)]
            channels //= 2
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))
    return nn.Sequential(*layers, *head)


@dataclass(frozen=True, slots=True)
class _Stage:
    expansion: int
    channels: int
    blocks: int
    stride: int
    kernel: int = 3


def _convolution(
    channels: int, out: int, kernel: int, stride: int = 1, groups: int = 1
) -> list[nn.Module]:
    return [
        nn.Conv2d(channels, out, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(out),
    ]


class InvertedResidual(nn.Module):
    """Expand, filter each channel, project without activation; a shortcut where shapes allow."""

    def __init__(self, channels: int, stage: _Stage, stride: int) -> None:
        super().__init__()
        hidden = channels * stage.expansion
        expand = [*_convolution(channels, hidden, 1), nn.ReLU6()] if stage.expansion > 1 else []
        self.body = nn.Sequential(
            *expand,
            *_convolution(hidden, hidden, stage.kernel, stride, hidden),
            nn.ReLU6(),
            *_convolution(hidden, stage.channels, 1),
        )
        self.adds = stride == 1 and channels == stage.channels

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(x)
        return x + y if self.adds else y


def _inverted(inputs: int, classes: int, stages: tuple[_Stage, ...]) -> nn.Module:
    channels, features = 32, 1280
    layers: list[nn.Module] = [*_convolution(inputs, channels, 3, 2), nn.ReLU6()]
    for stage in stages:
        for position in range(stage.blocks):
            stride = 1 if position else stage.stride
            layers.append(InvertedResidual(channels, stage, stride))
            channels = stage.channels
    layers += [*_convolution(channels, features, 1), nn.ReLU6()]
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(features, classes))
    return nn.Sequential(*layers, *head)


def mobilenet_v2(inputs: int, classes: int) -> nn.Module:
    """Source: Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", CVPR 2018,
    table 2.
    """
    stages = (
        _Stage(1, 16, 1, 1),
        _Stage(6, 24, 2, 2),
        _Stage(6, 32, 3, 2),
        _Stage(6, 64, 4, 2),
        _Stage(6, 96, 3, 1),
        _Stage(6, 160, 3, 2),
        _Stage(6, 320, 1, 1),
    )
    return _inverted(inputs, classes, stages)


def efficientnet_lite0(inputs: int, classes: int) -> nn.Module:
    """Source: Tan and Le, "EfficientNet", ICML 2019, table 1 (B0), without squeeze-and-excite and
    with ReLU6, as TensorFlow's Lite variant of 2020 has it.
    """
    stages = (
        _Stage(1, 16, 1, 1),
        _Stage(6, 24, 2, 2),
        _Stage(6, 40, 2, 2, 5),
        _Stage(6, 80, 3, 2),
        _Stage(6, 112, 3, 1, 5),
        _Stage(6, 192, 4, 2, 5),
        _Stage(6, 320, 1, 1),
    )
    return _inverted(inputs, classes, stages)
