"""What differs between the engines when a model is hosted and a session is run.

A host is opened before a session is consumed, so that what can fail beforehand (a worker process
that does not start) costs no session; what it yields starts one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from model_owner.material import SessionMaterial
from radiopaque.engine.artefact import ArtefactId
from radiopaque.engine.crypten.process import Worker
from radiopaque.engine.crypten.runs import ModelOwnerCrypten
from radiopaque.engine.crypten.weights_file import StoredCrypten
from radiopaque.engine.model_owner import Model, ModelOwnerRun
from radiopaque.engine.plans import AnyPlan
from radiopaque.prg import SecretKey
from radiopaque.transport.channel import Channel

Run = Callable[[Channel], None]
"""The online phase of one session."""
Start = Callable[[bytes, SecretKey, SessionMaterial], Run]
"""A session in memory: its id, key_O, and what was prepared for it. Called once it is STARTED."""


class GateHost:
    """A compiled model and the gates."""

    def __init__(self, model: Model, artefact: ArtefactId) -> None:
        self._model = model
        self._artefact = artefact

    @property
    def plan(self) -> AnyPlan:
        """The public plan."""
        return self._model.plan

    @contextmanager
    def open(self, seconds: float, window_bytes: int) -> Iterator[Start]:
        """Ready at once; what is loaded is freed with the block."""
        model, artefact = self._model, self._artefact
        with ExitStack() as opened:

            def start(session: bytes, key_o: SecretKey, prepared: SessionMaterial) -> Run:
                material = prepared.load(model.plan)
                run = ModelOwnerRun(model, artefact, session, key_o, material, window_bytes)
                opened.callback(run.close)
                return run.run

            yield start


class CryptenHost:
    """A model for CrypTen, in a worker process for each inference."""

    def __init__(self, stored: StoredCrypten) -> None:
        self._stored = stored

    @property
    def plan(self) -> AnyPlan:
        """The public plan."""
        return self._stored.plan

    @contextmanager
    def open(self, seconds: float, window_bytes: int) -> Iterator[Start]:
        """A worker with its libraries loaded; it ends with the block.

        It asks for its material tuple by tuple, so there is nothing to load ahead.
        """
        stored = self._stored
        with Worker(seconds) as worker:
            worker.wait_ready()

            def start(session: bytes, key_o: SecretKey, prepared: SessionMaterial) -> Run:
                run = ModelOwnerCrypten(
                    worker,
                    stored.plan_bytes,
                    stored.id.plan_digest,
                    stored.constants,
                    session,
                    key_o,
                )
                corrections = prepared.corrections(stored.plan)
                return lambda channel: run.run(channel, corrections)

            yield start
