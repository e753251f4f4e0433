"""A clinic driven by hand: each step of its protocol by itself, so that it can be done wrongly."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from radiopaque import versions
from radiopaque.certificates import Identity, Role
from radiopaque.engine import artefact as artefacts
from radiopaque.engine import data_owner as engine
from radiopaque.errors import RadiopaqueError
from radiopaque.ledger import MARK_BYTES, Mark
from radiopaque.prg import SecretKey, new_id
from radiopaque.transport.channel import Channel, Counters
from radiopaque.transport.grpc_client import GrpcChannel, Peer
from radiopaque.wire import messages
from radiopaque.wire.frames import Frame, Kind
from radiopaque.wire.v1 import services_pb2 as pb
from tests.e2e.parties import Clinic, Deployment
from tests.faults.inside import Inside

SECONDS = 20.0
EPOCH = bytes(range(16))
"""Of a ledger that these clinics do not have."""
Change = Callable[[Frame], Iterable[Frame]]


class Hand:
    """One session of a clinic with the servers of a deployment. A context manager."""

    def __init__(
        self,
        deployment: Deployment | Inside,
        clinic: Clinic | Identity,
        folder: str = "lungs-1.10",
        session: bytes | None = None,
    ) -> None:
        self.identity = clinic.identity() if isinstance(clinic, Clinic) else clinic
        owner, provider = deployment.owner.address, deployment.provider.address
        self.owner = Peer(Role.MODEL_OWNER, owner, self.identity)
        self.provider = Peer(Role.CRYPTO_PROVIDER, provider, self.identity)
        self.network = deployment.networks[folder]
        self.compiled = deployment.compiled[folder]
        self.session = session or new_id()
        self.key_d = SecretKey.generate()
        self.mark = Mark(EPOCH)

    def __enter__(self) -> Hand:
        return self

    def __exit__(self, *_: object) -> None:
        self.owner.close()
        self.provider.close()

    def renew(self) -> None:
        """Another session, with nothing done yet."""
        self.session = new_id()
        self.key_d = SecretKey.generate()
        for cached in ("message", "frames"):
            self.__dict__.pop(cached, None)

    @property
    def artefact(self) -> artefacts.ArtefactId:
        return self.compiled.key.id

    @cached_property
    def masked(self) -> artefacts.MaskedWeights:
        plan, weights = self.network.plan, self.network.weights
        data = artefacts.mask_weights(plan, weights, self.compiled.key)
        return artefacts.MaskedWeights.parse(plan, data)

    @cached_property
    def message(self) -> engine.OfflineMessage:
        return engine.prepare(self.network.plan, self._key(), self.masked)

    @cached_property
    def frames(self) -> list[Frame]:
        """The good offline message."""
        return list(self.message.frames())

    def reserve(self, seconds: float = SECONDS, **changes: bytes) -> None:
        fields = {
            "session": self.session,
            "plan_digest": self.artefact.plan_digest,
            "artefact": self.artefact.artefact,
            "key_d": self.key_d.reveal(),
            "epoch": EPOCH,
        }
        request = pb.ReserveRequest(**(fields | changes))
        self.provider.call("Reserve", request, pb.ReserveReply, Counters(), seconds)

    def header(self, **changes: bytes) -> pb.PrepareRequest:
        binding = artefacts.binding_digest(self.artefact, self.masked.digest)
        fields = {
            "session": self.session,
            "plan_digest": self.artefact.plan_digest,
            "artefact": self.artefact.artefact,
            "binding": binding,
        }
        return pb.PrepareRequest(header=pb.PrepareHeader(**(fields | changes)))

    def requests(self, frames: Iterable[Frame] | None = None) -> Iterator[pb.PrepareRequest]:
        yield self.header()
        for frame in self.frames if frames is None else frames:
            yield pb.PrepareRequest(frame=messages.from_frame(frame))

    def upload(
        self, requests: Iterable[pb.PrepareRequest] | None = None, seconds: float = SECONDS
    ) -> pb.PrepareReply:
        parts = self.requests() if requests is None else requests
        return self.owner.upload("Prepare", parts, pb.PrepareReply, Counters(), seconds)

    def prepare(self) -> Hand:
        """Reserve and upload as a good clinic does."""
        # first, since kernels may have to be loaded, and reservations expire
        assert self.frames
        self.reserve()
        self.upload()
        return self

    def start(self, seconds: float = SECONDS, method: str = "Infer") -> GrpcChannel:
        """START; returns when READY is in. Raises what the model owner refuses with."""
        channel = self.owner.open(method, seconds)
        try:
            channel.send(Frame(self.session, 0, Kind.START, 0, self.mark.encode()))
            ready = channel.receive()
        except RadiopaqueError:
            channel.close()
            raise
        assert (ready.session, ready.gate, ready.kind, ready.block) == (
            (self.session, 0, Kind.READY, 0)
        )
        assert len(ready.payload) == MARK_BYTES
        return channel

    def run(self, channel: Channel, images: NDArray[np.float64] | None = None) -> NDArray[Any]:
        """The online phase on a channel that is READY; ends the channel."""
        run = engine.DataOwnerRun(self.network.plan, self._key(), self.message.output_mask)
        try:
            return run.infer(self.network.images() if images is None else images, channel)
        finally:
            channel.close()

    def infer(self, images: NDArray[np.float64] | None = None) -> NDArray[Any]:
        """The whole online phase."""
        return self.run(self.start(), images)

    def _key(self) -> engine.SessionKey:
        """A copy: the engine erases the key that it is given."""
        return engine.SessionKey(self.artefact, self.session, SecretKey(self.key_d.reveal()))


class Tampered:
    """A channel that sends other frames than the ones it is given."""

    def __init__(self, channel: Channel, change: Change) -> None:
        self._channel = channel
        self._change = change
        self.counters = channel.counters

    def send(self, frame: Frame) -> None:
        for changed in self._change(frame):
            self._channel.send(changed)

    def receive(self, more: bool = False) -> Frame:
        return self._channel.receive()

    def close(self, error: RadiopaqueError | None = None) -> None:
        self._channel.close(error)


def raw_upload(peer: Peer, parts: Iterable[bytes]) -> None:
    """Prepare with these bytes as messages. Raises the model owner's error."""
    method = peer._connected(SECONDS).stream_unary(peer._path("Prepare"))
    _typed(peer, lambda: method(iter(parts), timeout=SECONDS, metadata=versions.own()))


def raw_infer(peer: Peer, parts: Iterable[bytes]) -> None:
    """Infer with these bytes as messages. Raises the model owner's error."""
    method = peer._connected(SECONDS).stream_stream(peer._path("Infer"))
    _typed(peer, lambda: list(method(iter(parts), timeout=SECONDS, metadata=versions.own())))


def raw_call(peer: Peer, method: str, request: bytes) -> None:
    """A call with one message there and one back, in bytes."""
    function = peer._connected(SECONDS).unary_unary(peer._path(method))
    _typed(peer, lambda: function(request, timeout=SECONDS, metadata=versions.own()))


def _typed(peer: Peer, call: Callable[[], object]) -> None:
    from radiopaque.transport.tls import grpc

    try:
        call()
    except grpc.RpcError as error:
        raise peer._typed(error) from None
