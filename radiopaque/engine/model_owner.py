"""The model owner's walk: from stored material and the masked image to the result's bits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from radiopaque.engine.artefact import ArtefactId
from radiopaque.errors import SessionStateError
from radiopaque.gates import halves, sites
from radiopaque.gates.base import Evaluating, Raw
from radiopaque.gates.linear_maps import LinearMap, linear_maps
from radiopaque.graph.plan import Plan
from radiopaque.graph.weights import Weights
from radiopaque.prg import SecretKey, Streams
from radiopaque.ring import RingArray
from radiopaque.telemetry import recorder
from radiopaque.transport.channel import Channel
from radiopaque.transport.link import Link

_NOTHING: Raw = np.empty(0, np.uint8)


class Model:
    """A plan with its weights, packed once for the kernels; serves any number of sessions."""

    def __init__(self, plan: Plan, weights: Weights) -> None:
        self.plan = plan
        self.maps: Mapping[int, LinearMap] = linear_maps(plan, weights.linear)
        self.constants: Mapping[int, RingArray] = weights.constants

    def __repr__(self) -> str:
        return f"Model({self.plan.name} {self.plan.version}, {len(self.plan.steps)} gates)"


@dataclass(frozen=True)
class Material:
    """What the model owner stored for one session: both offline messages by gate."""

    corrections: Mapping[int, Raw] = field(repr=False)
    offline: Mapping[int, Raw] = field(repr=False)


class ModelOwnerRun:
    """A session about to start: material in memory, own streams expanded.

    Make it after the ledger says STARTED; it runs once, because every gate answers once.
    """

    def __init__(
        self,
        model: Model,
        artefact: ArtefactId,
        session: bytes,
        key_o: SecretKey,
        material: Material,
    ) -> None:
        self._model = model
        self._session = session
        self._spent = False
        streams = Streams(key_o, artefact.plan_digest, session, "model-owner")
        self._states: dict[int, Any] = {}
        for site in sites(model.plan):
            corrections = material.corrections.get(site.number, _NOTHING)
            offline = material.offline.get(site.number, _NOTHING)
            with recorder.span("load", site.number):
                state = halves(site.step.gate).load_evaluate(streams, site, corrections, offline)
            if state is not None:
                self._states[site.number] = state
        key_o.erase()

    def run(self, channel: Channel) -> None:
        """Serve the online phase. ProtocolError and TransportError end the session.

        Raises SessionStateError before anything is received when it is run again.
        """
        if self._spent:
            raise SessionStateError("this session was already served; prepare another session")
        self._spent = True
        plan = self._model.plan
        context = Evaluating(Link(channel, self._session), self._model.maps, self._model.constants)
        values: dict[int, RingArray] = {}
        freed = plan.last_uses()
        for site in sites(plan):
            with recorder.span("evaluate", site.number):
                values[site.number] = halves(site.step.gate).evaluate(
                    context,
                    site,
                    self._states.pop(site.number, None),
                    [values[i] for i in site.step.inputs],
                )
            for value in freed[site.number]:
                del values[value]
