"""What the attacks are aimed at: one step of a site, unprotected, summed securely, or private."""

from __future__ import annotations

import math
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from training.accounting import Steps, noise_for, prv_epsilon
from training.attack.audit import AuditSettings, SiteFactory
from training.budget import Allowance, Budget
from training.dp import PrivacySettings, PrivateSite
from training.secagg import Aggregator, Context, Participant, default_threshold
from training.secagg.context import HEADER_BYTES, SESSION_BYTES
from training.site import SiteStep, SiteUpdate, load_weights, update_since, weights_of

LEARNING_RATE = 0.1


def plain_update(model: nn.Module, images: Tensor, labels: Tensor) -> SiteUpdate:
    """One step of gradient descent on all images, float [n, 1, h, w]; the network stays as it is.

    With one local step the update is the gradient, times a number that the attacker knows.
    """
    before = weights_of(model)
    optimiser = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
    loss = functional.cross_entropy(model(images), labels)
    optimiser.zero_grad()
    torch.autograd.backward([loss])
    optimiser.step()
    optimiser.zero_grad()
    update = update_since(before, model, len(labels), {}, "under attack")
    load_weights(model, before)
    return update


@dataclass(frozen=True, slots=True)
class SecureRound:
    """What the aggregator of one round sees: a masked vector a site, and the mean of all.

    `masked` are float64 [parameters], the ring elements as the signed numbers they stand for;
    `mean` is float64 [parameters].
    """

    masked: tuple[NDArray[np.float64], ...]
    mean: NDArray[np.float64]


def secure_round(updates: Sequence[SiteUpdate]) -> SecureRound:
    """Run secure aggregation with all its messages; nobody drops out.

    Raises:
        SettingsError: there are fewer than three updates.
    """
    keys = {f"site-{index:03d}": Ed25519PrivateKey.generate() for index in range(len(updates))}
    context = Context(
        session=secrets.token_bytes(SESSION_BYTES),
        number=0,
        pins={name: key.public_key().public_bytes_raw() for name, key in keys.items()},
        threshold=default_threshold(len(keys)),
        length=len(updates[0].delta) if updates else 0,
    )
    sites = {name: Participant(context, name, key) for name, key in keys.items()}
    aggregator = Aggregator(context)
    for name, site in sites.items():
        aggregator.receive(name, site.advertise())
    advertised = aggregator.close_keys()
    for name, site in sites.items():
        aggregator.receive(name, site.share(advertised))
    shares = aggregator.close_shares()
    masked = []
    for (name, site), update in zip(sites.items(), updates, strict=True):
        message = site.mask(shares[name], update.delta, update.samples)
        aggregator.receive(name, message)
        # The last element is the number of samples.
        elements = np.frombuffer(message[HEADER_BYTES:], dtype="<i8")[:-1]
        masked.append(elements.astype(np.float64))
    survivors = aggregator.close_masked()
    for name, site in sites.items():
        aggregator.receive(name, site.confirm(survivors))
    confirmations = aggregator.close_survivors()
    for name, site in sites.items():
        aggregator.receive(name, site.unmask(confirmations))
    return SecureRound(tuple(masked), aggregator.close_unmask().mean)


def private_update(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    noise_multiplier: float,
    clip_norm: float,
) -> SiteUpdate:
    """One private step in which every image is drawn; the network stays as it is."""
    before = weights_of(model)
    settings = PrivacySettings(
        noise_multiplier, clip_norm, sample_rate=1.0, learning_rate=LEARNING_RATE
    )
    site = PrivateSite("under attack", images, labels, settings, _unlimited())
    update = site.step(model, before)
    load_weights(model, before)
    return update


def calibrate(settings: AuditSettings) -> tuple[float, float]:
    """Return the noise multiplier for the claim under audit, and the epsilon that it costs."""
    noise = noise_for(settings.epsilon, settings.delta, settings.sample_rate, settings.steps)
    history = (Steps(noise, settings.sample_rate, settings.steps),)
    return noise, prv_epsilon(history, settings.delta)


def private_site(settings: AuditSettings) -> SiteFactory:
    """Return what makes the step under audit of network, training set and noise multiplier.

    One call of the step is a whole round: all of `settings.steps` private steps.
    """

    def make(_: nn.Module, images: Tensor, labels: Tensor, noise: float) -> SiteStep:
        privacy = PrivacySettings(
            noise,
            settings.clip_norm,
            settings.sample_rate,
            steps=settings.steps,
            learning_rate=settings.learning_rate,
        )
        return PrivateSite("under audit", images, labels, privacy, _unlimited()).step

    return make


def _unlimited() -> Budget:
    """A budget that never ends: an attack may leave the noise out."""
    return Budget("under attack", Allowance(math.inf, delta=1e-5), path=None)
