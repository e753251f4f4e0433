"""The dealer audit: one session that can never start is dealt again here, and compared.

A clinic opens a session, of its own choice, by revealing key_D of it. With key_O of the session
and key_B of its artefact that is all that the crypto provider dealt from, so its dealing code gives
every correction again; what it sent must be the same, byte for byte. The clinic's own offline
message is made again first: where it is another, the key is not the session's, and the corrections
say nothing.

The clinic learns one bit, whether everything is right. Where a difference lies would tell it, for
keys of its choice, something of B (docs/protocol.md, section 14); so the whole session is always
compared, and the place stands in the log here alone.

Source: docs/protocol.md, section 14. Leaks: key_D to the model owner, one bit to the clinic.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np

from model_owner.hosting import HostedModel
from radiopaque.engine import data_owner
from radiopaque.engine.artefact import MaskedWeights, weight_mask_maps
from radiopaque.engine.crypten.dealing import deal as deal_crypten
from radiopaque.engine.crypten.plan import CryptenPlan
from radiopaque.engine.crypto_provider import DealInputs, deal
from radiopaque.engine.material import RegionReader, regions
from radiopaque.engine.model_owner import Material
from radiopaque.engine.plans import AnyPlan
from radiopaque.errors import DealerError, MessageValueError
from radiopaque.gates.base import Raw
from radiopaque.graph.plan import Plan
from radiopaque.prg import SecretKey
from radiopaque.telemetry import get_logger
from radiopaque.wire.frames import Frame, Kind

_log = get_logger(__name__)


@dataclass(frozen=True)
class Opened:
    """A session with all that it was dealt from."""

    model: HostedModel
    session: bytes
    key_d: SecretKey = field(repr=False)
    key_o: SecretKey = field(repr=False)


def check(opened: Opened, material: Material) -> None:
    """Compare what was stored for a session with what follows from its keys.

    Takes about as long as dealing and preparing the session did, wherever a difference lies. Raises
    MessageValueError where the clinic's message does not belong to key_D, DealerError where a
    correction is wrong, StoreError where the material is damaged.
    """
    offline = _differing(_prepared_again(opened), material.offline)
    if offline:
        raise MessageValueError(
            "the key that was opened does not give the offline message of its session; the "
            "corrections were not judged. Is this data owner's store a mixture of two?"
        )
    wrong = _differing(_dealt_again(opened), material.corrections)
    if wrong:
        _log.warning(
            "the crypto provider dealt wrong corrections",
            session=opened.session,
            model=opened.model.name,
            gate=min(wrong),
            count=sum(wrong.values()),
        )
        raise DealerError(
            f"the crypto provider dealt wrong corrections for session {opened.session.hex()[:8]}: "
            "they do not follow from the keys that both parties sent it. Prepare nothing with it "
            "until its operator has explained this; results since the last audit may be wrong"
        )


def _differing(
    right: Iterable[tuple[int, Raw]], stored: Iterable[tuple[int, Raw]]
) -> dict[int, int]:
    """By gate, how many bytes of its region are others. Both have the plan's gates and sizes."""
    counts = {
        gate: int(np.count_nonzero(expected != found))
        for (gate, expected), (_, found) in zip(right, stored, strict=True)
    }
    return {gate: count for gate, count in counts.items() if count}


def _dealt_again(opened: Opened) -> Iterator[tuple[int, Raw]]:
    """(gate, region) of the corrections as an honest crypto provider makes them."""
    model, session = opened.model, opened.session
    plan, key = model.host.plan, model.key
    if isinstance(plan, CryptenPlan):
        frames = deal_crypten(plan, key.id, session, opened.key_d, opened.key_o)
    else:
        maps = weight_mask_maps(plan, key)
        frames = deal(DealInputs(plan, key.id, session, opened.key_d, opened.key_o, maps))
    return _regions(plan, session, Kind.CORRECTION, frames)


def _prepared_again(opened: Opened) -> Iterator[tuple[int, Raw]]:
    """(gate, region) of the offline message as an honest clinic makes it."""
    model = opened.model
    plan = model.host.plan
    if not isinstance(plan, Plan):
        return iter(())
    weights = MaskedWeights.parse(plan, model.masked_weights)
    key = data_owner.SessionKey(model.key.id, opened.session, opened.key_d)
    return data_owner.prepare(plan, key, weights).regions()


def _regions(
    plan: AnyPlan, session: bytes, kind: Kind, frames: Iterable[Frame]
) -> Iterator[tuple[int, Raw]]:
    reader = RegionReader(plan, session, kind)
    return regions(plan, kind, (reader.accept(frame) for frame in frames))
