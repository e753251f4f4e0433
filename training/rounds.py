"""One round: every site steps, and only the weighted mean comes out.

The secure round is one state machine, `secure_round`, whatever carries its messages: a function
call here (`RoundRunner`), the network in `training.flower`.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from numpy.typing import NDArray
from torch import nn

from training.config import FederationSettings
from training.errors import (
    BudgetSpentError,
    RefusedMessageError,
    SiteLostError,
    TooFewSitesError,
)
from training.journal import Journal
from training.member import METRICS_BYTES, Member, Terms, split_metrics
from training.opening import Opening
from training.secagg import Aggregate, Context, default_threshold
from training.secagg.context import SESSION_BYTES, Kind
from training.secagg.dialogue import Conductor
from training.site import Site, Weights, applied, flatten, shared_names


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
class Attendance:
    """Who has reported what in a round, and who has not come back, with the reason in words."""

    metrics: dict[str, dict[str, float]] = field(default_factory=dict)
    lost: dict[str, str] = field(default_factory=dict)
    spent: list[str] = field(default_factory=list)

    def reasons(self) -> str:
        """Who is missing, and why."""
        parts = [f"{name} {reason}" for name, reason in sorted(self.lost.items())]
        parts += [f"the privacy budget of {name} is spent" for name in sorted(self.spent)]
        return "; ".join(parts)

    def too_few(self, used: Sequence[str], threshold: int) -> TooFewSitesError:
        """The error that names everybody who is missing."""
        return TooFewSitesError(
            f"only {len(used)} sites finished the round, {threshold} are needed: {self.reasons()}. "
            "Nothing of the round is used; bring the sites back and resume",
            tuple(self.spent),
        )


@dataclass(frozen=True, slots=True)
class Questions:
    """What is asked of the sites, by name. No answer is longer than `answer_bytes`."""

    kind: Kind
    by_site: Mapping[str, bytes]
    answer_bytes: int


Exchange = Callable[[Questions, Attendance], Iterable[tuple[str, bytes]]]
"""Ask the sites; yield the answers as they come, and enter who does not answer."""

CheckFigures = Callable[[str, Mapping[str, float]], None]
"""Raise RefusedMessageError if a site, by name, sends figures that it should not."""


def secure_round(
    context: Context,
    opening: bytes,
    exchange: Exchange,
    attendance: Attendance,
    check: CheckFigures | None = None,
) -> Aggregate:
    """Lead all sites of `context` through one aggregation.

    A site whose message, or whose figures (`check`), are refused has dropped out, like one that
    does not answer.

    Raises:
        TooFewSitesError: fewer than the threshold are left; nothing is opened.
        RefusedMessageError: shares do not open a secret; nothing is opened.
        SettingsError: the sum is impossible.
    """
    conductor = Conductor(context, opening)
    while conductor.result is None:
        kind, arrived = conductor.kind, list[str]()
        framed = {name: bytes([kind]) + body for name, body in conductor.questions.items()}
        longest = conductor.answer_bytes + (METRICS_BYTES if kind == Kind.MASKED else 0)
        for name, answer in exchange(Questions(kind, framed, longest), attendance):
            try:
                if kind == Kind.MASKED:
                    figures, message = split_metrics(name, answer, conductor.answer_bytes)
                    if check is not None:
                        check(name, figures)
                    conductor.receive(name, message)
                    attendance.metrics[name] = figures
                else:
                    conductor.receive(name, answer)
            except RefusedMessageError as error:
                attendance.lost[name] = f"was refused ({error.reason})"
            else:
                arrived.append(name)
        if len(arrived) < context.threshold:
            raise attendance.too_few(arrived, context.threshold)
        conductor.close()
    return conductor.result


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
        attendance = Attendance()
        secure = self._settings.secure_aggregation and len(self._keys) > 1
        if secure:
            result = self._secure(number, sites, model, weights, attendance)
        else:
            result = self._plain(number, sites, model, weights, attendance)
        names = shared_names(model)
        return RoundResult(
            applied(weights, result.mean.astype(np.float32), names),
            result.samples,
            result.sites,
            attendance.metrics,
            tuple(attendance.lost),
            tuple(attendance.spent),
        )

    def _threshold(self, sites: int) -> int:
        return min(self._settings.threshold or default_threshold(sites), sites)

    def _plain(
        self,
        number: int,
        sites: Sequence[Site],
        model: nn.Module,
        weights: Weights,
        attendance: Attendance,
    ) -> Aggregate:
        total: NDArray[np.float64] | None = None
        samples = 0
        used: list[str] = []
        for site in sites:
            site.begin(number, self._rounds)
            with _noting_absence(site.name, attendance):
                update = site.step(model, weights)
                weighted = update.delta.astype(np.float64) * update.samples
                total = weighted if total is None else total + weighted
                samples += update.samples
                attendance.metrics[site.name] = dict(update.metrics)
                used.append(site.name)
        if total is None or len(used) < self._threshold(len(sites)):
            raise attendance.too_few(used, self._threshold(len(sites)))
        return Aggregate(total / samples, samples, tuple(used))

    def _secure(
        self,
        number: int,
        sites: Sequence[Site],
        model: nn.Module,
        weights: Weights,
        attendance: Attendance,
    ) -> Aggregate:
        pins = {site.name: self._keys[site.name].public_key().public_bytes_raw() for site in sites}
        terms = Terms(pins, self._threshold(len(sites)), self._rounds, b"")
        flat = flatten(weights, shared_names(model))
        opening = Opening(self._session, number, number, terms.agreement, flat)
        context = Context(
            self._session, number, pins, terms.threshold, len(flat), binding=opening.binding()
        )
        members = {
            site.name: Member(site, model, self._keys[site.name], terms, Journal())
            for site in sites
        }

        def exchange(questions: Questions, attendance: Attendance) -> Iterable[tuple[str, bytes]]:
            for name, question in questions.by_site.items():
                with _noting_absence(name, attendance):
                    yield name, members[name].answer(question)

        return secure_round(context, opening.encode(), exchange, attendance)


@contextmanager
def _noting_absence(name: str, attendance: Attendance) -> Iterator[None]:
    """Enter a site that does not come back, and go on without it."""
    try:
        yield
    except SiteLostError:
        attendance.lost[name] = "was lost"
    except BudgetSpentError:
        attendance.spent.append(name)
