"""The crypto provider's walk: correlated randomness for one session, as corrections.

It holds key_D and key_O of the session and key_B of the artefact, and walks the plan on those masks
that it knows. What it sends, to the model owner only, is the difference between the correlation and
both parties' streams: uniform to whoever lacks the data owner's key.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from radiopaque.engine.artefact import ArtefactId
from radiopaque.engine.material import region_frames
from radiopaque.gates import halves, sites
from radiopaque.gates.base import Dealing, DeviceStreams
from radiopaque.gates.linear_maps import LinearMap
from radiopaque.graph.plan import Plan
from radiopaque.kernels.cpu import CPU
from radiopaque.kernels.device import Array, Device
from radiopaque.prg import SecretKey, Streams
from radiopaque.telemetry import recorder
from radiopaque.wire.frames import Frame, Kind


@dataclass(frozen=True)
class DealInputs:
    """What dealing one session takes."""

    plan: Plan
    artefact: ArtefactId
    session: bytes
    key_d: SecretKey = field(repr=False)
    key_o: SecretKey = field(repr=False)
    maps: Mapping[int, LinearMap] = field(repr=False)
    """Linear maps of B (:func:`radiopaque.engine.artefact.weight_mask_maps`)."""
    device: Device = CPU
    """Where the maps are, and so where it computes."""


def deal(inputs: DealInputs) -> Iterator[Frame]:
    """The CORRECTION frames of a session in plan order, each computed when it is asked for."""
    plan, device = inputs.plan, inputs.device
    digest, session = inputs.artefact.plan_digest, inputs.session
    context = Dealing(
        DeviceStreams(Streams(inputs.key_d, digest, session, "data-owner"), device),
        DeviceStreams(Streams(inputs.key_o, digest, session, "model-owner"), device),
        inputs.maps,
    )
    masks: dict[int, Array | None] = {}
    freed = plan.last_uses()
    for site in sites(plan):
        with recorder.span("deal", site.number):
            dealt = halves(site.step.gate).deal(context, site, [masks[i] for i in site.step.inputs])
        masks[site.number] = dealt.mask
        for value in freed[site.number]:
            del masks[value]
        if dealt.corrections is not None:
            region = dealt.corrections.reshape(-1).view(np.uint8)
            yield from region_frames(session, site.number, Kind.CORRECTION, region)
