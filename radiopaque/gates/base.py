"""What every gate is made of: its place in the plan, its cost, and the halves of the parties.

A gate is one object without state. The crypto provider calls :meth:`Gate.deal`; the data owner
calls :meth:`Gate.prepare` offline, then :meth:`Gate.load_answer` and :meth:`Gate.answer`; the model
owner calls :meth:`Gate.load_evaluate` and :meth:`Gate.evaluate`. Gates that compute locally only
override what they need.

Each party computes on a device of its own. Masks, values and states are arrays of that device;
messages, stored material and the result's mask lie in the process's memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from radiopaque.graph.plan import Plan, Step
from radiopaque.kernels.cpu import CPU
from radiopaque.kernels.device import Array, Device, LinearMap
from radiopaque.prg import Streams
from radiopaque.ring import RingArray, ring_dtype
from radiopaque.transport.link import BLOCK_BYTES, Link

Raw = NDArray[np.uint8]


@dataclass(frozen=True)
class Site:
    """A gate's place: its number in the plan (the gate id), its step, and its inputs' steps."""

    number: int
    step: Step
    operands: tuple[Step, ...]
    ring_bits: int

    @property
    def dtype(self) -> np.dtype[np.unsignedinteger]:
        """Word of the ring."""
        return ring_dtype(self.ring_bits)

    def blocks(self) -> Iterator[tuple[int, slice]]:
        """(block, slice) of the flattened output, of ``BLOCK_BYTES`` as ring words."""
        length = BLOCK_BYTES // (self.ring_bits // 8)
        for block, start in enumerate(range(0, self.step.size, length)):
            yield block, slice(start, min(start + length, self.step.size))


def sites(plan: Plan) -> Iterator[Site]:
    """Every gate of a plan in order."""
    for number, step in enumerate(plan.steps):
        operands = tuple(plan.steps[i] for i in step.inputs)
        yield Site(number, step, operands, plan.ring_bits)


@dataclass(frozen=True)
class GateCost:
    """What one gate costs, in payload bytes and counts; sums with ``+``."""

    correction_bytes: int = 0
    """Crypto provider to model owner, offline."""
    offline_bytes: int = 0
    """Data owner to model owner, offline."""
    to_model_owner_bytes: int = 0
    """Data owner to model owner, online."""
    to_data_owner_bytes: int = 0
    """Model owner to data owner, online."""
    round_trips: int = 0
    comparisons: int = 0
    truncations: int = 0
    multiply_adds: int = 0
    """Ring multiply-adds, at the model owner online, and at each other party offline."""

    def __add__(self, other: GateCost) -> GateCost:
        return GateCost(*(a + b for a, b in zip(self.values(), other.values(), strict=True)))

    def values(self) -> tuple[int, ...]:
        """The fields in order."""
        return (
            self.correction_bytes,
            self.offline_bytes,
            self.to_model_owner_bytes,
            self.to_data_owner_bytes,
            self.round_trips,
            self.comparisons,
            self.truncations,
            self.multiply_adds,
        )


@dataclass(frozen=True)
class DeviceStreams:
    """Streams whose words are wanted on a device."""

    streams: Streams
    device: Device = CPU

    def words(
        self,
        gate: int,
        quantity: str,
        shape: tuple[int, ...],
        dtype: DTypeLike,
        out: Array | None = None,
    ) -> Array:
        """As :meth:`radiopaque.prg.Streams.words`; ``out`` is an array of the device."""
        words = partial(self.streams.words, gate, quantity, shape, dtype)
        return self.device.fill(words, shape, dtype, out)


@dataclass(frozen=True)
class Dealing:
    """The crypto provider's means: both parties' streams and the linear maps of B."""

    data_owner: DeviceStreams
    model_owner: DeviceStreams
    maps: Mapping[int, LinearMap] = field(repr=False)

    @property
    def device(self) -> Device:
        """Where it computes."""
        return self.data_owner.device


@dataclass(frozen=True)
class Preparing:
    """The data owner's means offline: its streams and the linear maps of F = W - B."""

    streams: DeviceStreams
    maps: Mapping[int, LinearMap] = field(repr=False)


@dataclass
class Answering:
    """The data owner online: its link, the encoded image and, at the end, the result's share."""

    link: Link
    image: Array = field(repr=False)
    device: Device = CPU
    result: NDArray[np.int64] | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Evaluating:
    """The model owner online: its link, the linear maps of W and the secret constants."""

    link: Link
    maps: Mapping[int, LinearMap] = field(repr=False)
    constants: Mapping[int, Array] = field(repr=False)
    device: Device = CPU


@dataclass(frozen=True)
class Dealt:
    """Result of dealing one gate: the output's mask where known, the model owner's corrections."""

    mask: Array | None = field(repr=False)
    corrections: NDArray[Any] | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Prepared:
    """Result of preparing one gate: the output's mask, the offline message to the model owner."""

    mask: Array = field(repr=False)
    message: Raw | None = field(default=None, repr=False)


class Gate:
    """A gate's three halves. The base class is a gate without communication or secrets."""

    def cost(self, site: Site) -> GateCost:
        """Payload bytes, round trips and work of this gate."""
        return GateCost()

    def deal(self, context: Dealing, site: Site, masks: Sequence[Array | None]) -> Dealt:
        """Crypto provider, offline. ``masks`` are its inputs' masks, None where it knows none."""
        raise NotImplementedError

    def prepare(self, context: Preparing, site: Site, masks: Sequence[Array]) -> Prepared:
        """Data owner, offline. ``masks`` are the masks of the inputs."""
        raise NotImplementedError

    def load_answer(self, streams: DeviceStreams, site: Site, output_mask: RingArray) -> Any:
        """Data owner, before the image: expand what :meth:`answer` needs."""
        return None

    def answer(self, context: Answering, site: Site, state: Any) -> None:
        """Data owner, online."""

    def load_evaluate(
        self, streams: DeviceStreams, site: Site, corrections: Raw, offline: Raw
    ) -> Any:
        """Model owner, before the image: bring stored material into form for :meth:`evaluate`."""
        return None

    def evaluate(
        self, context: Evaluating, site: Site, state: Any, values: Sequence[Array]
    ) -> Array:
        """Model owner, online: its share of the output from its shares of the inputs."""
        raise NotImplementedError
