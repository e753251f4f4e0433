"""Updates as ring elements, and the masks that hide them. The ring is the integers modulo 2^64."""

from __future__ import annotations

import struct

import numpy as np
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray

from training.errors import SettingsError
from training.secagg.context import Context

Ring = NDArray[np.uint64]

ELEMENT_BYTES = 8
# Every key masks one vector, so the nonce can be constant.
_NONCE = bytes(16)
_CHUNK = 1 << 17


def derive(context: Context, secret: bytes, purpose: bytes, *indices: int) -> bytes:
    """Return a 32-byte key for one purpose, bound to the round and to the sites `indices`."""
    info = purpose + struct.pack(f"<{len(indices)}H", *indices)
    return HKDF(hashes.SHA256(), 32, salt=context.digest, info=info).derive(secret)


def pair_key(
    context: Context, own: X25519PrivateKey, peer: bytes, first: int, second: int
) -> bytes:
    """Return the key of the mask that two sites share. The order of the indices does not matter.

    Raises:
        ValueError: the peer's public key is a point of small order.
    """
    shared = own.exchange(X25519PublicKey.from_public_bytes(peer))
    return derive(context, shared, b"pair mask", min(first, second), max(first, second))


def self_key(context: Context, seed: bytes, index: int) -> bytes:
    """Return the key of the mask that a site draws for itself."""
    return derive(context, seed, b"self mask", index)


def encode(context: Context, update: NDArray[np.floating], samples: int) -> Ring:
    """Return uint64 [length + 1]: rounded elements times `samples`, then `samples` itself.

    Raises:
        SettingsError: wrong length, not finite, or beyond what the ring has room for.
    """
    if update.shape != (context.length,):
        raise SettingsError(
            f"the update has shape {update.shape}, this aggregation expects ({context.length},)"
        )
    if not 1 <= samples <= context.largest_samples:
        raise SettingsError(
            f"the update counts {samples} samples; 1 to {context.largest_samples} are agreed on"
        )
    scaled = np.rint(update.astype(np.float64) * float(1 << context.fraction_bits))
    # Also false where an element is not a number.
    if not (np.abs(scaled) <= float(context.largest_element)).all():
        raise SettingsError(
            "an element of the update is not finite or larger than "
            f"{context.largest_element / (1 << context.fraction_bits):.3g}; lower the learning rate"
        )
    ring = np.empty(context.length + 1, dtype=np.uint64)
    ring[:-1] = (scaled.astype(np.int64) * samples).view(np.uint64)
    ring[-1] = samples
    return ring


def decode(context: Context, total: Ring) -> tuple[NDArray[np.float64], int]:
    """Return the weighted mean, float64 [length], and the sum of the sample counts.

    Raises:
        SettingsError: the sum of the counts is impossible: masks are left, or a site cheated.
    """
    samples = int(total[-1])
    if not 1 <= samples <= len(context.pins) * context.largest_samples:
        raise SettingsError(
            "the sum of the sample counts is impossible, so a site did not keep to the protocol; "
            "nothing of this round is used"
        )
    sums = total[:-1].view(np.int64).astype(np.float64)
    return sums / (float(samples) * float(1 << context.fraction_bits)), samples


def add_mask(total: Ring, key: bytes, *, subtract: bool = False) -> None:
    """Add the ChaCha20 key stream of `key` to `total`, uint64 [n], in place, or take it away."""
    stream = Cipher(ChaCha20(key, _NONCE), mode=None).encryptor()
    for start in range(0, len(total), _CHUNK):
        part = total[start : start + _CHUNK]
        mask = np.frombuffer(stream.update(bytes(part.nbytes)), dtype="<u8")
        if subtract:
            part -= mask
        else:
            part += mask
