"""The side of a site: five messages, one after the other."""

from __future__ import annotations

import hashlib
import secrets
import struct
from collections.abc import Mapping, Sequence

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from numpy.typing import NDArray

from training.errors import RefusedMessageError, TooFewSitesError, TrainingError
from training.secagg.context import KEY_BYTES, Context, Kind, seal, sender_of, unseal
from training.secagg.masks import add_mask, derive, encode, pair_key, self_key
from training.shamir import SECRET_BYTES, SHARE_BYTES, split

KEYS_BYTES = 3 * KEY_BYTES
SEALED_SHARES_BYTES = 2 * SHARE_BYTES + 16
INDEX = struct.Struct("<H")
_NONCE = bytes(12)


def seed_commitment(context: Context, seed: bytes, index: int) -> bytes:
    """Bind a site to its seed, so that a wrong share is noticed when the seed is opened."""
    return hashlib.sha256(b"seed" + context.digest + INDEX.pack(index) + seed).digest()


class Participant:
    """One site in one aggregation. Methods are called once each, in the order they stand here.

    `key` signs; the context pins its public half. Everything else is drawn anew for the round.
    A participant never opens both the pairwise and the own mask of the same site, whatever the
    aggregator asks: it answers `unmask` once, for the set of survivors that enough sites signed.
    """

    def __init__(self, context: Context, name: str, key: Ed25519PrivateKey) -> None:
        self._context = context
        self._name = name
        self._index = context.index(name)
        self._key = key
        self._made = 0
        if key.public_key().public_bytes_raw() != context.pins[name]:
            raise TrainingError(
                f"the signing key of site {name!r} is not the one pinned for it; "
                "give the others its public key, or fetch the right key file"
            )
        self._channel = X25519PrivateKey.from_private_bytes(secrets.token_bytes(KEY_BYTES))
        self._mask_secret = secrets.token_bytes(SECRET_BYTES)
        self._mask = X25519PrivateKey.from_private_bytes(self._mask_secret)
        self._seed = secrets.token_bytes(SECRET_BYTES)
        self._peers: dict[int, tuple[bytes, bytes]] = {}
        self._held: dict[int, tuple[bytes, bytes]] = {}
        self._survivors: frozenset[int] = frozenset()

    def advertise(self) -> bytes:
        """Return this site's signed public keys of the round."""
        self._step(Kind.KEYS)
        body = (
            self._channel.public_key().public_bytes_raw()
            + self._mask.public_key().public_bytes_raw()
            + seed_commitment(self._context, self._seed, self._index)
        )
        return self._seal(Kind.KEYS, body)

    def share(self, keys: Sequence[bytes]) -> bytes:
        """Check everybody's keys; return shares of the own secrets, sealed for each of them.

        Raises:
            RefusedMessageError: a message is not of the pinned site, or a key occurs twice.
            TooFewSitesError: fewer than the threshold.
        """
        self._step(Kind.SHARES)
        for message in keys:
            name = sender_of(self._context, message)
            body = unseal(self._context, Kind.KEYS, name, message, KEYS_BYTES)
            index = self._context.index(name)
            if index in self._peers:
                raise RefusedMessageError(name, "the aggregator passed its keys on twice")
            self._peers[index] = (body[:KEY_BYTES], body[KEY_BYTES : 2 * KEY_BYTES])
        own = self._channel.public_key().public_bytes_raw()
        if self._peers.get(self._index, (b"", b""))[0] != own:
            raise RefusedMessageError(self._name, "the aggregator did not pass on this site's keys")
        used = [key for pair in self._peers.values() for key in pair]
        if len(set(used)) != len(used):
            raise RefusedMessageError("unknown", "a public key occurs twice among the sites")
        self._require(len(self._peers), "sent their keys")
        points = [index + 1 for index in sorted(self._peers)]
        mask_shares = split(self._mask_secret, self._context.threshold, points)
        seed_shares = split(self._seed, self._context.threshold, points)
        body = b""
        for index in sorted(self._peers):
            pair = (mask_shares[index + 1], seed_shares[index + 1])
            if index == self._index:
                self._held[index] = pair
            else:
                cipher = ChaCha20Poly1305(self._channel_key(self._index, index))
                body += INDEX.pack(index) + cipher.encrypt(_NONCE, pair[0] + pair[1], None)
        return self._seal(Kind.SHARES, body)

    def mask(
        self, shares: Mapping[int, bytes], update: NDArray[np.floating], samples: int
    ) -> bytes:
        """Open the shares of the others, by index of sender; return the masked update.

        `update` is float [length]. Sites whose shares are missing have dropped out before.

        Raises:
            RefusedMessageError: shares are not from their sender, or of an unknown site.
            SettingsError: the update does not fit the agreement.
            TooFewSitesError: fewer than the threshold sent shares.
        """
        self._step(Kind.MASKED)
        for index, sealed in shares.items():
            if index not in self._peers or index == self._index:
                raise RefusedMessageError(f"number {index}", "it sent shares but no keys")
            name = self._context.names[index]
            if len(sealed) != SEALED_SHARES_BYTES:
                raise RefusedMessageError(name, f"its shares have {len(sealed)} bytes")
            cipher = ChaCha20Poly1305(self._channel_key(index, self._index))
            try:
                opened = cipher.decrypt(_NONCE, sealed, None)
            except InvalidTag as error:
                raise RefusedMessageError(name, "its shares were changed on the way") from error
            self._held[index] = (opened[:SHARE_BYTES], opened[SHARE_BYTES:])
        self._require(len(self._held), "sent their shares")
        ring = encode(self._context, update, samples)
        add_mask(ring, self_key(self._context, self._seed, self._index))
        for index in self._held:
            if index != self._index:
                key = self._pair_key(index)
                add_mask(ring, key, subtract=index < self._index)
        return self._seal(Kind.MASKED, ring.astype("<u8", copy=False).tobytes())

    def confirm(self, survivors: Sequence[int]) -> bytes:
        """Sign the set of sites whose masked updates the aggregator says it has.

        Raises:
            RefusedMessageError: the set has strangers, or not this site.
            TooFewSitesError: fewer than the threshold.
        """
        self._step(Kind.SURVIVORS)
        chosen = frozenset(survivors)
        if not chosen <= set(self._held) or self._index not in chosen:
            raise RefusedMessageError(
                "unknown",
                "the aggregator named survivors that sent no shares, or left this one out",
            )
        self._require(len(chosen), "sent their updates")
        self._survivors = chosen
        return self._seal(Kind.SURVIVORS, survivors_body(chosen))

    @property
    def survivors_bytes(self) -> int:
        """The size of the set of survivors that this site has signed."""
        return len(self._survivors) * INDEX.size

    def unmask(self, confirmations: Sequence[bytes]) -> bytes:
        """Return what opens the sum, once enough sites signed the same set of survivors.

        Raises:
            RefusedMessageError: a confirmation is forged, doubled or of another set.
            TooFewSitesError: fewer than the threshold.
        """
        self._step(Kind.UNMASK)
        expected = survivors_body(self._survivors)
        signers: set[str] = set()
        for message in confirmations:
            name = sender_of(self._context, message)
            body = unseal(self._context, Kind.SURVIVORS, name, message, len(expected))
            if body != expected or self._context.index(name) not in self._survivors:
                raise RefusedMessageError(name, "it was told of another set of survivors")
            signers.add(name)
        self._require(len(signers), "confirmed the same survivors")
        body = b""
        for index in sorted(self._held):
            mask_share, seed_share = self._held[index]
            body += INDEX.pack(index) + (seed_share if index in self._survivors else mask_share)
        self._held.clear()
        return self._seal(Kind.UNMASK, body)

    def _step(self, kind: Kind) -> None:
        if kind != self._made + 1:
            raise TrainingError(
                f"{kind.name} was asked of site {self._name!r} after message {self._made} of "
                f"{len(Kind)}; every message of a round is made once, in order"
            )
        # Moved on before the work: after a failure the round is over for this site.
        self._made = int(kind)

    def _require(self, found: int, what: str) -> None:
        if found < self._context.threshold:
            raise TooFewSitesError(
                f"only {found} sites {what}; {self._context.threshold} are needed to open a sum"
            )

    def _seal(self, kind: Kind, body: bytes) -> bytes:
        return seal(self._context, kind, self._name, self._key, body)

    def _pair_key(self, index: int) -> bytes:
        try:
            return pair_key(self._context, self._mask, self._peers[index][1], self._index, index)
        except ValueError as error:
            raise self._weak_key(index) from error

    def _channel_key(self, sender: int, receiver: int) -> bytes:
        other = receiver if sender == self._index else sender
        try:
            shared = self._channel.exchange(
                X25519PublicKey.from_public_bytes(self._peers[other][0])
            )
        except ValueError as error:
            raise self._weak_key(other) from error
        return derive(self._context, shared, b"shares", sender, receiver)

    def _weak_key(self, index: int) -> RefusedMessageError:
        return RefusedMessageError(self._context.names[index], "its public key is a weak point")


def survivors_body(survivors: frozenset[int]) -> bytes:
    """Encode a set of sites, two bytes each, in order."""
    return b"".join(INDEX.pack(index) for index in sorted(survivors))
