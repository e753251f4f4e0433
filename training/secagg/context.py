"""What all parties of one aggregation must agree on, and the signed messages that prove it."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from functools import cached_property

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from training.errors import RefusedMessageError, SettingsError

SESSION_BYTES = 16
KEY_BYTES = 32
BINDING_BYTES = 32
MAX_SITES = 255
MAX_LENGTH = 2**30
SIGNATURE_BYTES = 64
RING_BITS = 64

_LABEL = b"radiopaque secure aggregation 1"
_HEADER = struct.Struct("<BH")
HEADER_BYTES = _HEADER.size + SIGNATURE_BYTES


class Kind(IntEnum):
    """The five messages that a site sends, in their order."""

    KEYS = 1
    SHARES = 2
    MASKED = 3
    SURVIVORS = 4
    UNMASK = 5


def default_threshold(sites: int) -> int:
    """Two thirds and one: safe even if the aggregator and fewer than a third of sites collude."""
    return 2 * sites // 3 + 1


@dataclass(frozen=True)
class Context:
    """One aggregation. All parties hold the same, or no message of theirs is accepted.

    `session` is 16 random bytes of the training run, `number` its round; `pins` maps each site to
    its Ed25519 public key (32 bytes); `threshold` sites must stay to the end; updates have
    `length` elements, rounded to multiples of 2^-`fraction_bits`, and count at most
    `largest_samples` times. `binding` is a digest of whatever else they have to agree on, such as
    the weights that the round starts from: sites that were told different ones cannot be summed.

    Raises:
        SettingsError: the numbers do not fit each other, or the sum does not fit 64 bits.
    """

    session: bytes
    number: int
    pins: Mapping[str, bytes] = field(repr=False)
    threshold: int
    length: int
    fraction_bits: int = 24
    largest_samples: int = 2**20
    binding: bytes = bytes(BINDING_BYTES)

    def __post_init__(self) -> None:
        sites = len(self.pins)
        if len(self.session) != SESSION_BYTES or not 0 <= self.number < 2**32:
            raise SettingsError(
                f"an aggregation needs {SESSION_BYTES} session bytes and a round below 2^32"
            )
        if len(self.binding) != BINDING_BYTES:
            raise SettingsError(f"the binding of an aggregation must have {BINDING_BYTES} bytes")
        if not 3 <= sites <= MAX_SITES:
            raise SettingsError(
                f"{sites} sites cannot aggregate securely: with fewer than three each one computes "
                f"the other's update from the sum; {MAX_SITES} are the most"
            )
        if any(len(key) != KEY_BYTES for key in self.pins.values()):
            raise SettingsError(f"every pinned key must have {KEY_BYTES} bytes")
        if len(set(self.pins.values())) != sites:
            raise SettingsError("two sites have the same pinned key; every site needs its own")
        if not sites // 2 + 1 <= self.threshold <= sites:
            raise SettingsError(
                f"the threshold is {self.threshold} of {sites} sites; it must lie between "
                f"{sites // 2 + 1} (more than half) and {sites}"
            )
        if not 1 <= self.length <= MAX_LENGTH:
            raise SettingsError(f"an update of {self.length} elements cannot be aggregated")
        if not 1 <= self.fraction_bits <= 40 or self.largest_samples < 1:
            raise SettingsError("fraction bits must lie in 1..40, the largest sample count above 0")
        if self.largest_element < 1 << self.fraction_bits:
            raise SettingsError(
                f"{sites} sites of up to {self.largest_samples} samples at {self.fraction_bits} "
                f"fraction bits do not fit the ring of {RING_BITS} bits; lower one of them"
            )

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The sites in the order of their index."""
        return tuple(sorted(self.pins))

    @property
    def largest_element(self) -> int:
        """Largest magnitude of a rounded element, so that no weighted sum leaves the ring."""
        return ((1 << (RING_BITS - 1)) - 1) // (len(self.pins) * self.largest_samples)

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 of everything above; part of every signature and every derived key."""
        hasher = hashlib.sha256(_LABEL + self.session + self.binding)
        numbers = (self.number, self.threshold, self.length, self.fraction_bits)
        hasher.update(struct.pack("<5Q", *numbers, self.largest_samples))
        for name in self.names:
            encoded = name.encode("utf-8")
            hasher.update(struct.pack("<I", len(encoded)) + encoded + self.pins[name])
        return hasher.digest()

    def index(self, name: str) -> int:
        """Return the index of a site.

        Raises:
            SettingsError: it is not one of the sites.
        """
        if name not in self.pins:
            raise SettingsError(f"{name!r} is not one of the sites {', '.join(self.names)}")
        return self.names.index(name)


def _signed_part(context: Context, kind: int, index: int, body: bytes) -> bytes:
    # The body can have a gigabyte: its hash is signed, not itself.
    head = _HEADER.pack(kind, index)
    return _LABEL + context.digest + head + hashlib.sha256(body).digest()


def seal(context: Context, kind: Kind, name: str, key: Ed25519PrivateKey, body: bytes) -> bytes:
    """Return header, signature and body as one message."""
    index = context.index(name)
    signature = key.sign(_signed_part(context, kind, index, body))
    return _HEADER.pack(kind, index) + signature + body


def unseal(context: Context, kind: Kind, name: str, message: bytes, size: int) -> bytes:
    """Return the body of a message of site `name`, which must have `size` bytes.

    Raises:
        RefusedMessageError: another size, kind, sender, or a signature that is not the pinned
            site's for this very round: forged, or replayed from another one.
    """
    if len(message) != HEADER_BYTES + size:
        raise RefusedMessageError(
            name, f"it has {len(message)} bytes, {HEADER_BYTES + size} are expected"
        )
    found_kind, index = _HEADER.unpack_from(message)
    if found_kind != kind:
        raise RefusedMessageError(name, f"it is of kind {found_kind}, {kind.name} is due")
    if index != context.index(name):
        raise RefusedMessageError(name, f"it claims to come from site number {index}")
    signature = message[_HEADER.size : HEADER_BYTES]
    body = message[HEADER_BYTES:]
    key = Ed25519PublicKey.from_public_bytes(context.pins[name])
    try:
        key.verify(signature, _signed_part(context, kind, index, body))
    except InvalidSignature as error:
        raise RefusedMessageError(
            name,
            f"its signature does not verify with the pinned key for round {context.number}; it is "
            "forged, or replayed from another round",
        ) from error
    return body


def sender_of(context: Context, message: bytes) -> str:
    """Return the site whose index a message carries; `unseal` checks whether that is true.

    Raises:
        RefusedMessageError: too short, or no such site.
    """
    if len(message) >= HEADER_BYTES:
        index = int(_HEADER.unpack_from(message)[1])
        if index < len(context.names):
            return context.names[index]
    raise RefusedMessageError("unknown", f"a message of {len(message)} bytes names no site")
