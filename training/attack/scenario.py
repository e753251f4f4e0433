"""Gradient inversion against the updates of one round, with and without protection.

The round is the worst case for the sites: the first one, one local step each, a few images per
site, a network that is easy to invert, an attacker who knows the labels, whose reconstructions are
put into the best order and whose prior is tuned on the originals themselves. What fails to
protect here may still protect a real round; what protects here protects.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.attack.inversion import InversionSettings, invert
from training.attack.network import SmallNetwork
from training.attack.similarity import best_matches, psnr, ssim
from training.attack.steps import plain_update, private_update, secure_round
from training.data import CLASSES
from training.errors import SettingsError

PLAIN, MASKED, PRIVATE = "plain", "masked", "private"
MEAN_IMAGE = "mean image"


@dataclass(frozen=True, slots=True)
class ScenarioSettings:
    """`attacked` of the `sites` sites are attacked, each of which has `images_per_site` images.

    `sums` says of how many sites' updates the sum is attacked: groups of the attacked sites, or
    all of those and others.
    `priors` are weights of the total variation; of each setting the one that suits the attacker
    best is reported.
    """

    sites: int = 24
    images_per_site: int = 1
    attacked: int = 6
    sums: tuple[int, ...] = (3, 6, 24)
    size: int = 64
    width: int = 12
    noise_multiplier: float = 0.5
    clip_norm: float = 1.0
    priors: tuple[float, ...] = (0.1, 1.0)
    inversion: InversionSettings = field(default_factory=InversionSettings)

    def __post_init__(self) -> None:
        if not 1 <= self.attacked <= self.sites:
            raise SettingsError(
                f"{self.attacked} of {self.sites} sites cannot be attacked; take 1 to {self.sites}"
            )
        for count in self.sums:
            if count < 3 or count > self.sites or (count < self.attacked and self.attacked % count):
                raise SettingsError(
                    f"a sum of {count} sites; take divisors of the {self.attacked} under attack "
                    f"from 3 on, or {self.attacked} to {self.sites}"
                )
        if not self.priors:
            raise SettingsError("no weight of the total variation is given; name at least one")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the attack got in one setting; `images` are matched with the originals of `attacked`.

    `observed_images` is how many images' gradients are in what the attacker sees.
    """

    setting: str
    images: Tensor
    observed_images: int
    ssim: tuple[float, ...]
    psnr: tuple[float, ...]
    cosine_distance: float
    total_variation: float
    seconds: float

    @property
    def mean_ssim(self) -> float:
        return float(np.mean(self.ssim))

    @property
    def mean_psnr(self) -> float:
        return float(np.mean(self.psnr))

    def as_dict(self) -> dict[str, object]:
        """Figures for JSON, without the images."""
        return {
            "setting": self.setting,
            "images_in_update": self.observed_images,
            "mean_ssim": self.mean_ssim,
            "mean_psnr": self.mean_psnr,
            "ssim": list(self.ssim),
            "psnr": list(self.psnr),
            "cosine_distance": self.cosine_distance,
            "total_variation": self.total_variation,
            "seconds": self.seconds,
        }


@dataclass(frozen=True, slots=True)
class Attack:
    """One observation: a direction, the labels behind it, and the originals it is judged by."""

    observed: NDArray[np.floating]
    labels: Tensor
    originals: Tensor


def sum_of(count: int) -> str:
    """The name of the setting in which the sum of `count` sites' updates is attacked."""
    return f"sum of {count}"


def deal(count: int, settings: ScenarioSettings) -> list[list[int]]:
    """Positions of the images of each site: image i goes to site i mod sites.

    Raises:
        SettingsError: there are fewer images than the sites need.
    """
    needed = settings.sites * settings.images_per_site
    if count < needed:
        raise SettingsError(
            f"{settings.sites} sites of {settings.images_per_site} images need {needed} images, "
            f"but there are {count}; give more images or fewer sites"
        )
    return [list(range(site, needed, settings.sites)) for site in range(settings.sites)]


