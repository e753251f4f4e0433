"""How a network came about: what the manifest keeps of it, and the card tells.

The same record serves a run in one process and one across machines, where whoever sums knows less:
what is not known is left out, never guessed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from training.checkpoint import Progress
from training.config import TrainingSettings
from training.data import CLASSES, Sample
from training.sources import network_facts

Placement = Literal["one process", "several machines"]
ChosenBy = Literal["validation", "last round"]

# What decides a private run; the rest of [training] has no effect there.
_PRIVATE_TRAINING = frozenset(
    {"rounds", "local_steps", "learning_rate", "momentum", "weight_decay", "patience"}
)


@dataclass(frozen=True, slots=True)
class PrivacyLoss:
    """What the images of one site have lost, by two accountants, and the settings that cost it.

    `steps` are all that its budget has counted, those of earlier trainings on the same images
    included; `steps_of_run` are those of this training. `accountant` is the one that `budget`, the
    largest epsilon allowed, is counted by.
    """

    epsilon_prv: float
    epsilon_rdp: float
    delta: float
    noise_multiplier: float
    clip_norm: float
    sample_rate: float
    steps: int
    steps_of_run: int
    budget: float
    accountant: str


@dataclass(frozen=True, slots=True)
class SiteRecord:
    """One site. Numbers of images are None where they are not known or not to be told."""

    name: str
    images: int | None = None
    images_by_class: Mapping[str, int] | None = None
    privacy: PrivacyLoss | None = None


@dataclass(frozen=True, slots=True)
class Provenance:
    """Settings and course of a training.

    `images` are those trained on. Where only sums are known, they are those behind the last sum up
    to the chosen round; None if nobody counted.
    """

    settings: TrainingSettings
    sites: tuple[SiteRecord, ...]
    rounds: int
    chosen_round: int
    chosen_by: ChosenBy
    stopped: str
    images: int | None = None
    placement: Placement = "one process"

    @property
    def private(self) -> bool:
        """Whether the sites trained with differential privacy."""
        return self.settings.privacy is not None

    def as_dict(self) -> dict[str, Any]:
        """The record as JSON-ready values for the manifest; no path of a machine is in it."""
        settings = self.settings
        content: dict[str, Any] = {
            "network": network_facts(settings.model.name, settings.model.options),
            "mode": settings.mode,
            "placement": self.placement,
            "rounds": self.rounds,
            "chosen_round": self.chosen_round,
            "chosen_by": self.chosen_by,
            "stopped": self.stopped,
            "settings": _settings(settings),
            "private": self.private,
        }
        if settings.mode == "federated":
            federation = settings.federation_or_default()
            content["secure_aggregation"] = federation.secure_aggregation
        content["sites"] = [_without_none(asdict(site)) for site in self.sites]
        return content


def provenance_of(
    settings: TrainingSettings,
    progress: Progress,
    stopped: str,
    samples: Mapping[str, Sequence[Sample]] | None = None,
    *,
    chosen_by: ChosenBy = "validation",
    placement: Placement = "one process",
) -> Provenance:
    """Return the record of a run that has finished at least one round.

    `samples` are those of each site, where they are known. Of a private site only their number is
    kept, which counts as public; how they fall to the classes is not.
    """
    sites = []
    records = progress.records
    for name in sorted({site for r in records for site in (*r.sites, *r.lost, *r.spent)}):
        loss = _privacy_loss(settings, progress, name)
        known = None if samples is None else samples[name]
        by_class = None
        if known is not None and settings.privacy is None:
            counts = Counter(sample.label for sample in known)
            by_class = {title: counts[label] for label, title in enumerate(CLASSES)}
        sites.append(SiteRecord(name, None if known is None else len(known), by_class, loss))
    chosen_round = progress.best_round if chosen_by == "validation" else len(records)
    # A round whose sum did not come out has none, and leaves the weights as they were.
    summed = (record.samples for record in reversed(records[:chosen_round]) if record.samples)
    images = next(summed, None) if samples is None else sum(map(len, samples.values()))
    return Provenance(
        settings=settings,
        sites=tuple(sites),
        rounds=len(records),
        chosen_round=chosen_round,
        chosen_by=chosen_by,
        stopped=stopped,
        images=images,
        placement=placement,
    )


def _privacy_loss(settings: TrainingSettings, progress: Progress, name: str) -> PrivacyLoss | None:
    """What the last round of a site says that it has lost; None if it never took part.

    All rounds count, not those up to the chosen one alone: each could have been chosen.
    """
    rounds = [record.metrics[name] for record in progress.records if name in record.metrics]
    if settings.privacy is None or not rounds:
        return None
    own = settings.privacy.of(name)
    return PrivacyLoss(
        epsilon_prv=round(rounds[-1]["epsilon_prv"], 4),
        epsilon_rdp=round(rounds[-1]["epsilon_rdp"], 4),
        delta=own.delta,
        noise_multiplier=own.noise_multiplier,
        clip_norm=own.clip_norm,
        sample_rate=own.sample_rate,
        steps=int(rounds[-1]["private_steps"]),
        steps_of_run=len(rounds) * settings.training.local_steps,
        budget=own.epsilon,
        accountant=own.accountant,
    )


def _settings(settings: TrainingSettings) -> dict[str, Any]:
    """What decides the result, as the configuration file has it, defaults filled in."""
    sections = {"mode", "seed", "data", "model", "training", "augmentation", "federation"}
    content = settings.model_dump(mode="json", include=sections, exclude_none=True)
    if settings.privacy is not None:
        content["privacy"] = settings.privacy.model_dump(
            mode="json", exclude={"budget_folder"}, exclude_none=True
        )
        content["training"] = {
            key: value for key, value in content["training"].items() if key in _PRIVATE_TRAINING
        }
        del content["augmentation"]
    return content


def _without_none(content: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in content.items() if value is not None}
