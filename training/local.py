"""The plain site step: SGD on one site's images, without privacy of its own."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from training.augment import augment
from training.config import OptimiserSettings, TrainingSettings
from training.errors import DivergedError, SettingsError
from training.features import FeatureStore, features_of, trains_head_only
from training.networks import PIXEL_STATISTICS
from training.progress import Watch, unwatched
from training.site import (
    SiteUpdate,
    Weights,
    load_weights,
    round_generator,
    set_training_mode,
    update_since,
)


class LocalSite:
    """A site with images, uint8 [n, 1, h, w], and labels, int64 [n], of `classes` classes.

    Raises:
        SettingsError: it has no images, or images and labels do not go together.
    """

    def __init__(
        self,
        name: str,
        images: NDArray[np.uint8],
        labels: NDArray[np.int64],
        classes: int,
        settings: TrainingSettings,
        watch: Watch = unwatched,
        store: FeatureStore | None = None,
    ) -> None:
        if len(images) == 0 or len(images) != len(labels):
            raise SettingsError(
                f"site {name!r} has {len(images)} images and {len(labels)} labels; it needs at "
                "least one image, and a label for each"
            )
        self.name = name
        self.samples = len(images)
        self._images = torch.from_numpy(images)
        self._labels = torch.from_numpy(labels)
        self._classes = classes
        self._settings = settings
        self._watch = watch
        self._store = store
        self._mean, self._std = PIXEL_STATISTICS[settings.model.name]
        self._scaled = self._images
        self._features: Tensor | None = None
        self._number = 0
        self._title = name
        weights = class_weights(labels, classes) if settings.training.class_weights else None
        self._loss = nn.CrossEntropyLoss(
            weight=weights, label_smoothing=settings.training.label_smoothing
        )

    @property
    def steps(self) -> int:
        """Steps in a round."""
        settings = self._settings.training
        return settings.local_steps or steps_of_pass(self.samples, settings.batch_size)

    def begin(self, number: int, rounds: int) -> None:
        """Name the round whose step comes next."""
        self._number = number
        self._title = f"round {number + 1}/{rounds}, {self.name}"
        size = self._settings.size_in(number)
        if self._scaled.shape[-1] != size:
            self._scaled, self._features = scaled(self._images, size), None

    def step(self, model: nn.Module, weights: Weights) -> SiteUpdate:
        """Train from `weights` for a round; the result depends on seed, site and round alone.

        Raises:
            DivergedError: the loss or a weight is not finite.
        """
        load_weights(model, weights)
        settings = self._settings.training
        generator = round_generator(self._settings.seed, self.name, self._number)
        trained = self._trained_part(model)
        set_training_mode(model)
        trainable: list[nn.Parameter] = [p for p in model.parameters() if p.requires_grad]
        groups: list[dict[str, Any]] = [
            {"params": [p for p in trainable if p.ndim > 1]},
            {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0},
        ]
        optimiser = torch.optim.SGD(
            groups,
            lr=settings.learning_rate,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
            nesterov=settings.nesterov and settings.momentum > 0.0,
        )
        losses: list[float] = []
        batches: list[Tensor] = []
        for number in range(self.steps):
            if not batches:
                order = torch.randperm(self.samples, generator=generator)
                batches = _batches(order, settings.batch_size)
            chosen = batches.pop()
            progress = (self._number + number / self.steps) / settings.rounds
            for group in optimiser.param_groups:
                group["lr"] = rate_at(progress, settings)
            images, targets = self._batch(chosen, generator)
            # With channels last (`build_network`), a ResNet-18 is 1.7 times as fast in bfloat16 as
            # in float32 on CPUs that have its instructions.
            with torch.autocast("cpu", torch.bfloat16, enabled=settings.precision == "bfloat16"):
                logits = trained(images)
            loss = self._loss(logits.float(), targets)
            value = float(loss.item())
            if not math.isfinite(value):
                raise DivergedError(
                    f"the loss of site {self.name!r} is {value} in round {self._number + 1}, step "
                    f"{number + 1}; lower training.learning_rate and train anew in another folder"
                )
            optimiser.zero_grad()
            loss.backward()
            if settings.max_gradient_norm:
                nn.utils.clip_grad_norm_(trainable, settings.max_gradient_norm)
            optimiser.step()
            losses.append(value)
            self._watch(self._title, number + 1, self.steps)
        metrics = {
            "loss": float(np.mean(losses)),
            "learning_rate": optimiser.param_groups[0]["lr"],
        }
        return update_since(weights, model, self.samples, metrics, self.name)

    def _trained_part(self, model: nn.Module) -> nn.Module:
        """The module that takes what `_batch` makes: with a frozen base, its head alone.

        The features are then computed once, which they can be as long as images do not change.
        A new stage computes them anew.
        """
        if not keeps_features(model, self._settings):
            return model
        if self._features is None:
            self._features = features_of(
                model,
                self._scaled,
                self._normalised,
                store=self._store,
                watch=self._watch,
                what=f"features, {self.name}",
            )
        return model.get_submodule("head")

    def _batch(self, chosen: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return changed, normalised images, float [b, 1, h, w], and class shares [b, c]."""
        changes = self._settings.augmentation
        targets = functional.one_hot(self._labels[chosen], self._classes).float()
        if self._features is not None:
            return self._features[chosen], targets
        images = self._scaled[chosen].float() / 255.0
        affine = changes.affine()
        if any(getattr(affine, name) for name in affine.__slots__):
            images = augment(images, affine, generator)
        if changes.noise:
            images = images + changes.noise * torch.randn(images.shape, generator=generator)
        if changes.mixup:
            # Zhang et al., "mixup: Beyond Empirical Risk Minimization", ICLR 2018, figure 1.
            seed = int(torch.randint(2**31, (1,), generator=generator))
            share = float(np.random.default_rng(seed).beta(changes.mixup, changes.mixup))
            other = torch.randperm(len(chosen), generator=generator)
            images = share * images + (1.0 - share) * images[other]
            targets = share * targets + (1.0 - share) * targets[other]
        return (images - self._mean) / self._std, targets

    def _normalised(self, images: Tensor) -> Tensor:
        """Return float [b, 1, h, w] of uint8 images of that shape."""
        return (images.float() / 255.0 - self._mean) / self._std


