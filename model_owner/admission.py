"""The room that prepared sessions take at a model owner: who may prepare another, what goes."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from model_owner.hosting import Hosted, HostedModel
from model_owner.material import MaterialStore
from radiopaque.errors import ResourceError
from radiopaque.ledger import Ledger, State
from radiopaque.prg import SecretKey
from radiopaque.wire.v1 import services_pb2 as pb

_WITH_MATERIAL: Final = (State.PREPARING, State.READY, State.STARTED, State.OPENED)


@dataclass(frozen=True)
class Limits:
    """Bounds of one model owner; beyond them calls get ResourceError."""

    sessions_per_clinic: int
    concurrent_inferences: int
    material_bytes: int
    session_seconds: float
    window_bytes: int
    sessions: int


class Admission:
    """Admits sessions to the ledger and the disk of one model owner, up to its limits.

    Sessions that nobody can use go when it is made, those that have waited too long also before
    another is admitted.
    """

    def __init__(
        self, ledger: Ledger, material: MaterialStore, hosted: Hosted, limits: Limits
    ) -> None:
        self._ledger = ledger
        self._material = material
        self.limits = limits
        self._admitting = threading.Lock()
        self._arriving: dict[bytes, int] = {}
        """Bytes on disk that sessions which are being prepared take, or will."""
        artefacts = {model.key.id.artefact for model in hosted.all()}
        for row in ledger.rows(State.READY):
            if row.artefact not in artefacts:
                ledger.burn(row.session)
        self._discard_old()

    def _discard_old(self) -> None:
        """Burn what has waited too long, and delete the files of all sessions that are over."""
        self._ledger.expire(State.READY, self.limits.session_seconds)
        stored = self._material.sessions()
        # Asked for afterwards: what is stored from now on is left alone. Sessions that are being
        # prepared at the start are another replica's: this one's are burnt by now.
        for session in stored - self._ledger.sessions(*_WITH_MATERIAL):
            self._material.delete(session)

    @contextmanager
    def preparing(
        self, header: pb.PrepareHeader, model: HostedModel, clinic: str, keys: Iterable[SecretKey]
    ) -> Iterator[None]:
        """A session while its material arrives: PREPARING, then READY, or BURNT if that fails.

        ``keys`` are what its entry keeps. Raises ResourceError beyond a limit.
        """
        session = header.session
        needed = self._material.needed(model.host.plan)
        with self._admitting:
            self._discard_old()
            self._check(clinic, needed)
            self._ledger.create(
                session,
                artefact=model.key.id.artefact,
                peer=clinic,
                binding=header.binding,
                secret=b"".join(key.reveal() for key in keys),
            )
            self._arriving[session] = needed
        try:
            yield
            self._ledger.advance(session, State.PREPARING, State.READY)
        except BaseException:
            self._ledger.burn(session)
            self._material.delete(session)
            raise
        finally:
            with self._admitting:
                del self._arriving[session]

    def _check(self, clinic: str, needed: int) -> None:
        """``needed``: bytes on disk that another session takes."""
        waiting = self._ledger.count(State.READY, clinic) + self._ledger.count(
            State.PREPARING, clinic
        )
        if waiting >= self.limits.sessions_per_clinic:
            raise ResourceError(
                f"{waiting} prepared sessions of this clinic wait here, its limit; use some first"
            )
        states = (State.PREPARING, State.READY)
        if sum(map(self._ledger.count, states)) >= self.limits.sessions:
            raise ResourceError(
                f"{self.limits.sessions} prepared sessions wait here, the limit for all clinics; "
                "try again later"
            )
        taken = self._material.size(but=self._arriving) + sum(self._arriving.values())
        if taken + needed > self.limits.material_bytes:
            raise ResourceError(
                "the disk space for prepared sessions is used up here; try again later"
            )
