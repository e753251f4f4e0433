"""DP-SGD at one site: what leaves it is differentially private for each of its images.

Source: Abadi et al., "Deep Learning with Differential Privacy", CCS 2016, algorithm 1. Every step
draws each image with its own coin (Poisson sampling, as accounted), clips the gradient of each
image to one length, adds normal noise to the sum and divides by the expected batch size, a public
number. Nothing else leaves: no loss, no batch size, no statistic of the images. Neighbouring data
sets differ by one image more or less; the number of images of a site counts as public.

Sum and noise are whole multiples of `clip_norm` * 2**-24 (see `training.noise`). Coordinates of
clipped gradients are cut off towards zero, which can only shorten them, and integers add up
exactly, so that the bound on what one image contributes is exact, too. The gradient of an image
that is not finite counts as zero: an error here would tell of that image before the noise does.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional

from training.accounting import Steps
from training.budget import Budget
from training.errors import SettingsError
from training.features import FeatureStore, features_of, trains_head_only
from training.noise import SecureSource
from training.progress import Watch, unwatched
from training.site import SiteUpdate, Weights, load_weights, update_since

_GRID_BITS = 24
# Rounding of the norm itself, in float64, must not let a gradient be longer than the bound.
_SAFETY = 1.0 - 1e-9


@dataclass(frozen=True, slots=True)
class PrivacySettings:
    """How a site trains. All of it is public, and chosen without looking at the site's images.

    `steps` are those of one round. `physical_batch` bounds memory and changes nothing else.
    `class_weights` multiply the loss of the images of a class before clipping. Over the last
    `decay` of all rounds the learning rate falls towards zero, which averages the noise out.
    """

    noise_multiplier: float
    clip_norm: float
    sample_rate: float
    steps: int = 1
    learning_rate: float = 0.1
    decay: float = 0.3
    momentum: float = 0.0
    weight_decay: float = 0.0
    class_weights: tuple[float, ...] | None = None
    physical_batch: int = 32

    def __post_init__(self) -> None:
        """Refuse settings that cannot be trained with.

        Raises:
            SettingsError: a value is out of its range.
        """
        Steps(self.noise_multiplier, self.sample_rate, self.steps)
        positive = {
            "clip_norm": self.clip_norm,
            "steps": self.steps,
            "learning_rate": self.learning_rate,
            "physical_batch": self.physical_batch,
        }
        for name, value in positive.items():
            if not 0.0 < value < float("inf"):
                raise SettingsError(f"{name} is {value}; it must be positive")
        if not 0.0 <= self.decay <= 1.0:
            raise SettingsError(f"decay is {self.decay}; it must lie between 0 and 1")
        if not 0.0 <= self.momentum < 1.0 or not 0.0 <= self.weight_decay < float("inf"):
            raise SettingsError(
                f"momentum {self.momentum} or weight decay {self.weight_decay} is out of range; "
                "momentum lies in [0, 1), weight decay is 0 or more"
            )


class PrivateSite:
    """A site whose updates are private. Follows `training.site.Site`.

    `images` are what the network takes, float [n, c, h, w] (normalised by public constants), or
    float [n, v, c, h, w]: v views of each image, whose gradients are averaged before clipping (De
    et al., "Unlocking High-Accuracy Differentially Private Image Classification through Scale",
    2022, section 3.2). `labels` are int64 [n].

    If only the `head` of a network with `features` is trained, the features are computed once.
    """

    def __init__(
        self,
        name: str,
        images: Tensor,
        labels: Tensor,
        settings: PrivacySettings,
        budget: Budget,
        source: SecureSource | None = None,
        watch: Watch = unwatched,
        store: FeatureStore | None = None,
    ) -> None:
        if len(images) == 0 or len(images) != len(labels):
            raise SettingsError(
                f"site {name!r} has {len(images)} images and {len(labels)} labels; "
                "it needs at least one, and as many of each"
            )
        self._name = name
        self._images = images
        self._labels = labels
        self._settings = settings
        self._budget = budget
        self._source = SecureSource() if source is None else source
        self._features: Tensor | None = None
        self._rate = settings.learning_rate
        self._watch = watch
        self._store = store
        self._title = name

    @property
    def name(self) -> str:
        """The site's name."""
        return self._name

    @property
    def samples(self) -> int:
        """How many images the site has; public, see above."""
        return len(self._labels)

    def begin(self, number: int, rounds: int) -> None:
        """Set the learning rate of round `number` of `rounds`, counted from 0."""
        self._title = f"round {number + 1}/{rounds}, {self._name}"
        falling = self._settings.decay * rounds
        share = min(1.0, (rounds - number) / falling) if falling > 0.0 else 1.0
        self._rate = self._settings.learning_rate * max(0.0, share)

    def step(self, model: nn.Module, weights: Weights) -> SiteUpdate:
        """Train `settings.steps` private steps from `weights`; return the change.

        The metrics are those of the accountants, nothing of the images.

        Raises:
            BudgetSpentError: the steps do not fit into the budget; none was taken.
            SettingsError: the network mixes images of a batch, or nothing of it is trained.
            DivergedError: a weight is not finite after the noise, which is all that it depends on.
        """
        refuse_mixing(model)
        load_weights(model, weights)
        settings = self._settings
        spent = self._budget.charge(
            Steps(settings.noise_multiplier, settings.sample_rate, settings.steps)
        )
        trained, inputs = self._trained_part(model)
        parameters = [value for value in trained.parameters() if value.requires_grad]
        optimiser = torch.optim.SGD(
            parameters,
            lr=self._rate,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
        )
        trained.eval()
        for number in range(settings.steps):
            gradient = self._private_gradient(trained, inputs)
            start = 0
            for parameter in parameters:
                flat = gradient[start : start + parameter.numel()]
                parameter.grad = flat.reshape(parameter.shape).to(parameter)
                start += parameter.numel()
            optimiser.step()
            self._watch(self._title, number + 1, settings.steps)
        metrics = {
            "epsilon_prv": spent.epsilon_prv,
            "epsilon_rdp": spent.epsilon_rdp,
            "private_steps": float(spent.steps),
            "learning_rate": self._rate,
        }
        return update_since(weights, model, self.samples, metrics, self._name)

    def _trained_part(self, model: nn.Module) -> tuple[nn.Module, Tensor]:
        """The module that is trained, and its inputs, [n, views, ...]."""
        views = self._images if self._images.ndim == 5 else self._images.unsqueeze(1)
        if not trains_head_only(model):
            return model, views
        if self._features is None:
            found = features_of(
                model,
                views.flatten(0, 1),
                lambda images: images,
                store=self._store,
                watch=self._watch,
                what=f"features, {self._name}",
            )
            self._features = found.reshape(len(views), views.shape[1], -1)
        head = model.get_submodule("head")
        return head, self._features

    def _private_gradient(self, trained: nn.Module, inputs: Tensor) -> Tensor:
        """One step's noisy mean gradient, float64 [parameters]."""
        settings = self._settings
        chosen = torch.from_numpy(self._source.chosen(self.samples, settings.sample_rate))
        total = clipped_sum(trained, inputs[chosen], self._labels[chosen], settings)
        noise = self._source.rounded_normal(len(total), settings.noise_multiplier * 2.0**_GRID_BITS)
        unit = settings.clip_norm * 2.0**-_GRID_BITS
        expected = settings.sample_rate * self.samples
        return torch.from_numpy((total + noise).astype(np.float64) * (unit / expected))


