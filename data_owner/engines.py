"""What differs between the engines when a session is prepared and run at the clinic.

Each engine checks the image before anything is sent, makes the offline message, and is opened
before the session is consumed, so that what can fail beforehand costs no session.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from radiopaque.engine import data_owner as gates
from radiopaque.engine.artefact import ArtefactId, MaskedWeights, weights_digest
from radiopaque.engine.crypten.plan import CryptenPlan
from radiopaque.engine.crypten.process import Worker
from radiopaque.engine.crypten.runs import DataOwnerCrypten, check_images
from radiopaque.engine.names import EngineName
from radiopaque.graph.plan import Plan
from radiopaque.kernels.device import Device
from radiopaque.prg import KEY_BYTES, SecretKey
from radiopaque.ring import RingArray, ring_dtype
from radiopaque.transport.channel import Channel
from radiopaque.wire.frames import Frame

Infer = Callable[[NDArray[np.floating], Channel], NDArray[np.float64]]
"""The online phase of one session: preprocessed images to outputs."""


@dataclass(frozen=True)
class Offline:
    """What a session needs before its image: messages for the vendor, and what the clinic keeps.

    The messages are made as they are sent, and need the key until then.
    """

    frames: Iterator[Frame]
    kept: bytes = field(repr=False)


class Opened(Protocol):
    """An engine about to run one session."""

    def wait_ready(self) -> None:
        """Return when nothing but the session is missing."""
        ...

    def start(self, session: bytes, secret: bytes) -> Infer:
        """A session in memory, from key_D and what was kept. Called once it is STARTED."""
        ...


class Engine(Protocol):
    """One model at the clinic."""

    @property
    def name(self) -> EngineName:
        """As in the configuration."""
        ...

    @property
    def weights_digest(self) -> bytes:
        """Of the masked weights that sessions are bound to."""
        ...

    def check(self, images: NDArray[np.floating]) -> None:
        """Raise TensorError for images that cannot be sent."""
        ...

    def prepare(self, key: gates.SessionKey) -> Offline:
        """The offline message of a session."""
        ...

    def open(self, seconds: float, window_bytes: int) -> AbstractContextManager[Opened]:
        """What one inference takes besides its session, for so long at most.

        ``window_bytes`` of its streams are expanded ahead (:mod:`radiopaque.engine.window`).
        """
        ...


class GateEngine:
    """A compiled model: masked weights, and the gates in this process."""

    name = EngineName.COMPILED

    def __init__(self, plan: Plan, artefact: ArtefactId, weights: MaskedWeights) -> None:
        self._plan = plan
        self._artefact = artefact
        self._weights = weights

    @property
    def weights_digest(self) -> bytes:
        return self._weights.digest

    def check(self, images: NDArray[np.floating]) -> None:
        gates.encode_images(self._plan, images)

    def prepare(self, key: gates.SessionKey) -> Offline:
        message = gates.prepare(self._plan, key, self._weights)
        return Offline(message.frames(), message.output_mask.tobytes())

    @contextmanager
    def open(self, seconds: float, window_bytes: int) -> Iterator[Opened]:
        with ExitStack() as runs:
            device = self._weights.device
            yield _OpenedGates(self._plan, self._artefact, window_bytes, device, runs)


@dataclass(frozen=True)
class _OpenedGates:
    plan: Plan
    artefact: ArtefactId
    window_bytes: int
    device: Device
    runs: ExitStack

    def wait_ready(self) -> None:
        """Always."""

    def start(self, session: bytes, secret: bytes) -> Infer:
        key = gates.SessionKey(self.artefact, session, SecretKey(secret[:KEY_BYTES]))
        mask = self._output_mask(secret)
        run = gates.DataOwnerRun(self.plan, key, mask, self.window_bytes, self.device)
        self.runs.callback(run.close)
        return run.infer

    def _output_mask(self, secret: bytes) -> RingArray:
        words = np.frombuffer(secret, np.uint8, offset=KEY_BYTES)
        # a copy: a view would keep the key's bytes, too, until the result is there
        mask = words.view(ring_dtype(self.plan.ring_bits)).copy()
        return mask.reshape(self.plan.output_step.shape)


class CryptenEngine:
    """A model under CrypTen: no weights here, a worker process for each inference."""

    name = EngineName.CRYPTEN

    def __init__(self, plan: CryptenPlan, encoded: bytes, artefact: ArtefactId) -> None:
        self._plan = plan
        self._encoded = encoded
        self._artefact = artefact

    @property
    def weights_digest(self) -> bytes:
        return weights_digest(b"")

    def check(self, images: NDArray[np.floating]) -> None:
        check_images(self._plan, images)

    def prepare(self, key: gates.SessionKey) -> Offline:
        return Offline(iter(()), b"")

    @contextmanager
    def open(self, seconds: float, window_bytes: int) -> Iterator[Opened]:
        with Worker(seconds) as worker:
            yield _OpenedCrypten(self._plan, self._encoded, self._artefact, worker)


@dataclass(frozen=True)
class _OpenedCrypten:
    plan: CryptenPlan
    encoded: bytes
    artefact: ArtefactId
    worker: Worker

    def wait_ready(self) -> None:
        self.worker.wait_ready()

    def start(self, session: bytes, secret: bytes) -> Infer:
        digest = self.artefact.plan_digest
        key = SecretKey(secret)
        return DataOwnerCrypten(self.worker, self.plan, self.encoded, digest, session, key).infer
