"""Normalisation that no other image sees, and that is gone when the network is exported.

Batch norm in training mode mixes the images of a batch: a single image's gradient, which
differential privacy must bound, would not exist, and its statistics would leave the site without
noise. Layers that measure the image itself (group, layer and instance norm) are private, but cost a
division and a root on secret values at every inference. What is left are norms that are affine maps
per channel while they run, so that they fold into the convolution before them:

- `FrozenBatchNorm2d`: the statistics come with public pretrained weights and never move;
- `StandardisedConv2d` with `ChannelAffine`: the weights are normalised instead of the activations
  (Qiao et al., "Micro-Batch Training with Batch-Channel Normalization and Weight Standardization",
  2019; scaled as in Brock et al., "Characterizing signal propagation to close the performance gap
  in unnormalized ResNets", ICLR 2021, section 4).
"""

from __future__ import annotations

import copy
import itertools
import math
from typing import TypeVar

import torch
from torch import Tensor, nn

from training.errors import SettingsError

# Restores the second moment of a standard normal after ReLU and the mean's removal by the weights.
RELU_GAIN = math.sqrt(2.0 / (1.0 - 1.0 / math.pi))
_VARIANCE_FLOOR = 1e-4

Convolution = TypeVar("Convolution", bound=nn.Conv2d)


class FrozenBatchNorm2d(nn.BatchNorm2d):
    """Batch norm that always uses its stored statistics and has nothing to train."""

    def __init__(self, channels: int, eps: float = 1e-3) -> None:
        super().__init__(channels, eps=eps)
        self.requires_grad_(False)
        super().train(False)

    def train(self, mode: bool = True) -> FrozenBatchNorm2d:
        """Stay in evaluation mode, whatever the rest of the network does."""
        super().train(False)
        return self


