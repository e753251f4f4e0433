"""Networks of the literature for grey images, in torch, with weights drawn from a seed.

Source: the papers named with each network; layer sizes are those of their ImageNet variants, with
one input channel and three classes. Every size is a multiple of 32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from benchmarks.networks_narrow import (
    InvertedResidual,
    densenet121,
    efficientnet_lite0,
    mobilenet_v2,
)

CHANNELS = 1
CLASSES = 3
_VGG16 = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
_VGG_HIDDEN = 4096
_BRANCH = (0.2, 0.5)
"""Deviations of a residual branch in those of its shortcut; 0.1 to 0.6 in the shipped models."""


def lenet(size: int) -> nn.Module:
    """Two convolutions and three linear layers.

    Source: LeCun, Bottou, Bengio, Haffner, "Gradient-Based Learning Applied to Document
    Recognition", 1998, figure 2, with ReLU and max-pool as they are used today.
    """
    side = ((size - 4) // 2 - 4) // 2
    return nn.Sequential(
        nn.Conv2d(CHANNELS, 6, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(16 * side * side, 120),
        nn.ReLU(),
        nn.Linear(120, 84),
        nn.ReLU(),
        nn.Linear(84, CLASSES),
    )


def vgg16(size: int) -> nn.Module:
    """Thirteen convolutions, three linear layers, no batch norm.

    Source: Simonyan and Zisserman, "Very Deep Convolutional Networks for Large-Scale Image
    Recognition", ICLR 2015, table 1, column D.
    """
    layers: list[nn.Module] = []
    channels = CHANNELS
    for width, count in _VGG16:
        for _ in range(count):
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
            channels = width
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(
        *layers,
        nn.Flatten(),
        nn.Linear(channels * (size // 32) ** 2, _VGG_HIDDEN),
        nn.ReLU(),
        nn.Linear(_VGG_HIDDEN, _VGG_HIDDEN),
        nn.ReLU(),
        nn.Linear(_VGG_HIDDEN, CLASSES),
    )


def _convolution(channels: int, out: int, kernel: int, stride: int = 1) -> list[nn.Module]:
    convolution = nn.Conv2d(channels, out, kernel, stride, padding=kernel // 2, bias=False)
    return [convolution, nn.BatchNorm2d(out)]


class Residual(nn.Module):
    """A body and a shortcut around it; both end without an activation."""

    def __init__(self, channels: int, out: int, stride: int, body: Sequence[nn.Module]) -> None:
        super().__init__()
        self.body = nn.Sequential(*body)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels != out:
            self.shortcut = nn.Sequential(*_convolution(channels, out, 1, stride))
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.relu(self.body(x) + self.shortcut(x))
        return result


def _basic(channels: int, width: int, stride: int) -> Residual:
    body = [*_convolution(channels, width, 3, stride), nn.ReLU(), *_convolution(width, width, 3)]
    return Residual(channels, width, stride, body)


def _bottleneck(channels: int, width: int, stride: int) -> Residual:
    body = [
        *_convolution(channels, width, 1),
        nn.ReLU(),
        *_convolution(width, width, 3, stride),
        nn.ReLU(),
        *_convolution(width, 4 * width, 1),
    ]
    return Residual(channels, 4 * width, stride, body)


def resnet(layers: Literal[18, 50], pool: Literal["max", "average"] = "max") -> nn.Module:
    """Residual network; at 50 layers the 3x3 convolution of a block has its stride.

    Source: He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition", CVPR 2016, table 1.
    """
    block, counts, growth = (
        (_basic, (2, 2, 2, 2), 1) if layers == 18 else (_bottleneck, (3, 4, 6, 3), 4)
    )
    pooling = nn.MaxPool2d(3, 2, 1) if pool == "max" else nn.AvgPool2d(3, 2, 1)
    modules: list[nn.Module] = [*_convolution(CHANNELS, 64, 7, 2), nn.ReLU(), pooling]
    channels = 64
    for stage, count in enumerate(counts):
        width = 64 << stage
        for position in range(count):
            modules.append(block(channels, width, 2 if stage and not position else 1))
            channels = width * growth
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, CLASSES))
    return nn.Sequential(*modules, *head)


NETWORKS: Mapping[str, Callable[[int], nn.Module]] = {
    "resnet18": lambda size: resnet(18),
    "resnet18-average": lambda size: resnet(18, "average"),
    "resnet50": lambda size: resnet(50),
    "vgg16": vgg16,
    "densenet121": lambda size: densenet121(CHANNELS, CLASSES),
    "mobilenet-v2": lambda size: mobilenet_v2(CHANNELS, CLASSES),
    "efficientnet-lite0": lambda size: efficientnet_lite0(CHANNELS, CLASSES),
    "lenet": lenet,
}
"""By name, from the side of the image."""


def build(name: str, size: int, images: Tensor, seed: int) -> nn.Module:
    """The network in evaluation mode, with realistic activations on images like ``images``.

    Weights are drawn as He et al. (2015) do for ReLU; the statistics of batch norms are those of
    ``images``, float32 [n, 1, size, size]. Residual branches are smaller than what they are added
    to, as training leaves them; otherwise each block would amplify the rounding of those before.
    """
    generator = torch.Generator().manual_seed(seed)
    model = NETWORKS[name](size)
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=generator)
            if module.bias is not None:
                nn.init.normal_(module.bias, 0.0, 0.1, generator=generator)
        elif isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the average of all batches
            nn.init.uniform_(module.weight, 0.5, 1.5, generator=generator)
            nn.init.normal_(module.bias, 0.0, 0.2, generator=generator)
    for module in model.modules():
        if isinstance(module, Residual) or (isinstance(module, InvertedResidual) and module.adds):
            nn.init.uniform_(_last_norm(module).weight, *_BRANCH, generator=generator)
    model.train()
    with torch.no_grad():
        for batch in torch.split(images, 8):
            model(batch)
    return model.eval()


def _last_norm(block: Residual | InvertedResidual) -> nn.BatchNorm2d:
    *_, last = block.body
    if not isinstance(last, nn.BatchNorm2d):
        raise TypeError("a residual branch ends with a batch norm")
    return last
