"""Making a session's material at the crypto provider and at the vendor, before its image exists."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from data_owner.artefacts import LocalModel
from data_owner.engines import Offline
from radiopaque.engine.data_owner import SessionKey
from radiopaque.errors import RadiopaqueError
from radiopaque.ledger import MARK_BYTES, Ledger, Mark
from radiopaque.transport.channel import Counters
from radiopaque.transport.grpc_client import Peer
from radiopaque.transport.link import Link
from radiopaque.wire import messages
from radiopaque.wire.frames import Kind
from radiopaque.wire.v1 import services_pb2 as pb

_GIVE_BACK_SECONDS: Final = 5.0


@dataclass(frozen=True)
class Prepared:
    """What preparing one session took, in bytes of messages for each direction."""

    session: bytes
    seconds: float
    bytes: dict[str, int]
    opened: bool = False
    """Whether it was opened to the vendor at once; it was dealt right, and is gone."""


class Preparer:
    """Prepares sessions that the ``ledger`` has as FRESH."""

    def __init__(
        self, ledger: Ledger, model_owner: Peer, crypto_provider: Peer, deadline_seconds: float
    ) -> None:
        self._ledger = ledger
        self._model_owner = model_owner
        self._crypto_provider = crypto_provider
        self._deadline = deadline_seconds

    def prepare(self, model: LocalModel, key: SessionKey) -> tuple[Prepared, bytes]:
        """Have both make their part, and return what to keep beside key_D.

        Raises TransportError, after which the vendor may hold all of it, and what they refuse with.
        """
        started = time.perf_counter()
        dealer, vendor = Counters(), Counters()
        self.reserve(key, dealer)
        offline = model.engine.prepare(key)
        reply = self._model_owner.upload(
            "Prepare",
            _requests(model, key.session, offline),
            pb.PrepareReply,
            vendor,
            self._deadline,
        )
        prepared = Prepared(
            key.session,
            time.perf_counter() - started,
            {
                "crypto_provider_to_model_owner": reply.crypto_provider_to_model_owner_bytes,
                "model_owner_to_crypto_provider": reply.model_owner_to_crypto_provider_bytes,
                "crypto_provider_to_data_owner": dealer.received_bytes,
                "data_owner_to_crypto_provider": dealer.sent_bytes,
                "data_owner_to_model_owner": vendor.sent_bytes,
                "model_owner_to_data_owner": vendor.received_bytes,
            },
        )
        return prepared, offline.kept

    def give_back(self, session: bytes) -> None:
        """Have the vendor delete what it may hold of a session that is burnt here, if it is there.

        It ends what begins as an audit when that breaks off. The key is never sent, and the
        vendor's mark is looked at with the next session.
        """
        with suppress(RadiopaqueError):
            channel = self._model_owner.open("Audit", min(self._deadline, _GIVE_BACK_SECONDS))
            try:
                link = Link(channel, session)
                link.send(0, Kind.START, 0, Mark(self._ledger.epoch).encode())
                link.receive(0, Kind.READY, 0, MARK_BYTES)
            finally:
                channel.close()

    def reserve(self, key: SessionKey, counters: Counters) -> None:
        """Give the crypto provider key_D; the vendor has it deal later."""
        request = pb.ReserveRequest(
            session=key.session,
            plan_digest=key.artefact.plan_digest,
            artefact=key.artefact.artefact,
            key_d=key.key_d.reveal(),
            epoch=self._ledger.epoch,
        )
        reply = self._crypto_provider.call(
            "Reserve", request, pb.ReserveReply, counters, self._deadline
        )
        self._ledger.check_known(Mark.decode(reply.mark))


def _requests(model: LocalModel, session: bytes, offline: Offline) -> Iterator[pb.PrepareRequest]:
    yield pb.PrepareRequest(
        header=pb.PrepareHeader(
            session=session,
            plan_digest=model.offer.id.plan_digest,
            artefact=model.offer.id.artefact,
            binding=model.binding,
        )
    )
    for frame in offline.frames:
        yield pb.PrepareRequest(frame=messages.from_frame(frame))
