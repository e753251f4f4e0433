"""Scores a network on images that nothing is trained on: what chooses the best round."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.config import TrainingSettings
from training.data import labels_of
from training.errors import DivergedError
from training.features import FeatureStore, features_of, trains_head_only
from training.intake import Cohort
from training.local import scaled
from training.metrics import macro_auc, softmax
from training.networks import PIXEL_STATISTICS
from training.progress import Watch, unwatched

_BATCH = 64


class Validator:
    """Scores a network on the validation images. With a frozen base, features are kept."""

    def __init__(
        self,
        cohort: Cohort,
        model: nn.Module,
        settings: TrainingSettings,
        watch: Watch = unwatched,
        store: FeatureStore | None = None,
    ) -> None:
        self._watch = watch
        self._store = store
        self._mean, self._std = PIXEL_STATISTICS[settings.model.name]
        self._images = torch.from_numpy(cohort.images)
        self._labels = labels_of(cohort.samples)
        self._keeps_features = trains_head_only(model)
        self._scaled = self._images
        self._features: Tensor | None = None

    def score(self, model: nn.Module, size: int | None = None) -> tuple[float, float]:
        """Return mean cross-entropy and macro AUC on images scaled to `size`, in float32.

        Raises:
            DivergedError: the network puts out something that is not a number.
        """
        wanted = size or self._images.shape[-1]
        if self._scaled.shape[-1] != wanted:
            self._scaled, self._features = scaled(self._images, wanted), None
        if self._keeps_features and self._features is None:
            self._features = features_of(
                model,
                self._scaled,
                self._normalised,
                store=self._store,
                watch=self._watch,
                what="features, validation",
            )
        model.eval()
        with torch.no_grad():
            if self._features is not None:
                logits = model.get_submodule("head")(self._features)
            else:
                logits = torch.cat(self._logits(model))
            loss = float(functional.cross_entropy(logits, torch.from_numpy(self._labels)))
        if not math.isfinite(loss):
            raise DivergedError(
                "the averaged network puts out values that are not finite; lower "
                "training.learning_rate and train anew. The checkpoint is that of the round before"
            )
        return loss, macro_auc(softmax(logits.numpy()), self._labels)

    def _logits(self, model: nn.Module) -> list[Tensor]:
        parts: list[Tensor] = []
        for start in range(0, len(self._scaled), _BATCH):
            part = self._scaled[start : start + _BATCH]
            parts.append(model(self._normalised(part)))
            self._watch("validation", start + len(part), len(self._scaled))
        return parts

    def _normalised(self, images: Tensor) -> Tensor:
        return (images.float() / 255.0 - self._mean) / self._std
