"""How long a run will take, from a few seconds of trying."""

from __future__ import annotations

import math
import time

import numpy as np
import torch

from training.budget import Allowance, Budget
from training.config import TrainingSettings
from training.data import CLASSES, labels_of
from training.dp import PrivacySettings as PrivateSteps
from training.dp import PrivateSite
from training.features import trains_head_only
from training.federated import build_network
from training.intake import Cohort, Intake
from training.local import LocalSite, keeps_features, scaled, steps_of_pass
from training.networks import PIXEL_STATISTICS
from training.progress import Watch, unwatched
from training.secagg.masks import add_mask
from training.site import Site, weights_of

_PROBE_ELEMENTS = 1 << 20


def estimate_seconds(
    settings: TrainingSettings, intake: Intake, watch: Watch = unwatched, done: int = 0
) -> float:
    """Return the seconds that all rounds but the first `done` take here, early stopping left out.

    One step of training and a batch of validation at every size of images, and a mask, are timed.
    Nothing is charged to a privacy budget: the private step is tried without a file, and its
    result thrown away.
    """
    torch.set_num_threads(settings.threads)
    model = build_network(settings)
    weights = weights_of(model)
    private = settings.privacy is not None
    cached = trains_head_only(model) if private else keeps_features(model, settings)
    training, validation = len(intake.training.samples), len(intake.validation.samples)
    rounds, sites = settings.training.rounds - done, settings.site_count
    steps = settings.training.local_steps * sites or steps_of_pass(
        training, settings.training.batch_size
    )
    total, first, last = 0.0, done, 0
    for number, stage in enumerate(settings.stages):
        watch("estimating the duration", number, len(settings.stages))
        last += stage.rounds
        if first >= last:
            continue
        total += (last - first) * steps * _seconds_of_step(settings, intake.training, first)
        forward = _seconds_of_image(settings, intake.validation, stage.size)
        total += forward * (training + validation if cached else (last - first) * validation)
        first = last
    if settings.mode == "federated" and settings.federation_or_default().secure_aggregation:
        length = sum(tensor.numel() for tensor in weights.values())
        # Each site masks once for itself and once for each other; the own masks are taken off.
        total += rounds * sites * (sites + 1) * length * _seconds_of_mask_element()
    return total


def describe_seconds(seconds: float) -> str:
    """Write a duration as people say it."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    if seconds < 5400:
        return f"{round(seconds / 60)} min"
    return f"{seconds / 3600:.1f} h"


def _seconds_of_step(settings: TrainingSettings, cohort: Cohort, number: int) -> float:
    """Time the second of two steps of a round; the first warms up, and computes what is kept."""
    model = build_network(settings)
    site = _probe(settings, cohort)
    weights = weights_of(model)
    site.begin(number, settings.training.rounds)
    site.step(model, weights)
    started = time.monotonic()
    site.step(model, weights)
    return time.monotonic() - started


def _probe(settings: TrainingSettings, cohort: Cohort) -> Site:
    single = settings.model_copy(
        update={"training": settings.training.model_copy(update={"local_steps": 1})}
    )
    labels = labels_of(cohort.samples)
    if settings.privacy is None:
        count = min(len(labels), settings.training.batch_size)
        return LocalSite("probe", cohort.images[:count], labels[:count], len(CLASSES), single)
    expected = settings.privacy.sample_rate * len(labels) / settings.site_count
    count = min(len(labels), max(1, math.ceil(expected)))
    mean, std = PIXEL_STATISTICS[settings.model.name]
    images = (torch.from_numpy(cohort.images[:count]).float() / 255.0 - mean) / std
    steps = PrivateSteps(settings.privacy.noise_multiplier, settings.privacy.clip_norm, 1.0)
    budget = Budget("probe", Allowance(math.inf, 1e-5, "rdp"), None)
    return PrivateSite("probe", images, torch.from_numpy(labels[:count]), steps, budget)


def _seconds_of_image(settings: TrainingSettings, cohort: Cohort, size: int) -> float:
    model = build_network(settings).eval()
    mean, std = PIXEL_STATISTICS[settings.model.name]
    images = scaled(torch.from_numpy(cohort.images[:64]), size)
    started = time.monotonic()
    with torch.no_grad():
        model((images.float() / 255.0 - mean) / std)
    return (time.monotonic() - started) / len(images)


def _seconds_of_mask_element() -> float:
    vector = np.zeros(_PROBE_ELEMENTS, dtype=np.uint64)
    started = time.monotonic()
    add_mask(vector, bytes(32))
    return (time.monotonic() - started) / _PROBE_ELEMENTS