def steps_of_pass(images: int, batch_size: int) -> int:
    """Batches in which every image comes once. A single one that is left over joins the last."""
    whole, left = divmod(images, batch_size)
    return max(1, whole + (left > 1))


def _batches(order: Tensor, batch_size: int) -> list[Tensor]:
    """Cut int64 [n] into batches; of a single image there would be no statistics."""
    batches = list(torch.split(order, batch_size))
    if len(batches) > steps_of_pass(len(order), batch_size):
        batches[-2:] = [torch.cat(batches[-2:])]
    return batches


def class_weights(labels: NDArray[np.int64], classes: int) -> Tensor:
    """Weights, float [classes], that give every class the same say; their mean over images is 1."""
    counts = np.bincount(labels, minlength=classes).astype(np.float64)
    return torch.tensor(len(labels) / (classes * np.maximum(counts, 1.0)), dtype=torch.float32)


def scaled(images: Tensor, size: int, batch: int = 256) -> Tensor:
    """Scale uint8 images [n, 1, h, w] to [n, 1, size, size]; averages where pixels fall together.

    In batches, because the way there is float.
    """
    if images.shape[-2:] == (size, size):
        return images
    parts = [
        functional.interpolate(part.float(), size=(size, size), mode="bilinear", antialias=True)
        .round()
        .clamp(0, 255)
        .to(torch.uint8)
        for part in torch.split(images, batch)
    ]
    return torch.cat(parts)


def keeps_features(model: nn.Module, settings: TrainingSettings) -> bool:
    """Whether features of the images can be computed once for all rounds of a stage."""
    return trains_head_only(model) and not any(settings.augmentation.model_dump().values())


def rate_at(progress: float, settings: OptimiserSettings) -> float:
    """Linear warm-up, then constant or a half cosine to zero; `progress` runs from 0 to 1."""
    if progress < settings.warm_up:
        return settings.learning_rate * max(progress, 1e-3) / settings.warm_up
    if settings.schedule == "constant":
        return settings.learning_rate
    cooled = (progress - settings.warm_up) / (1.0 - settings.warm_up)
    return settings.learning_rate * 0.5 * (1.0 + math.cos(math.pi * cooled))