def run_scenario(
    images: Tensor,
    labels: Tensor,
    mean_image: Tensor | None,
    settings: ScenarioSettings,
    report: Callable[[str], None] = print,
) -> tuple[Tensor, list[Outcome]]:
    """Attack one round in every setting; return the originals attacked and the outcomes.

    `images` is float [n, 1, size, size] from 0 to 1, `labels` int64 [n]. `mean_image`, float
    [1, 1, size, size], is the best guess of somebody who has seen no update; by default it is the
    mean of all images but the attacked site's own. `report` receives one line per setting.
    """
    dealt = deal(len(images), settings)
    torch.manual_seed(settings.inversion.seed)
    model = SmallNetwork(len(CLASSES), settings.size, settings.width)
    updates = [plain_update(model, images[own], labels[own]) for own in dealt]
    attacked = dealt[: settings.attacked]
    originals = torch.cat([images[own] for own in attacked])
    outcomes = [_mean_image(images, originals, attacked, mean_image)]
    report(line_of(outcomes[0]))

    def alone(vectors: Sequence[NDArray[np.floating]]) -> list[Attack]:
        return [
            Attack(vector, labels[own], images[own])
            for vector, own in zip(vectors, attacked, strict=True)
        ]

    def together(count: int) -> list[Attack]:
        attacks = []
        for first in range(0, settings.attacked, count):
            members = range(first, first + count)
            opened = secure_round([updates[site] for site in members]).mean
            everyone = [index for site in members for index in dealt[site]]
            judged = [index for own in attacked[first : first + count] for index in own]
            attacks.append(Attack(-opened, labels[everyone], images[judged]))
        return attacks

    plans: dict[str, list[Attack]] = {
        PLAIN: alone([-update.delta for update in updates[: settings.attacked]]),
        MASKED: alone([-seen for seen in secure_round(updates).masked[: settings.attacked]]),
        **{sum_of(count): together(count) for count in settings.sums},
        PRIVATE: alone(
            [
                -private_update(
                    model, images[own], labels[own], settings.noise_multiplier, settings.clip_norm
                ).delta
                for own in attacked
            ]
        ),
    }
    for setting, attacks in plans.items():
        outcomes.append(_best(setting, model, attacks, settings))
        report(line_of(outcomes[-1]))
    return originals, outcomes


def line_of(outcome: Outcome) -> str:
    """One line for the terminal."""
    return (
        f"{outcome.setting:<12} {outcome.observed_images:>3} images in the update   "
        f"SSIM {outcome.mean_ssim:6.3f}   PSNR {outcome.mean_psnr:5.1f} dB   "
        f"{outcome.seconds:4.0f} s"
    )


def problems(outcomes: Sequence[Outcome], needed_ssim: float = 0.5) -> list[str]:
    """What the outcomes fail to show; empty if the attack works and the protections hold.

    The largest sum counts as the protected one: smaller ones are measured to see where the
    protection of a sum begins.
    """
    found = {outcome.setting: outcome for outcome in outcomes}
    guess = found[MEAN_IMAGE]
    failures = []
    if found[PLAIN].mean_ssim < needed_ssim:
        failures.append(
            f"the attack fails without protection (SSIM {found[PLAIN].mean_ssim:.3f} < "
            f"{needed_ssim}), so it proves nothing; use fewer images per site or more iterations"
        )
    sums = [outcome for outcome in outcomes if outcome.setting.startswith("sum of ")]
    largest = [max(sums, key=lambda outcome: outcome.observed_images)] if sums else []
    for outcome in (found[MASKED], *largest, found[PRIVATE]):
        if outcome.mean_ssim > guess.mean_ssim or outcome.mean_psnr > guess.mean_psnr:
            failures.append(
                f"{outcome.setting}: SSIM {outcome.mean_ssim:.3f}, PSNR {outcome.mean_psnr:.1f} "
                f"beat the mean image ({guess.mean_ssim:.3f}, {guess.mean_psnr:.1f})"
            )
    return failures


def _mean_image(
    images: Tensor, originals: Tensor, attacked: Sequence[Sequence[int]], mean: Tensor | None
) -> Outcome:
    """The guess of somebody who has seen no update of the site."""
    if mean is not None:
        guesses = mean.expand_as(originals).clone()
    else:
        parts = []
        for own in attacked:
            others = [index for index in range(len(images)) if index not in set(own)]
            parts.append(images[others].mean(dim=0, keepdim=True).expand_as(images[list(own)]))
        guesses = torch.cat(parts)
    return Outcome(
        setting=MEAN_IMAGE,
        images=guesses,
        observed_images=0,
        ssim=tuple(ssim(guesses, originals).tolist()),
        psnr=tuple(psnr(guesses, originals).tolist()),
        cosine_distance=float("nan"),
        total_variation=float("nan"),
        seconds=0.0,
    )


def _best(
    setting: str, model: SmallNetwork, attacks: Sequence[Attack], settings: ScenarioSettings
) -> Outcome:
    started = time.monotonic()
    candidates = []
    for weight in settings.priors:
        trial = replace(settings.inversion, total_variation=weight)
        found = [
            invert(model, attack.observed, attack.labels, settings.size, trial)
            for attack in attacks
        ]
        matched = [
            best_matches(result.images, attack.originals)
            for result, attack in zip(found, attacks, strict=True)
        ]
        images = torch.cat(matched)
        originals = torch.cat([attack.originals for attack in attacks])
        candidates.append(
            Outcome(
                setting=setting,
                images=images,
                observed_images=len(attacks[0].labels),
                ssim=tuple(ssim(images, originals).tolist()),
                psnr=tuple(psnr(images, originals).tolist()),
                cosine_distance=float(np.mean([result.cosine_distance for result in found])),
                total_variation=weight,
                seconds=0.0,
            )
        )
    best = max(candidates, key=lambda outcome: outcome.mean_ssim)
    return replace(best, seconds=time.monotonic() - started)