def clipped_sum(
    model: nn.Module, inputs: Tensor, labels: Tensor, settings: PrivacySettings
) -> NDArray[np.int64]:
    """Sum of the clipped gradients of single images, int64 [parameters], in grid units.

    `inputs` are [n, views, ...], `labels` int64 [n]; n may be 0. The order is that of the trainable
    parameters. Multiply by `clip_norm` * 2**-24 for the gradient. An image whose gradient is not
    finite adds nothing.

    Raises:
        SettingsError: nothing of the network is trained.
    """
    named = {name: value for name, value in model.named_parameters() if value.requires_grad}
    if not named:
        raise SettingsError("nothing of this network is trained; unfreeze the head at least")
    frozen = {name: value.detach() for name, value in model.named_parameters() if name not in named}
    frozen |= dict(model.named_buffers())
    weight = None if settings.class_weights is None else torch.tensor(settings.class_weights)

    def loss(trained: dict[str, Tensor], views: Tensor, label: Tensor) -> Tensor:
        logits = functional_call(model, {**trained, **frozen}, (views,))
        losses = functional.cross_entropy(logits, label.expand(len(views)), reduction="none")
        mean = losses.mean()
        return mean if weight is None else mean * weight[label]

    detached = {name: value.detach() for name, value in named.items()}
    per_image = vmap(grad(loss), in_dims=(None, 0, 0))
    total = np.zeros(sum(value.numel() for value in named.values()), dtype=np.int64)
    for start in range(0, len(labels), settings.physical_batch):
        part = slice(start, start + settings.physical_batch)
        gradients = per_image(detached, inputs[part], labels[part])
        flat = torch.cat([gradients[name].flatten(1) for name in named], dim=1).double().numpy()
        total += _on_grid(flat, settings.clip_norm).sum(axis=0)
    return total


def _on_grid(gradients: NDArray[np.float64], clip_norm: float) -> NDArray[np.int64]:
    """Clip rows, float64 [n, parameters], and cut them off to grid units, int64 of that shape.

    Rows that are not finite become zero.
    """
    norms = np.linalg.norm(gradients, axis=1)
    finite = np.isfinite(norms)[:, np.newaxis]
    gradients, norms = np.where(finite, gradients, 0.0), np.where(finite[:, 0], norms, 0.0)
    factors = _SAFETY / np.maximum(norms, clip_norm) * 2.0**_GRID_BITS
    clipped: NDArray[np.int64] = np.trunc(gradients * factors[:, np.newaxis]).astype(np.int64)
    return clipped


def refuse_mixing(model: nn.Module) -> None:
    """Refuse networks in which an image's gradient depends on its neighbours in the batch.

    Raises:
        SettingsError: a batch norm computes or trains statistics.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and (
            module.running_mean is None
            or any(parameter.requires_grad for parameter in module.parameters())
            or module.weight is None
        ):
            raise SettingsError(
                f"{name} is a batch norm that trains: it mixes the images of a batch, and its "
                "statistics would leave the site without noise; use a network with frozen or "
                "standardised normalisation"
            )
