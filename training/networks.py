"""The networks that can be trained and shipped, by name, and what of them is exported."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from torch import nn

from training.data import CLASSES
from training.efficientnet import (
    PIXEL_MEAN,
    PIXEL_STD,
    Activation,
    EfficientNetLite0,
    StandardisedHead,
    load_pretrained,
)
from training.errors import SettingsError
from training.normalisation import fold, freeze_except, standardise
from training.resnet import ResNet18

Pool = Literal["max", "average"]
Normalisation = Literal["batch", "standardised"]
Trained = Literal["head", "all"]


def _resnet18(
    classes: int = len(CLASSES),
    channels: int = 1,
    width: int = 64,
    pool: Pool = "max",
    normalisation: Normalisation = "batch",
) -> nn.Module:
    """ResNet-18 from scratch.

    `normalisation` "standardised" has no statistics, so that it can be trained privately.
    """
    _require("pool", pool, ("max", "average"))
    _require("normalisation", normalisation, ("batch", "standardised"))
    model: nn.Module = ResNet18(classes=classes, channels=channels, width=width)
    if pool == "average":
        # No comparisons at all, where a maximum of nine needs eight for each output.
        model.pool = nn.AvgPool2d(3, stride=2, padding=1)
    if normalisation == "standardised":
        standardise(model)
    return model


def _efficientnet_lite0(
    classes: int = len(CLASSES),
    channels: int = 1,
    activation: Activation = "relu6",
    taps: Sequence[int] = (),
    pretrained: bool = True,
    trained: Trained = "head",
) -> nn.Module:
    """EfficientNet-Lite0 with frozen batch norms; `trained` says what training may move."""
    _require("activation", activation, ("relu6", "relu"))
    _require("trained", trained, ("head", "all"))
    model = EfficientNetLite0(classes, channels, activation, taps)
    if pretrained:
        load_pretrained(model)
    freeze_except(model, ("head.",) if trained == "head" else ("",))
    return model


_BUILDERS: Mapping[str, Callable[..., nn.Module]] = {
    "resnet18": _resnet18,
    "efficientnet-lite0": _efficientnet_lite0,
}

# Mean and deviation of pixels from 0 to 1 that a network is fed with. Constants: statistics of the
# sites' images would have to be noised before they were shared.
PIXEL_STATISTICS: Mapping[str, tuple[float, float]] = {
    "resnet18": (0.5, 0.25),
    "efficientnet-lite0": (PIXEL_MEAN, PIXEL_STD),
}


def names() -> tuple[str, ...]:
    """Names that `build` knows."""
    return tuple(_BUILDERS)


def build(name: str, **options: Any) -> nn.Module:
    """Return a network that maps float [n, channels, h, w] to logits, float [n, classes].

    `resnet18`: classes, channels, width, pool ("max", "average"), normalisation ("batch",
    "standardised"). `efficientnet-lite0`: classes, channels (1, 3), activation ("relu6", "relu"),
    taps (stages 1 to 7 that the head reads), pretrained, trained ("head", "all"); h and w are
    multiples of 32.

    Raises:
        SettingsError: there is no such network or option, or the weights are not installed.
    """
    if name not in _BUILDERS:
        raise SettingsError(f"there is no network {name!r}; choose one of {', '.join(_BUILDERS)}")
    try:
        return _BUILDERS[name](**options)
    except (TypeError, ValueError) as error:
        raise SettingsError(f"network {name!r} cannot be built: {error}") from error


def export_ready(model: nn.Module) -> nn.Module:
    """Return a copy in evaluation mode that computes the same with fewer layers.

    Every normalisation is in a convolution and every standardised head one linear layer. Nothing of
    the copy is trainable.

    Raises:
        SettingsError: a normalisation does not follow a convolution.
    """
    ready = copy.deepcopy(model)
    for parent in list(ready.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, StandardisedHead):
                setattr(parent, name, child.folded())
    return fold(ready)


def _require(option: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise SettingsError(f"{option} is {value!r}; choose one of {', '.join(allowed)}")
