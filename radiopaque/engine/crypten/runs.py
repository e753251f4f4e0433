"""The two parties' parts of one inference under CrypTen, each with a worker of its own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import prod

import numpy as np
from numpy.typing import NDArray

from radiopaque.engine.crypten.plan import LARGEST_INPUT, CryptenPlan
from radiopaque.engine.crypten.process import Job, Setup, Worker
from radiopaque.errors import EngineError, TensorError
from radiopaque.gates.base import Raw
from radiopaque.prg import SecretKey
from radiopaque.transport.channel import Channel
from radiopaque.transport.link import Link


def check_images(plan: CryptenPlan, images: NDArray[np.floating]) -> NDArray[np.float32]:
    """The network's input as CrypTen takes it. Raises TensorError."""
    shape = plan.program.input_shape
    if images.shape != shape:
        raise TensorError(
            f"the model takes a tensor of shape {list(shape)}, got {list(images.shape)}"
        )
    if not np.isfinite(images).all():
        raise TensorError("the input holds NaN or infinity; check the preprocessing of the image")
    largest = float(np.abs(images).max())
    if largest > LARGEST_INPUT:
        raise TensorError(
            f"the input reaches {largest:.4g} in absolute value, over {LARGEST_INPUT}; "
            "check the preprocessing"
        )
    return np.ascontiguousarray(images, np.float32)


class DataOwnerCrypten:
    """The clinic's rank: sends nothing but masked values, and alone learns the outputs.

    Make it when the ledger says STARTED; ``worker`` has loaded its libraries.
    """

    def __init__(
        self,
        worker: Worker,
        plan: CryptenPlan,
        encoded: bytes,
        digest: bytes,
        session: bytes,
        key_d: SecretKey,
    ) -> None:
        self._worker = worker
        self._plan = plan
        self._session = session
        self._setup = Setup(Job.DATA_OWNER, session, digest, key_d, encoded)

    def infer(self, images: NDArray[np.floating], channel: Channel) -> NDArray[np.float64]:
        """The network's outputs for preprocessed images. Runs once: the worker ends with it.

        Raises TensorError before anything is sent; EngineError, PlanError, ProtocolError and
        TransportError end the session.
        """
        checked = check_images(self._plan, images)
        self._worker.start(self._setup, [checked])
        self._setup.key.erase()
        data = self._worker.serve(Link(channel, self._session))
        shape = self._plan.program.output_shape
        if len(data) != 8 * prod(shape):
            raise EngineError(
                f"the CrypTen worker answered with {len(data)} bytes, {8 * prod(shape)} are due"
            )
        return np.frombuffer(data, "<f8").reshape(shape)


class ModelOwnerCrypten:
    """The vendor's rank: shares the weights and learns nothing.

    Make it when the ledger says STARTED, and say READY to the clinic afterwards.
    """

    def __init__(
        self,
        worker: Worker,
        encoded: bytes,
        digest: bytes,
        constants: Sequence[NDArray[np.float32]],
        session: bytes,
        key_o: SecretKey,
    ) -> None:
        self._worker = worker
        self._session = session
        worker.start(Setup(Job.MODEL_OWNER, session, digest, key_o, encoded), constants)
        key_o.erase()

    def run(self, channel: Channel, corrections: Iterable[tuple[int, Raw]]) -> None:
        """Serve the inference with the corrections of its tuples, in order, taken when needed."""
        dealt = iter(corrections)

        def material(number: int, size: int) -> memoryview:
            found, region = next(dealt, (-1, None))
            if region is None or found != number or region.size != size:
                raise EngineError(f"the prepared material lacks the correction of tuple {number}")
            return region.data

        self._worker.serve(Link(channel, self._session), material)
