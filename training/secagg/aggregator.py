"""The side of the aggregator: collects the five messages of every site and opens the sum."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from numpy.typing import NDArray

from training.errors import RefusedMessageError, TooFewSitesError, TrainingError
from training.secagg.context import HEADER_BYTES, KEY_BYTES, Context, Kind, unseal
from training.secagg.masks import ELEMENT_BYTES, Ring, add_mask, decode, pair_key, self_key
from training.secagg.participant import (
    INDEX,
    KEYS_BYTES,
    SEALED_SHARES_BYTES,
    seed_commitment,
    survivors_body,
)
from training.shamir import SHARE_BYTES, ShareError, combine

_SEALED_ENTRY = INDEX.size + SEALED_SHARES_BYTES
_OPENED_ENTRY = INDEX.size + SHARE_BYTES


@dataclass(frozen=True, slots=True)
class Aggregate:
    """The weighted mean, float64 [length], over `samples` samples of `sites` together."""

    mean: NDArray[np.float64]
    samples: int
    sites: tuple[str, ...]


class Aggregator:
    """One aggregation: `receive` messages of one kind, then close that phase, five times.

    A refused message changes nothing: the site may still send the right one before the phase is
    closed, and has dropped out if it does not. Memory: one vector, however many sites there are.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self._phase = 1
        self._expected = frozenset(range(len(context.names)))
        self._seen: set[int] = set()
        self._total: Ring = np.zeros(context.length + 1, dtype=np.uint64)
        self._keys: dict[int, tuple[bytes, bytes]] = {}
        self._key_messages: list[bytes] = []
        self._sealed: dict[int, dict[int, bytes]] = {}
        self._sharers: frozenset[int] = frozenset()
        self._survivors: frozenset[int] = frozenset()
        self._confirmations: list[bytes] = []
        self._opened: dict[int, dict[int, bytes]] = {}

    def receive(self, name: str, message: bytes) -> None:
        """Take the message of the current phase from site `name`, as the transport knows it.

        Raises:
            RefusedMessageError: it is not what is due from that site; nothing was changed.
        """
        if self._phase > Kind.UNMASK:
            raise RefusedMessageError(name, "the round is over")
        kind = Kind(self._phase)
        if name not in self._context.pins:
            raise RefusedMessageError(name, "no key is pinned for it; it does not take part")
        index = self._context.index(name)
        if index not in self._expected:
            raise RefusedMessageError(name, f"it dropped out before {kind.name}")
        if index in self._seen:
            raise RefusedMessageError(name, f"it has already sent {kind.name} in this round")
        body = unseal(self._context, kind, name, message, self._size(kind))
        if kind == Kind.KEYS:
            self._keys[index] = (body[KEY_BYTES : 2 * KEY_BYTES], body[2 * KEY_BYTES :])
            self._key_messages.append(message)
        elif kind == Kind.SHARES:
            others = sorted(self._expected - {index})
            self._sealed[index] = _entries(name, body, others, SEALED_SHARES_BYTES)
        elif kind == Kind.MASKED:
            self._total += np.frombuffer(body, dtype="<u8")
        elif kind == Kind.SURVIVORS:
            if body != survivors_body(self._survivors):
                raise RefusedMessageError(name, "it signed another set of survivors")
            self._confirmations.append(message)
        else:
            self._opened[index] = _entries(name, body, sorted(self._sharers), SHARE_BYTES)
        self._seen.add(index)

    @property
    def expected(self) -> tuple[str, ...]:
        """The sites whose message is due in the current phase."""
        return tuple(self._context.names[index] for index in sorted(self._expected))

    @property
    def message_bytes(self) -> int:
        """The size of the message that is due from each of them."""
        return HEADER_BYTES + self._size(Kind(self._phase))

    def close_keys(self) -> list[bytes]:
        """End the first phase; return what every site that sent its keys gets for `share`."""
        self._close(Kind.KEYS)
        return list(self._key_messages)

    def close_shares(self) -> dict[str, Mapping[int, bytes]]:
        """End the second phase; return by site what it gets for `mask`."""
        self._sharers = self._close(Kind.SHARES)
        return {
            self._context.names[receiver]: {
                sender: self._sealed[sender][receiver]
                for sender in sorted(self._sharers)
                if sender != receiver
            }
            for receiver in sorted(self._sharers)
        }

    def close_masked(self) -> list[int]:
        """End the third phase; return the survivors, which every one of them gets to `confirm`."""
        self._survivors = self._close(Kind.MASKED)
        return sorted(self._survivors)

    def close_survivors(self) -> list[bytes]:
        """End the fourth phase; return what every site that confirmed gets for `unmask`."""
        self._close(Kind.SURVIVORS)
        return list(self._confirmations)

    def close_unmask(self) -> Aggregate:
        """End the last phase: take the masks off the sum.

        Raises:
            TooFewSitesError: fewer than the threshold answered.
            RefusedMessageError: shares do not open a secret; named is the site whose secret it is.
            SettingsError: the sum is impossible.
        """
        self._close(Kind.UNMASK)
        for index in sorted(self._survivors):
            seed = self._open(index)
            if seed_commitment(self._context, seed, index) != self._keys[index][1]:
                raise self._wrong_shares(index)
            add_mask(self._total, self_key(self._context, seed, index), subtract=True)
        for index in sorted(self._sharers - self._survivors):
            secret = X25519PrivateKey.from_private_bytes(self._open(index))
            if secret.public_key().public_bytes_raw() != self._keys[index][0]:
                raise self._wrong_shares(index)
            # What each survivor did with the mask it shares with the lost site, undone.
            for other in sorted(self._survivors):
                key = pair_key(self._context, secret, self._keys[other][0], index, other)
                add_mask(self._total, key, subtract=other < index)
        mean, samples = decode(self._context, self._total)
        return Aggregate(
            mean, samples, tuple(self._context.names[i] for i in sorted(self._survivors))
        )

    def _size(self, kind: Kind) -> int:
        return {
            Kind.KEYS: KEYS_BYTES,
            Kind.SHARES: (len(self._expected) - 1) * _SEALED_ENTRY,
            Kind.MASKED: len(self._total) * ELEMENT_BYTES,
            Kind.SURVIVORS: len(self._survivors) * INDEX.size,
            Kind.UNMASK: len(self._sharers) * _OPENED_ENTRY,
        }[kind]

    def _close(self, kind: Kind) -> frozenset[int]:
        if self._phase != kind:
            raise TrainingError(
                f"phase {kind.name} cannot be closed in phase {self._phase}; close them in order"
            )
        missing = sorted(set(range(len(self._context.names))) - self._seen)
        if len(self._seen) < self._context.threshold:
            names = ", ".join(self._context.names[index] for index in missing)
            self._phase = Kind.UNMASK + 1
            raise TooFewSitesError(
                f"only {len(self._seen)} sites sent {kind.name}, {self._context.threshold} are "
                f"needed; missing: {names}. The round opens nothing; start it again with them"
            )
        self._phase = kind + 1
        self._expected = frozenset(self._seen)
        self._seen = set()
        return self._expected

    def _open(self, index: int) -> bytes:
        shares = {holder + 1: opened[index] for holder, opened in self._opened.items()}
        try:
            return combine(shares, self._context.threshold)
        except ShareError as error:
            raise self._wrong_shares(index) from error

    def _wrong_shares(self, index: int) -> RefusedMessageError:
        name = self._context.names[index]
        return RefusedMessageError(
            name,
            "the shares of its secret, or those that others returned, do not open it; "
            "the round opens nothing",
        )


def _entries(name: str, body: bytes, indices: list[int], size: int) -> dict[int, bytes]:
    """Cut a body into entries of `size` bytes, each behind its index, which must be `indices`."""
    entries: dict[int, bytes] = {}
    step = INDEX.size + size
    for position, index in enumerate(indices):
        start = position * step
        if INDEX.unpack_from(body, start)[0] != index:
            raise RefusedMessageError(name, f"entry {position} is not for site number {index}")
        entries[index] = body[start + INDEX.size : start + step]
    return entries
