"""One round in one process: every site steps, and only the weighted mean comes out."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from numpy.typing import NDArray
from torch import nn

from training.config import FederationSettings
from training.errors import (
    BudgetSpentError,
    SiteLostError,
    TooFewSitesError,
)
from training.secagg import Aggregator, Context, Participant, default_threshold
from training.secagg.context import SESSION_BYTES
from training.site import Site, SiteUpdate, Weights, applied, flatten, shared_names


@dataclass(frozen=True, slots=True)
class RoundResult:
    """New weights, what they were averaged over, and the figures of each site's own log."""

    weights: Weights
    samples: int
    sites: tuple[str, ...]
    metrics: dict[str, dict[str, float]]
    lost: tuple[str, ...] = ()
    spent: tuple[str, ...] = ()


@dataclass(slots=True)
class _Stepping:
    """Calls the sites one after the other and keeps note of those that do not come back."""

    model: nn.Module
    weights: Weights
    metrics: dict[str, dict[str, float]] = field(default_factory=dict)
    lost: list[str] = field(default_factory=list)
    spent: list[str] = field(default_factory=list)

    def update_of(self, site: Site) -> SiteUpdate | None:
        try:
            update = site.step(self.model, self.weights)
        except SiteLostError:
            self.lost.append(site.name)
            return None
        except BudgetSpentError:
            self.spent.append(site.name)
            return None
        self.metrics[site.name] = dict(update.metrics)
        return update


class RoundRunner:
    """Runs rounds with or without secure aggregation; keys of the sites live as long as it does.

    In one process the pinned keys protect nothing; they are here so that the same messages are
    made, checked and refused as between machines.
    """

    def __init__(self, settings: FederationSettings, names: Sequence[str], rounds: int) -> None:
        self._settings = settings
        self._rounds = rounds
        self._session = secrets.token_bytes(SESSION_BYTES)
        self._keys = {name: Ed25519PrivateKey.generate() for name in names}

    def run(
        self, number: int, sites: Sequence[Site], model: nn.Module, weights: Weights
    ) -> RoundResult:
        """Run round `number`, from 0. The weights passed in are not changed.

        Raises:
            TooFewSitesError: fewer sites than needed came back; nothing of the round is used.
            DivergedError: a loss or an update is not finite.
        """
        for site in sites:
            site.begin(number, self._rounds)
        stepping = _Stepping(model, weights)
        secure = self._settings.secure_aggregation and len(self._keys) > 1
        if secure:
            mean, samples, used = self._secure(number, sites, stepping)
        else:
            mean, samples, used = self._plain(sites, stepping)
        names = shared_names(model)
        return RoundResult(
            applied(weights, mean.astype(np.float32), names),
            samples,
            used,
            stepping.metrics,
            tuple(stepping.lost),
            tuple(stepping.spent),
        )

    def _threshold(self, sites: int) -> int:
        return min(self._settings.threshold or default_threshold(sites), sites)

    def _plain(
        self, sites: Sequence[Site], stepping: _Stepping
    ) -> tuple[NDArray[np.float64], int, tuple[str, ...]]:
        total: NDArray[np.float64] | None = None
        samples = 0
        used: list[str] = []
        for site in sites:
            update = stepping.update_of(site)
            if update is None:
                continue
            weighted = update.delta.astype(np.float64) * update.samples
            total = weighted if total is None else total + weighted
            samples += update.samples
            used.append(site.name)
        if total is None or len(used) < self._threshold(len(sites)):
            raise _too_few(used, self._threshold(len(sites)), stepping)
        return total / samples, samples, tuple(used)

    def _secure(
        self, number: int, sites: Sequence[Site], stepping: _Stepping
    ) -> tuple[NDArray[np.float64], int, tuple[str, ...]]:
        pins = {site.name: self._keys[site.name].public_key().public_bytes_raw() for site in sites}
        length = len(flatten(stepping.weights, shared_names(stepping.model)))
        context = Context(self._session, number, pins, self._threshold(len(sites)), length)
        server = Aggregator(context)
        members = {
            site.name: Participant(context, site.name, self._keys[site.name]) for site in sites
        }
        for name, member in members.items():
            server.receive(name, member.advertise())
        keys = server.close_keys()
        for name, member in members.items():
            server.receive(name, member.share(keys))
        shares = server.close_shares()
        alive: list[str] = []
        for site in sites:
            update = stepping.update_of(site)
            if update is None:
                continue
            masked = members[site.name].mask(shares[site.name], update.delta, update.samples)
            server.receive(site.name, masked)
            alive.append(site.name)
        if len(alive) < context.threshold:
            raise _too_few(alive, context.threshold, stepping)
        survivors = server.close_masked()
        for name in alive:
            server.receive(name, members[name].confirm(survivors))
        confirmed = server.close_survivors()
        for name in alive:
            server.receive(name, members[name].unmask(confirmed))
        result = server.close_unmask()
        return result.mean, result.samples, result.sites


def _too_few(used: Sequence[str], threshold: int, stepping: _Stepping) -> TooFewSitesError:
    reasons = [f"{name} was lost" for name in stepping.lost]
    reasons += [f"the privacy budget of {name} is spent" for name in stepping.spent]
    return TooFewSitesError(
        f"only {len(used)} sites finished the round, {threshold} are needed: "
        f"{'; '.join(reasons)}. Nothing of the round is used; bring the sites back and resume",
        tuple(stepping.spent),
    )