class ChannelAffine(nn.Module):
    """A factor and a summand for each channel: what is left of batch norm without statistics."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, images: Tensor) -> Tensor:
        """Map float [n, c, h, w] to the same shape."""
        return images * self.weight[:, None, None] + self.bias[:, None, None]


class StandardisedConv2d(nn.Conv2d):
    """A convolution whose weights have mean 0 and norm `RELU_GAIN` for each output channel."""

    def standardised_weight(self) -> Tensor:
        """The weights that the convolution uses, float [out, in / groups, k, k]."""
        fan_in = self.weight[0].numel()
        mean = self.weight.mean(dim=(1, 2, 3), keepdim=True)
        variance = self.weight.var(dim=(1, 2, 3), keepdim=True, correction=0)
        scale = torch.rsqrt((variance * fan_in).clamp_min(_VARIANCE_FLOOR))
        return (self.weight - mean) * scale * RELU_GAIN

    def forward(self, images: Tensor) -> Tensor:
        """As `nn.Conv2d`, with the standardised weights."""
        output: Tensor = self._conv_forward(images, self.standardised_weight(), self.bias)
        return output


def standardise(model: nn.Module) -> None:
    """Turn, in place, every convolution and batch norm into its statistics-free counterpart.

    A batch norm's factor is kept: where it starts at zero, the block starts as its shortcut.
    """
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.BatchNorm2d):
                affine = ChannelAffine(child.num_features)
                affine.load_state_dict({"weight": child.weight, "bias": child.bias})
                setattr(parent, name, affine)
            elif type(child) is nn.Conv2d:
                convolution = _like(child, StandardisedConv2d, bias=child.bias is not None)
                convolution.load_state_dict(child.state_dict())
                setattr(parent, name, convolution)


def fold(model: nn.Module) -> nn.Module:
    """Return a copy in evaluation mode with every normalisation folded into its convolution.

    A normalisation belongs to the convolution that its module defines right before it.

    Raises:
        SettingsError: a normalisation would be left over.
    """
    folded = copy.deepcopy(model)
    for parent in list(folded.modules()):
        children = list(parent.named_children())
        for (name, child), (next_name, following) in itertools.pairwise(children):
            if isinstance(child, nn.Conv2d) and _is_affine(following):
                setattr(parent, name, _merged(child, following))
                setattr(parent, next_name, nn.Identity())
        for name, child in list(parent.named_children()):
            if isinstance(child, StandardisedConv2d):
                setattr(parent, name, _merged(child, None))
    left = sorted(name for name, module in folded.named_modules() if _normalises(module))
    if left:
        raise SettingsError(
            f"{left[0]} cannot be folded into a convolution before it, so every inference would "
            "pay for it; define it right after its convolution"
        )
    for parameter in folded.parameters():
        parameter.requires_grad_(False)
    return folded.eval()


def _is_affine(module: nn.Module) -> bool:
    return isinstance(module, nn.BatchNorm2d | ChannelAffine)


def _normalises(module: nn.Module) -> bool:
    norms = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.LocalResponseNorm)
    return isinstance(module, (*norms, ChannelAffine, StandardisedConv2d))


def _merged(convolution: nn.Conv2d, norm: nn.Module | None) -> nn.Conv2d:
    """Return a plain convolution with bias that does the work of both, computed in float64."""
    with torch.no_grad():
        source = convolution.weight
        if isinstance(convolution, StandardisedConv2d):
            source = convolution.standardised_weight()
        factor, summand = _affine_of(norm, convolution.out_channels)
        weight = source.double() * factor[:, None, None, None]
        bias = summand if convolution.bias is None else summand + convolution.bias.double() * factor
        merged = _like(convolution, nn.Conv2d, bias=True)
        merged.load_state_dict({"weight": weight.float(), "bias": bias.float()})
    return merged


def _affine_of(norm: nn.Module | None, channels: int) -> tuple[Tensor, Tensor]:
    """Return factor and summand, float64 [channels], of a normalisation that is running."""
    if norm is None:
        return torch.ones(channels, dtype=torch.float64), torch.zeros(channels, dtype=torch.float64)
    if isinstance(norm, ChannelAffine):
        return norm.weight.double(), norm.bias.double()
    if (
        not isinstance(norm, nn.BatchNorm2d)
        or norm.running_mean is None
        or norm.running_var is None
    ):
        raise SettingsError(
            "a batch norm without stored statistics cannot be folded; set track_running_stats"
        )
    factor = norm.weight.double() / torch.sqrt(norm.running_var.double() + norm.eps)
    return factor, norm.bias.double() - norm.running_mean.double() * factor


def _like(convolution: nn.Conv2d, kind: type[Convolution], bias: bool) -> Convolution:
    """Return a convolution of class `kind` with the geometry of another."""
    return kind(
        convolution.in_channels,
        convolution.out_channels,
        convolution.kernel_size,  # type: ignore[arg-type]
        stride=convolution.stride,  # type: ignore[arg-type]
        padding=convolution.padding,  # type: ignore[arg-type]
        dilation=convolution.dilation,  # type: ignore[arg-type]
        groups=convolution.groups,
        bias=bias,
    )


def central_moments(norm: nn.BatchNorm2d, ceiling: float | None) -> tuple[Tensor, Tensor]:
    """Mean and deviation, float [channels], of the activation after a pretrained batch norm.

    The values before the activation are taken as normal with the norm's own shift and factor, as
    they are on the images it was trained on. Public knowledge: no image of a site is looked at.
    `ceiling` is that of a clipped ReLU (6 for ReLU6), None for a plain one.
    """
    points = torch.linspace(-6.0, 6.0, 2001, dtype=torch.float64)
    density = torch.exp(-(points**2) / 2.0)
    density = density / density.sum()
    raw = norm.bias.detach().double()[:, None] + norm.weight.detach().double()[:, None] * points
    values = raw.clamp(0.0, ceiling)
    mean = values @ density
    variance = ((values - mean[:, None]) ** 2) @ density
    return mean.float(), variance.sqrt().float()


def freeze_except(model: nn.Module, prefixes: tuple[str, ...]) -> None:
    """Let only parameters whose name starts with one of `prefixes` be trained.

    Parameters of frozen norms stay frozen.
    """
    for module_name, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            full = f"{module_name}.{name}" if module_name else name
            chosen = full.startswith(prefixes) and not isinstance(module, FrozenBatchNorm2d)
            parameter.requires_grad_(chosen)
