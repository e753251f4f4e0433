"""A site in secure rounds: answers the coordinator's questions, in one process or across machines.

Between the questions of a round its keys, seed and shares live in memory and nowhere else; a site
that is restarted in mid-round has dropped out of that round.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from numpy.typing import NDArray
from torch import nn

from training.errors import DisagreementError, RefusedMessageError
from training.journal import Journal
from training.opening import Opening
from training.secagg import Context, Participant
from training.secagg.context import Kind
from training.secagg.dialogue import AGGREGATOR, answer, kind_of
from training.site import Site, SiteUpdate, flatten, shared_names, unflatten, weights_of

Metrics = Mapping[str, float]

_MOST_METRICS = 16
_NAME = re.compile(r"[a-z][a-z0-9_]{0,31}")
_VALUE = struct.Struct("<d")
METRICS_BYTES = 1 + _MOST_METRICS * (1 + 32 + _VALUE.size)
"""The most that the figures before a masked update take."""


@dataclass(frozen=True)
class Terms:
    """What all members hold alike: pinned keys, threshold, number of rounds, and the agreement."""

    pins: Mapping[str, bytes]
    threshold: int
    rounds: int
    agreement: bytes


@dataclass(frozen=True)
class _Round:
    opening: Opening
    context: Context
    participant: Participant


class Member:
    """One site. `key` signs; its public half is pinned under the site's name.

    `shared` chooses which figures of the site's own log the coordinator gets to see (all of them,
    which is right in one process only); `check` raises before the first message of a round if the
    site cannot take part.
    """

    def __init__(
        self,
        site: Site,
        model: nn.Module,
        key: Ed25519PrivateKey,
        terms: Terms,
        journal: Journal,
        shared: Callable[[Metrics], Metrics] = dict,
        check: Callable[[], None] | None = None,
    ) -> None:
        self._site = site
        self._model = model
        self._key = key
        self._terms = terms
        self._journal = journal
        self._shared = shared
        self._check = check
        self._names = shared_names(model)
        self._like = weights_of(model)
        self._length = len(flatten(self._like, self._names))
        self._round: _Round | None = None
        self._made: tuple[bytes, SiteUpdate] | None = None

    @property
    def number(self) -> int | None:
        """The round that is under way, from 0."""
        return None if self._round is None else self._round.opening.number

    def answer(self, question: bytes) -> bytes:
        """Answer one question: a byte for its kind, then what `training.secagg.dialogue` says.

        Raises:
            DisagreementError: the agreement is not this site's.
            RepeatedRoundError: the round was opened before, or is an old attempt.
            BudgetSpentError: the site's privacy budget does not allow the round.
            RefusedMessageError: the question, or a message that it passes on, is refused.
            TrainingError: the update cannot be made. The round is over for this site either way.
        """
        kind = kind_of(question)
        try:
            if kind == Kind.KEYS:
                self._round = self._begin(question[1:])
            if self._round is None:
                raise RefusedMessageError(AGGREGATOR, f"{kind.name} is asked, but no round is open")
            return self._respond(self._round, kind, question[1:])
        except BaseException:
            self._round = None
            raise

    def _begin(self, body: bytes) -> _Round:
        if Opening.agreement_in(body) != self._terms.agreement:
            raise DisagreementError(
                f"site {self._site.name!r} has agreed to something else than the coordinator"
            )
        opening = Opening.decode(body, self._length)
        if opening.number >= self._terms.rounds:
            raise RefusedMessageError(
                AGGREGATOR,
                f"round {opening.number + 1} is asked for, {self._terms.rounds} are agreed",
            )
        binding = opening.binding()
        if self._check is not None and not self._has_made(binding):
            self._check()
        self._journal.begin(opening.session, opening.attempt, opening.number)
        context = Context(
            opening.session,
            opening.attempt,
            self._terms.pins,
            self._terms.threshold,
            self._length,
            binding=binding,
        )
        return _Round(opening, context, Participant(context, self._site.name, self._key))

    def _respond(self, at: _Round, kind: Kind, body: bytes) -> bytes:
        metrics: Metrics = {}

        def update() -> tuple[NDArray[np.floating], int]:
            nonlocal metrics
            made = self._update(at)
            metrics = self._shared(made.metrics)
            return made.delta, made.samples

        message = answer(at.participant, at.context, kind, body, update)
        if kind == Kind.MASKED:
            return with_metrics(metrics, message)
        if kind == Kind.UNMASK:
            self._journal.open(at.opening.number)
            self._round = None
        return message

    def _update(self, at: _Round) -> SiteUpdate:
        """Train; in a further attempt at a round, hand over what was made in the first.

        A second update from the same weights would spend the privacy budget twice. At most one
        sum with this one is ever opened, see `training.journal`.
        """
        if self._made is not None and self._made[0] == at.context.binding:
            return self._made[1]
        self._made = None
        self._site.begin(at.opening.number, self._terms.rounds)
        made = self._site.step(self._model, unflatten(at.opening.weights, self._like, self._names))
        self._made = (at.context.binding, made)
        return made

    def _has_made(self, binding: bytes) -> bool:
        return self._made is not None and self._made[0] == binding


def with_metrics(metrics: Metrics, message: bytes) -> bytes:
    """Put figures before a masked update: their count, then length, name and float64 of each."""
    block = bytes([len(metrics)])
    for name, value in metrics.items():
        block += bytes([len(name)]) + name.encode("ascii") + _VALUE.pack(value)
    return block + message


def split_metrics(name: str, received: bytes, message_bytes: int) -> tuple[dict[str, float], bytes]:
    """Undo `with_metrics` for an answer of site `name`; the message has `message_bytes` bytes.

    Raises:
        RefusedMessageError: the figures are malformed, or not finite.
    """
    start = len(received) - message_bytes
    if not 1 <= start <= METRICS_BYTES:
        raise RefusedMessageError(
            name, f"it has {len(received)} bytes, {message_bytes} and some figures are expected"
        )
    block, message = received[:start], received[start:]
    metrics: dict[str, float] = {}
    place = 1
    while place < len(block):
        end = place + 1 + block[place]
        label = block[place + 1 : end].decode("ascii", errors="replace")
        if len(block) < end + _VALUE.size or not _NAME.fullmatch(label) or label in metrics:
            break
        metrics[label] = float(_VALUE.unpack_from(block, end)[0])
        place = end + _VALUE.size
    if (
        place != len(block)
        or len(metrics) != block[0]
        or not np.isfinite([*metrics.values()]).all()
    ):
        raise RefusedMessageError(name, "the figures before its update are malformed")
    return metrics, message
