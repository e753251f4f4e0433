"""The offline messages of a session as byte regions: their sizes, order and frames.

Two messages go to the model owner before the image exists: the crypto provider's corrections and
the data owner's offline message. Each is one region a gate, in plan order, cut into payloads of a
mebibyte. Sizes follow from the plan alone, so every frame has exactly one admissible form, and
memory is taken only after the size is known.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from radiopaque.errors import MessageOrderError
from radiopaque.gates import halves, sites
from radiopaque.gates.base import Raw, Site
from radiopaque.graph.plan import Plan
from radiopaque.telemetry import recorder
from radiopaque.transport.link import accept, payload_pieces
from radiopaque.wire.frames import Frame, Kind

if TYPE_CHECKING:
    from radiopaque.engine.plans import AnyPlan


def region_sizes(plan: AnyPlan, kind: Kind) -> dict[int, int]:
    """Bytes of every non-empty region of one offline message, by gate, in plan order."""
    if not isinstance(plan, Plan):
        # under CrypTen the data owner has nothing to send offline
        return dict(plan.correction_sizes()) if kind is Kind.CORRECTION else {}
    found = {site.number: region_size(site, kind) for site in sites(plan)}
    return {gate: size for gate, size in found.items() if size}


def region_size(site: Site, kind: Kind) -> int:
    """Bytes of one gate's region; 0 where it has none."""
    cost = halves(site.step.gate).cost(site)
    return cost.correction_bytes if kind is Kind.CORRECTION else cost.offline_bytes


def expected_state_bytes(site: Site) -> int:
    """About what a gate's state takes in memory at either party, which are halves of one thing."""
    return region_size(site, Kind.CORRECTION) + region_size(site, Kind.OFFLINE)


def region_frames(session: bytes, gate: int, kind: Kind, region: Raw) -> Iterator[Frame]:
    """The frames of one region."""
    for block, piece in payload_pieces(region.size):
        yield Frame(session, gate, kind, block, region[piece].data)


class RegionReader:
    """Accepts the frames of one offline message in their only admissible order."""

    def __init__(self, plan: AnyPlan, session: bytes, kind: Kind) -> None:
        self._session = session
        self._kind = kind
        self._due = iter(
            [
                (gate, block, piece.stop - piece.start)
                for gate, size in region_sizes(plan, kind).items()
                for block, piece in payload_pieces(size)
            ]
        )

    def accept(self, frame: Frame) -> Raw:
        """The payload of the next frame. Raises MessageOrderError or MessageSizeError."""
        due = next(self._due, None)
        if due is None:
            raise MessageOrderError(
                f"{frame.kind.name} of gate {frame.gate} came after the message was complete"
            )
        gate, block, size = due
        with recorder.span("accept", gate, self._kind.name, size):
            return accept(frame, self._session, gate, self._kind, block, size)

    def finish(self) -> None:
        """Raises MessageOrderError where frames are missing."""
        due = next(self._due, None)
        if due is not None:
            raise MessageOrderError(
                f"the {self._kind.name} message ended before gate {due[0]}, block {due[1]}"
            )


def assemble(plan: AnyPlan, kind: Kind, payloads: Iterable[Raw]) -> dict[int, Raw]:
    """Regions by gate from the accepted payloads in order."""
    return dict(regions(plan, kind, payloads))


def regions(plan: AnyPlan, kind: Kind, payloads: Iterable[Raw]) -> Iterator[tuple[int, Raw]]:
    """(gate, region) one after the other, reading no more payloads than have been asked for."""
    pieces = iter(payloads)
    for gate, size in region_sizes(plan, kind).items():
        region = np.empty(size, np.uint8)
        for _, piece in payload_pieces(size):
            region[piece] = next(pieces)
        yield gate, region
