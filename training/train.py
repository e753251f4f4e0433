"""Plain supervised training of the ResNet-18, sized for minutes on a few CPU cores.

Most epochs run on smaller images (progressive resizing; Howard, "fast.ai DAWNBench", 2018); only
the last ones see the size that is shipped. The result is the last epoch: nothing is selected, the
validation set is only reported, and the test set is never seen here.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from training.augment import Augmentation, augment
from training.data import CLASSES, pixel_statistics
from training.metrics import macro_auc, softmax
from training.resnet import ResNet18


@dataclass(frozen=True, slots=True)
class Stage:
    """So many epochs on images of `size` x `size` pixels."""

    size: int
    epochs: int


@dataclass(frozen=True, slots=True)
class TrainingConfig:
    """Everything that decides the result, given the images."""

    seed: int = 2024
    stages: tuple[Stage, ...] = (Stage(112, 26), Stage(160, 6), Stage(224, 5))
    batch_size: int = 64
    peak_learning_rate: float = 0.08
    warm_up: float = 0.15
    momentum: float = 0.9
    weight_decay: float = 5e-4
    label_smoothing: float = 0.1
    width: int = 64
    threads: int = 2
    augmentation: Augmentation = field(default_factory=Augmentation)


@dataclass(frozen=True, slots=True)
class LabelledImages:
    """Images, uint8 [n, 1, h, w], with their labels, int64 [n]."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """The trained network (in evaluation mode) and the normalisation it expects, pixels 0..1."""

    model: ResNet18
    mean: float
    std: float
    seconds: float


def class_weights(labels: NDArray[np.int64], classes: int) -> Tensor:
    """Weights, float [classes], that give every class the same say; their mean over images is 1."""
    counts = np.bincount(labels, minlength=classes).astype(np.float64)
    return torch.tensor(len(labels) / (classes * np.maximum(counts, 1.0)), dtype=torch.float32)


def learning_rate(progress: float, config: TrainingConfig) -> float:
    """One cycle: linear warm-up, then a half cosine to zero; `progress` runs from 0 to 1."""
    if progress < config.warm_up:
        return config.peak_learning_rate * max(progress, 1e-3) / config.warm_up
    cooled = (progress - config.warm_up) / (1.0 - config.warm_up)
    return config.peak_learning_rate * 0.5 * (1.0 + math.cos(math.pi * cooled))


def predict(
    model: nn.Module,
    images: NDArray[np.uint8],
    mean: float,
    std: float,
    size: int | None = None,
    batch_size: int = 64,
) -> NDArray[np.float32]:
    """Return the logits, float32 [n, classes], of uint8 images [n, 1, h, w], scaled to `size`."""
    model.eval()
    logits: list[NDArray[np.float32]] = []
    with torch.inference_mode():
        for start in range(0, len(images), batch_size):
            batch = _scaled(images[start : start + batch_size], size or images.shape[-1])
            logits.append(model((batch.float() / 255.0 - mean) / std).numpy())
    return np.concatenate(logits)


def _scaled(images: NDArray[np.uint8], size: int) -> Tensor:
    """Return uint8 [n, 1, size, size]; averages over the pixels that fall into one."""
    tensor = torch.from_numpy(images)
    if tensor.shape[-1] == size:
        return tensor
    scaled = functional.interpolate(
        tensor.float(), size=(size, size), mode="bilinear", antialias=True
    )
    return scaled.round().clamp(0, 255).to(torch.uint8)


def train(
    training: LabelledImages,
    validation: LabelledImages,
    config: TrainingConfig,
    report: Callable[[str], None] = print,
) -> TrainingResult:
    """Train a network; `report` receives one line per epoch. Repeatable for one thread count."""
    started = time.monotonic()
    torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    generator = torch.Generator().manual_seed(config.seed)
    mean, std = pixel_statistics(training.images)
    model = ResNet18(classes=len(CLASSES), width=config.width)
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimiser = _optimiser(model, config)
    loss_function = nn.CrossEntropyLoss(
        weight=class_weights(training.labels, len(CLASSES)), label_smoothing=config.label_smoothing
    )
    labels = torch.from_numpy(training.labels)
    epochs = sum(stage.epochs for stage in config.stages)
    epoch = 0
    for stage in config.stages:
        images = _scaled(training.images, stage.size)
        for _ in range(stage.epochs):
            model.train()
            losses: list[float] = []
            order = torch.randperm(len(labels), generator=generator)
            batches = torch.split(order, config.batch_size)
            for number, chosen in enumerate(batches):
                rate = learning_rate((epoch + number / len(batches)) / epochs, config)
                for group in optimiser.param_groups:
                    group["lr"] = rate
                pixels = images[chosen].float() / 255.0
                pixels = (augment(pixels, config.augmentation, generator) - mean) / std
                losses.append(_step(model, optimiser, loss_function, pixels, labels[chosen]))
            epoch += 1
            scores = predict(model, validation.images, mean, std, stage.size)
            report(
                f"epoch {epoch:2d}/{epochs}  {stage.size} px  loss {np.mean(losses):.4f}  "
                f"validation AUC {macro_auc(softmax(scores), validation.labels):.4f}  "
                f"{time.monotonic() - started:.0f} s"
            )
    model.eval()
    return TrainingResult(model, mean, std, time.monotonic() - started)


def _step(
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    loss_function: nn.Module,
    pixels: Tensor,
    labels: Tensor,
) -> float:
    """Make one step on normalised float images [n, 1, h, w]; return the loss.

    bfloat16 with channels last is twice as fast as float32 on CPUs that have its instructions.
    """
    pixels = pixels.contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(pixels)
    loss = loss_function(logits.float(), labels)
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
    return float(loss.item())


def _optimiser(model: nn.Module, config: TrainingConfig) -> torch.optim.Optimizer:
    """SGD with momentum; batch-norm parameters and biases are not decayed."""
    decayed = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.SGD(
        groups, lr=config.peak_learning_rate, momentum=config.momentum, nesterov=True
    )
