"""How a secure round opens: what every site is told, and what binds them all to the same."""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass

import numpy as np

from training.errors import RefusedMessageError
from training.secagg.context import SESSION_BYTES
from training.secagg.dialogue import AGGREGATOR
from training.site import Vector

_HEAD = struct.Struct(f"<{SESSION_BYTES}sIII")
_LABEL = b"radiopaque round opening 1"
MAX_AGREEMENT = 1 << 16


@dataclass(frozen=True, eq=False)
class Opening:
    """The start of one attempt at a round.

    `session` is 16 random bytes of the training run and `attempt` counts its attempts at rounds;
    together they never occur twice. `number` is the round, from 0; an attempt that failed is
    repeated under the same number. `agreement` is text (JSON, at most 64 KiB) of what all members
    have agreed on; `weights`, float32 [length], are what the round starts from.
    """

    session: bytes
    attempt: int
    number: int
    agreement: bytes
    weights: Vector

    def encode(self) -> bytes:
        """Return session, attempt, number, length of the agreement; the agreement; the weights."""
        head = _HEAD.pack(self.session, self.attempt, self.number, len(self.agreement))
        return head + self.agreement + self.weights.astype("<f4", copy=False).tobytes()

    @classmethod
    def decode(cls, body: bytes, length: int) -> Opening:
        """Read an opening whose weights must have `length` elements.

        Raises:
            RefusedMessageError: another size, or weights that are not finite.
        """
        if len(body) < _HEAD.size:
            raise RefusedMessageError(AGGREGATOR, f"its opening has only {len(body)} bytes")
        session, attempt, number, size = _HEAD.unpack_from(body)
        expected = _HEAD.size + size + 4 * length
        if size > MAX_AGREEMENT or len(body) != expected:
            raise RefusedMessageError(
                AGGREGATOR,
                f"its opening has {len(body)} bytes, {expected} are expected: its network is "
                "another one, or the message is damaged",
            )
        agreement = body[_HEAD.size : _HEAD.size + size]
        weights = np.frombuffer(body, dtype="<f4", offset=_HEAD.size + size).astype(np.float32)
        if not np.isfinite(weights).all():
            raise RefusedMessageError(AGGREGATOR, "the weights of its opening are not finite")
        return cls(session, attempt, number, agreement, weights)

    @staticmethod
    def agreement_in(body: bytes) -> bytes:
        """The agreement of an opening that may not be well-formed otherwise; empty if not there."""
        if len(body) < _HEAD.size:
            return b""
        return body[_HEAD.size : _HEAD.size + min(_HEAD.unpack_from(body)[3], MAX_AGREEMENT)]

    def binding(self) -> bytes:
        """SHA-256 over agreement, number and weights, for `Context.binding`.

        An aggregator that gives sites different weights could read single updates from the sum
        (Pasquini, Francati, Ateniese, "Eluding Secure Aggregation in Federated Learning via Model
        Inconsistency", CCS 2022): with this binding, such sites do not accept each other's keys.
        """
        hasher = hashlib.sha256(_LABEL + struct.pack("<II", self.number, len(self.agreement)))
        hasher.update(self.agreement)
        hasher.update(self.weights.astype("<f4", copy=False).tobytes())
        return hasher.digest()


def opening_bytes(length: int) -> int:
    """The most that an opening with `length` weights takes."""
    return _HEAD.size + MAX_AGREEMENT + 4 * length
