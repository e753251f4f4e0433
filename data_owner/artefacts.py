"""The clinic's copies of vendors' models: the public plan and the masked weights F.

F is no secret from the clinic, but it must stay secret from the crypto provider: files are private.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from data_owner.engines import CryptenEngine, Engine, GateEngine
from radiopaque.engine.artefact import (
    ArtefactId,
    MaskedWeights,
    binding_digest,
    masked_weights_size,
    weights_digest,
)
from radiopaque.engine.crypten.encoding import encode_plan
from radiopaque.engine.crypten.plan import CryptenPlan
from radiopaque.engine.crypten.process import check_installed
from radiopaque.engine.footprint import check_footprint
from radiopaque.engine.plans import AnyPlan, load_any
from radiopaque.errors import (
    MessageOrderError,
    MessageSizeError,
    MessageValueError,
    PlanDigestError,
)
from radiopaque.files import make_private_directory, write_atomically
from radiopaque.kernels.cpu import CPU
from radiopaque.kernels.device import Device
from radiopaque.transport.channel import Counters
from radiopaque.transport.grpc_client import Peer
from radiopaque.wire import messages
from radiopaque.wire.v1 import services_pb2 as pb


@dataclass(frozen=True)
class Offer:
    """A model as the vendor offers it now."""

    name: str
    version: str
    plan: AnyPlan = field(repr=False)
    id: ArtefactId
    weights_digest: bytes


@dataclass(frozen=True)
class LocalModel:
    """An offered model, ready to prepare sessions with."""

    offer: Offer
    engine: Engine = field(repr=False)

    @property
    def binding(self) -> bytes:
        """What this clinic's offline messages for this model are bound to."""
        return binding_digest(self.offer.id, self.engine.weights_digest)


def fetch_offer(
    peer: Peer, name: str, version: str, counters: Counters, deadline: float, model_bytes: int
) -> Offer:
    """Ask for a model's plan and check it (rules, ranges, digest, the memory that it takes)."""
    request = pb.FetchPlanRequest(name=name, version=version)
    reply = peer.call("FetchPlan", request, pb.FetchPlanReply, counters, deadline)
    digest = messages.digest(reply.plan_digest, "plan digest")
    plan = load_any(reply.plan, digest)
    check_footprint(plan, model_bytes, "data owner")
    artefact = ArtefactId(digest, messages.artefact_id(reply.artefact))
    weights = messages.digest(reply.weights_digest, "weights digest")
    if reply.name != name or (version and reply.version != version):
        raise MessageValueError(
            f"asked for model {name} {version}".rstrip()
            + ", the vendor answered with another one; tell the vendor"
        )
    return Offer(reply.name, reply.version, plan, artefact, weights)


class ArtefactCache:
    """Masked weights on disk, so that they are fetched once per artefact; used on ``device``."""

    def __init__(self, directory: Path, device: Device = CPU) -> None:
        make_private_directory(directory)
        self._directory = directory
        self._device = device
        self._loaded: dict[ArtefactId, LocalModel] = {}

    def load(self, offer: Offer, peer: Peer, counters: Counters, deadline: float) -> LocalModel:
        """The model with its masked weights, from memory, disk or the vendor.

        Under CrypTen there are none. Raises ConfigError where CrypTen is not installed.
        """
        known = self._loaded.get(offer.id)
        if known is not None and known.engine.weights_digest == offer.weights_digest:
            return known
        model = LocalModel(offer, self._engine(offer, peer, counters, deadline))
        self._loaded[offer.id] = model
        return model

    def _engine(self, offer: Offer, peer: Peer, counters: Counters, deadline: float) -> Engine:
        if isinstance(offer.plan, CryptenPlan):
            check_installed()
            return CryptenEngine(offer.plan, encode_plan(offer.plan), offer.id)
        path = self._directory / f"{offer.id.artefact.hex()}.masked"
        size = masked_weights_size(offer.plan)
        data = b""
        if path.exists() and path.stat().st_size == size:
            data = path.read_bytes()
        if weights_digest(data) != offer.weights_digest:
            data = _download(offer, size, peer, counters, deadline)
            write_atomically(path, data)
        masked = MaskedWeights.parse(offer.plan, data, self._device)
        return GateEngine(offer.plan, offer.id, masked)


def _download(offer: Offer, size: int, peer: Peer, counters: Counters, deadline: float) -> bytes:
    request = pb.FetchMaskedWeightsRequest(artefact=offer.id.artefact)
    data = bytearray()
    for chunk in peer.download("FetchMaskedWeights", request, pb.Chunk, counters, deadline):
        if chunk.offset != len(data):
            raise MessageOrderError("the masked weights arrived out of order; fetch them again")
        if len(data) + len(chunk.data) > size:
            raise MessageSizeError(
                f"the masked weights are longer than the {size} bytes of the plan"
            )
        data += chunk.data
    if weights_digest(bytes(data)) != offer.weights_digest:
        raise PlanDigestError("the masked weights do not have the stated digest; fetch them again")
    return bytes(data)
