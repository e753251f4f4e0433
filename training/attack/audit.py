"""How much the private step gives away at least: an audit in one training run.

Source: Steinke, Nasr, Jagielski, "Privacy Auditing with One (1) Training Run", NeurIPS 2023,
algorithm 1, with canaries that each have a direction of the gradient to themselves (the "Dirac"
canaries of its section 6).

A canary is an image, black but for one pixel of its own below the X-ray, where every real image is
black. The network is one linear layer that starts at zero, so the gradient of a canary touches
the weights of its pixel alone, and is clipped like any other. A fair coin decides for each canary
whether the site trains on it; the auditor, who sees the site's update as the aggregator would
without masks, guesses the coins of the canaries whose weights moved most and least.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from training.attack.bound import epsilon_lower_bound
from training.data import CLASSES
from training.errors import SettingsError
from training.site import SiteStep, weights_of

REAL_SIZE = 16


@dataclass(frozen=True, slots=True)
class AuditSettings:
    """The privacy that is claimed, the training that is audited, and the auditor's effort.

    `guesses` (half "trained on", half "left out") is fixed before any score is seen, as the bound
    requires. `clip_norm` lies below the norm of a canary's gradient, sqrt(2/3) at the start, so
    that a canary counts as much as clipping lets anything count.
    """

    canaries: int = 2000
    guesses: int = 200
    epsilon: float = 2.0
    delta: float = 1e-5
    sample_rate: float = 0.25
    steps: int = 40
    clip_norm: float = 0.5
    learning_rate: float = 0.1
    confidence: float = 0.95

    def __post_init__(self) -> None:
        if not 2 <= self.guesses <= self.canaries:
            raise SettingsError(
                f"{self.guesses} guesses about {self.canaries} canaries; "
                "take at least 2 and at most as many as there are canaries"
            )
        if self.guesses % 2:
            raise SettingsError(f"{self.guesses} guesses are not two equal halves; take one more")


@dataclass(frozen=True, slots=True)
class AuditResult:
    """What the guesses prove: epsilon at `delta` is at least `lower_bound`, at `confidence`."""

    noise_multiplier: float
    canaries: int
    included: int
    guesses: int
    correct: int
    delta: float
    confidence: float
    lower_bound: float
    seconds: float

    def as_dict(self) -> dict[str, float | int]:
        """The same for JSON."""
        return asdict(self)


class Probe(nn.Module):
    """One linear layer without bias on all pixels; it starts at zero."""

    def __init__(self, pixels: int, classes: int) -> None:
        super().__init__()
        self.head = nn.Linear(pixels, classes, bias=False)
        nn.init.zeros_(self.head.weight)

    def forward(self, images: Tensor) -> Tensor:
        """Map float [n, 1, h, w] to logits, float [n, classes]."""
        logits: Tensor = self.head(torch.flatten(images, 1))
        return logits


@dataclass(frozen=True, slots=True)
class Canaries:
    """Who may be in the training set; `included`, bool [canaries], is what the auditor guesses."""

    labels: NDArray[np.int64]
    included: NDArray[np.bool_]
    height: int

    @classmethod
    def draw(cls, count: int) -> Canaries:
        """Toss a fair coin for each of `count` canaries; labels take turns."""
        coins = np.frombuffer(secrets.token_bytes(count), dtype=np.uint8) & 1
        rows = -(-count // REAL_SIZE)
        return cls(np.arange(count) % len(CLASSES), coins.astype(bool), REAL_SIZE + rows)

    def training_set(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Real images, float [n, 1, 16, 16], and the included canaries on one canvas."""
        chosen = np.flatnonzero(self.included)
        canvas = torch.zeros(len(images) + len(chosen), 1, self.height, REAL_SIZE)
        canvas[: len(images), :, :REAL_SIZE] = images
        rows = torch.arange(len(images), len(canvas))
        canvas.view(len(canvas), -1)[rows, self._pixels()[chosen]] = 1.0
        return canvas, torch.cat([labels, torch.from_numpy(self.labels[chosen])])

    def scores(self, delta: NDArray[np.float32]) -> NDArray[np.float64]:
        """How far the weights went where training on each canary drives them; [canaries].

        `delta` is the change of the probe's weights, float32 [parameters].
        """
        change = delta.reshape(len(CLASSES), self.height * REAL_SIZE)[:, self._pixels()]
        towards = np.eye(len(CLASSES))[self.labels] - 1.0 / len(CLASSES)
        scores: NDArray[np.float64] = (change.T * towards).sum(axis=1)
        return scores

    def _pixels(self) -> NDArray[np.int64]:
        """The canaries' pixels on the flattened canvas: those below the real image."""
        return REAL_SIZE * REAL_SIZE + np.arange(len(self.labels))


SiteFactory = Callable[[nn.Module, Tensor, Tensor, float], SiteStep]


def run_audit(
    images: Tensor,
    labels: Tensor,
    noise_multiplier: float,
    make_site: SiteFactory,
    settings: AuditSettings,
) -> AuditResult:
    """Train once on `images`, float [n, 1, 16, 16], and canaries; bound epsilon from below.

    `make_site` gets the network, the training set and the noise multiplier, and returns the step
    under audit, which is called once and takes all of `settings.steps`. An auditor who saw every
    single step would add up what they change, and so have the same scores.
    """
    started = time.monotonic()
    canaries = Canaries.draw(settings.canaries)
    model = Probe(canaries.height * REAL_SIZE, len(CLASSES))
    step = make_site(model, *canaries.training_set(images, labels), noise_multiplier)
    scores = canaries.scores(step(model, weights_of(model)).delta)
    correct = correct_guesses(scores, canaries.included, settings.guesses)
    bound = epsilon_lower_bound(
        settings.canaries, settings.guesses, correct, settings.delta, settings.confidence
    )
    return AuditResult(
        noise_multiplier=noise_multiplier,
        canaries=settings.canaries,
        included=int(canaries.included.sum()),
        guesses=settings.guesses,
        correct=correct,
        delta=settings.delta,
        confidence=settings.confidence,
        lower_bound=bound,
        seconds=time.monotonic() - started,
    )


def correct_guesses(scores: NDArray[np.float64], included: NDArray[np.bool_], guesses: int) -> int:
    """Guess "trained on" for the highest half of `guesses`, "left out" for the lowest; count."""
    order = np.argsort(scores)
    lowest, highest = order[: guesses // 2], order[len(order) - guesses // 2 :]
    return int((~included[lowest]).sum() + included[highest].sum())


def problems(private: AuditResult, without_noise: AuditResult, nominal: float) -> list[str]:
    """What two audits fail to show; empty if the claim stands and the audit can refute one."""
    found = []
    if private.lower_bound >= nominal:
        found.append(
            f"the private step loses at least epsilon {private.lower_bound:.3f}, more than the "
            f"{nominal:.3f} it claims: noise, clipping, sampling or accounting is wrong"
        )
    if without_noise.lower_bound <= nominal:
        found.append(
            f"without noise the audit finds only epsilon {without_noise.lower_bound:.3f}, not more "
            f"than {nominal:.3f}: it could not find a mistake; use more canaries or guesses"
        )
    return found
