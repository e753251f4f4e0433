"""One aggregation as questions and answers, so that any transport that moves bytes can carry it.

The aggregator's side asks every site for the message that is due (`Conductor`), the site answers
(`answer`). Five questions, one for each `Kind`; what a question carries is fixed to the byte, and
checked before anything is made of it:

- KEYS: an opening of the caller's, which the sites read before they make their `Context`
- SHARES: the KEYS messages of all sites that sent one
- MASKED: sealed shares, each behind the index of its sender, in ascending order
- SURVIVORS: the indices of the survivors, in ascending order
- UNMASK: the SURVIVORS messages of all sites that sent one
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from training.errors import RefusedMessageError
from training.secagg.aggregator import Aggregate, Aggregator
from training.secagg.context import HEADER_BYTES, Context, Kind
from training.secagg.participant import INDEX, KEYS_BYTES, SEALED_SHARES_BYTES, Participant

Update = Callable[[], tuple[NDArray[np.floating], int]]
"""Makes the update, float [length], and the number of samples that it counts for."""

AGGREGATOR = "aggregator"
_SHARE_ENTRY = INDEX.size + SEALED_SHARES_BYTES


class Conductor:
    """The aggregator's side: `questions` for the sites, `receive` their answers, `close`; repeat.

    `result` is None until the last of the five kinds is closed.
    """

    def __init__(self, context: Context, opening: bytes) -> None:
        self._aggregator = Aggregator(context)
        self.kind = Kind.KEYS
        self.questions: Mapping[str, bytes] = dict.fromkeys(context.names, opening)
        self.result: Aggregate | None = None

    @property
    def answer_bytes(self) -> int:
        """The size of the answers that are due, each."""
        return self._aggregator.message_bytes

    def receive(self, name: str, answer: bytes) -> None:
        """Take the answer of site `name`, as the transport knows it.

        Raises:
            RefusedMessageError: it is not what is due from that site; nothing was changed.
        """
        self._aggregator.receive(name, answer)

    def close(self) -> None:
        """Go on without the sites that have not answered.

        Raises:
            TooFewSitesError: fewer than the threshold answered.
            RefusedMessageError: shares do not open a secret; named is the site whose secret it is.
            SettingsError: the sum is impossible.
        """
        aggregator, kind = self._aggregator, self.kind
        if kind == Kind.UNMASK:
            self.result = aggregator.close_unmask()
            return
        if kind == Kind.KEYS:
            self._ask_all(b"".join(aggregator.close_keys()))
        elif kind == Kind.SHARES:
            shares = aggregator.close_shares()
            self.questions = {name: _joined(shares[name]) for name in self._names()}
        elif kind == Kind.MASKED:
            self._ask_all(b"".join(INDEX.pack(index) for index in aggregator.close_masked()))
        else:
            self._ask_all(b"".join(aggregator.close_survivors()))
        self.kind = Kind(kind + 1)

    def _ask_all(self, body: bytes) -> None:
        self.questions = dict.fromkeys(self._names(), body)

    def _names(self) -> tuple[str, ...]:
        return self._aggregator.expected


def answer(
    participant: Participant, context: Context, kind: Kind, body: bytes, update: Update
) -> bytes:
    """Return a site's message for a question; `update` is called for MASKED alone.

    Raises:
        RefusedMessageError: the question is malformed, or what it carries is refused.
        TooFewSitesError: fewer than the threshold are left.
        TrainingError: out of turn; every message of a round is made once.
    """
    if kind == Kind.KEYS:
        return participant.advertise()
    if kind == Kind.SHARES:
        return participant.share(_cut(context, body, HEADER_BYTES + KEYS_BYTES))
    if kind == Kind.MASKED:
        shares = _shares(context, body)
        delta, samples = update()
        return participant.mask(shares, delta, samples)
    if kind == Kind.SURVIVORS:
        return participant.confirm(_indices(context, _cut(context, body, INDEX.size)))
    survivors = participant.survivors_bytes
    return participant.unmask(_cut(context, body, HEADER_BYTES + survivors))


def kind_of(question: bytes) -> Kind:
    """Return the kind that the first byte of a framed question names.

    Raises:
        RefusedMessageError: it names none.
    """
    try:
        return Kind(question[0])
    except (IndexError, ValueError) as error:
        raise RefusedMessageError(AGGREGATOR, "its question is of no known kind") from error


def _joined(shares: Mapping[int, bytes]) -> bytes:
    return b"".join(INDEX.pack(index) + shares[index] for index in sorted(shares))


def _cut(context: Context, body: bytes, size: int) -> list[bytes]:
    """Cut a body into parts of `size` bytes, at most one for each site."""
    count, rest = divmod(len(body), size)
    if rest or not 1 <= count <= len(context.names):
        raise RefusedMessageError(
            AGGREGATOR,
            f"its question has {len(body)} bytes, which are not 1 to {len(context.names)} parts "
            f"of {size}",
        )
    return [body[start : start + size] for start in range(0, len(body), size)]


def _indices(context: Context, parts: Sequence[bytes]) -> list[int]:
    """Read the index at the start of each part: known sites, in ascending order."""
    indices = [int(INDEX.unpack_from(part)[0]) for part in parts]
    if indices != sorted(set(indices)) or indices[-1] >= len(context.names):
        raise RefusedMessageError(AGGREGATOR, "it does not name sites in ascending order")
    return indices


def _shares(context: Context, body: bytes) -> dict[int, bytes]:
    parts = _cut(context, body, _SHARE_ENTRY)
    indices = _indices(context, parts)
    return {index: part[INDEX.size :] for index, part in zip(indices, parts, strict=True)}
