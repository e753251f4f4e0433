"""Cutting one folder into sites, patient by patient, evenly or skewed."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Sequence

from training.config import FederationSettings, TrainingSettings
from training.data import CLASSES, Sample
from training.errors import SettingsError

_NAMED = 5


def partition(
    samples: Sequence[Sample], settings: FederationSettings, seed: int
) -> dict[str, list[Sample]]:
    """Return the samples of each site, `site-1` and so on; no patient is in two of them.

    `class`: a patient goes with probability `skew` to the site of the class most of their images
    have, and anywhere otherwise. `size`: the expected share of each site is (1 - skew / 2) times
    that of the one before it.

    Raises:
        SettingsError: a site has no images.
    """
    generator = random.Random(seed)
    count = settings.sites
    by_patient: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        by_patient[sample.patient].append(sample)
    patients = sorted(by_patient)
    generator.shuffle(patients)
    shares = [(1.0 - settings.skew / 2.0) ** site for site in range(count)]
    sites: list[list[Sample]] = [[] for _ in range(count)]
    for number, patient in enumerate(patients):
        images = by_patient[patient]
        site = number % count
        if settings.split == "size":
            site = generator.choices(range(count), shares)[0]
        elif settings.split == "class" and generator.random() < settings.skew:
            site = Counter(sample.label for sample in images).most_common(1)[0][0] % count
        sites[site] += images
    parts = {f"site-{number + 1}": part for number, part in enumerate(sites)}
    empty = [name for name, part in parts.items() if not part]
    if empty:
        named = ", ".join(empty[:_NAMED]) + (" and others" if len(empty) > _NAMED else "")
        raise SettingsError(
            f"no images for {named}: {len(patients)} patients are too few for {count} "
            f"sites split by {settings.split}; take fewer sites or less skew"
        )
    return parts


def sites_of(settings: TrainingSettings, samples: Sequence[Sample]) -> dict[str, list[Sample]]:
    """The samples of each site of a run: one site in local mode.

    Raises:
        SettingsError: a site has no images.
    """
    if settings.mode == "local":
        return {settings.site_names[0]: list(samples)}
    return partition(samples, settings.federation_or_default(), settings.seed)


def describe(settings: TrainingSettings, samples: Sequence[Sample]) -> list[str]:
    """One line per site: its images by class."""
    lines: list[str] = []
    for name, part in sites_of(settings, samples).items():
        counts = Counter(sample.label for sample in part)
        by_class = ", ".join(f"{counts[label]} {title}" for label, title in enumerate(CLASSES))
        lines.append(f"{name}: {len(part)} images ({by_class})")
    return lines
