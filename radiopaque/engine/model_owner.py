"""The model owner's walk: from stored material and the masked image to the result's bits."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from radiopaque.engine.artefact import ArtefactId
from radiopaque.engine.material import expected_state_bytes, region_size
from radiopaque.engine.values import Values, Wiring
from radiopaque.engine.window import WINDOW_BYTES, Pending, Window
from radiopaque.errors import StoreError
from radiopaque.gates import halves, sites
from radiopaque.gates.base import DeviceStreams, Evaluating, Raw, Site
from radiopaque.gates.linear_maps import LinearMap, linear_maps
from radiopaque.gates.schedule import Event, schedule
from radiopaque.graph.plan import Plan
from radiopaque.graph.weights import Weights
from radiopaque.kernels.cpu import CPU
from radiopaque.kernels.device import Array, Device
from radiopaque.prg import SecretKey, Streams
from radiopaque.telemetry import recorder
from radiopaque.transport.channel import Channel
from radiopaque.transport.link import Link
from radiopaque.wire.frames import Kind

_NOTHING: Raw = np.empty(0, np.uint8)


class Model:
    """A plan with its weights, packed once for a device; serves any number of sessions there."""

    def __init__(self, plan: Plan, weights: Weights, device: Device = CPU) -> None:
        self.plan = plan
        self.wiring = Wiring(plan)
        self.device = device
        self.maps: Mapping[int, LinearMap] = linear_maps(plan, weights.linear.items(), device)
        self.constants: Mapping[int, Array] = {
            number: device.upload(constant) for number, constant in weights.constants.items()
        }

    def __repr__(self) -> str:
        return f"Model({self.plan.name} {self.plan.version}, {len(self.plan.steps)} gates)"


@dataclass(frozen=True)
class Material:
    """What the model owner stored for one session: (gate, region) of both offline messages.

    In plan order, each read when its gate is loaded.
    """

    corrections: Iterable[tuple[int, Raw]] = field(repr=False)
    offline: Iterable[tuple[int, Raw]] = field(repr=False)


class ModelOwnerRun:
    """A session about to start: as much of its material as the window takes is loaded.

    Make it after the ledger says STARTED; it runs once, because its window is walked once.
    ``key_o`` is erased when all gates are loaded, at the latest when the run is over or closed.
    Raises StoreError where material that was loaded so far is damaged.
    """

    def __init__(
        self,
        model: Model,
        artefact: ArtefactId,
        session: bytes,
        key_o: SecretKey,
        material: Material,
        window_bytes: int = WINDOW_BYTES,
    ) -> None:
        self._model = model
        self._session = session
        self._events = schedule(model.plan).model_owner
        own = Streams(key_o, artefact.plan_digest, session, "model-owner")
        streams = DeviceStreams(own, model.device)
        self._window = Window(_loading(model.plan, streams, key_o, material), window_bytes)

    @property
    def peak_bytes(self) -> int:
        """Most bytes of prepared gates that were in memory at once."""
        return self._window.peak_bytes

    def close(self) -> None:
        """Free the material that is left. Running does it too."""
        self._window.close()

    def run(self, channel: Channel) -> None:
        """Serve the online phase. ProtocolError, TransportError and StoreError end the session.

        Raises SessionStateError before anything is received when it is run again.
        """
        model, window = self._model, self._window
        link = Link(channel, self._session)
        context = Evaluating(link, model.maps, model.constants, model.device)
        values = Values(model.wiring, context, window.take, window.free)
        with window:
            for event in self._events:
                link.more = event.more
                _turn(context, values, window, event)
                if event.last_opening:
                    values.read(event.site)
                if event.last:
                    window.free(event.site.number)


def _turn(context: Evaluating, values: Values, window: Window, event: Event) -> None:
    site, band, stage, _ = event
    half = halves(site.step.gate)
    if stage == 0:
        # first, so that states of gates before this one are freed before this one's is waited for
        value = values.rows(site.step.inputs[0], band.rows)
        state = window.take(site.number)
        with recorder.span("evaluate", site.number):
            half.open(context, site, state, band, value)
        return
    state = window.take(site.number)
    with recorder.span("evaluate", site.number):
        words = half.proceed(context, site, state, band, stage)
        if words is not None:
            values.put(site, band, words)


def _loading(
    plan: Plan, streams: DeviceStreams, key_o: SecretKey, material: Material
) -> Generator[Pending]:
    corrections, offline = iter(material.corrections), iter(material.offline)
    try:
        for site in sites(plan):
            load = partial(_load, streams, site, corrections, offline)
            yield Pending(site.number, expected_state_bytes(site), load)
    finally:
        key_o.erase()


def _load(
    streams: DeviceStreams,
    site: Site,
    corrections: Iterator[tuple[int, Raw]],
    offline: Iterator[tuple[int, Raw]],
) -> Any:
    with recorder.span("load", site.number):
        return halves(site.step.gate).load_evaluate(
            streams,
            site,
            _region(site, Kind.CORRECTION, corrections),
            _region(site, Kind.OFFLINE, offline),
        )


def _region(site: Site, kind: Kind, regions: Iterator[tuple[int, Raw]]) -> Raw:
    """The region of one gate, which is next where it has one."""
    size = region_size(site, kind)
    if not size:
        return _NOTHING
    gate, region = next(regions, (-1, _NOTHING))
    if (gate, region.size) != (site.number, size):
        raise StoreError(
            f"the prepared material lacks the {kind.name} region of gate {site.number}; "
            "the session is lost, prepare another"
        )
    return region
