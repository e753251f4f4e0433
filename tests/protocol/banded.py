"""Sessions whose layers are cut into many bands: what is due when, and how to read it."""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from radiopaque.gates import sites
from radiopaque.graph import bands
from radiopaque.graph import plan as p
from radiopaque.kernels.bits import pack, packed_size
from radiopaque.wire.frames import Frame, Kind
from tests.protocol import fields
from tests.protocol.fields import Field
from tests.protocol.sessions import Due, Session, schedule
from tests.reference.bands import messages, order
from tests.vectors.forms import plan_to_json

OFFLINE = (Kind.CORRECTION, Kind.OFFLINE)
Name = tuple[int, Kind, int]
"""Gate, kind, block."""


@dataclass(frozen=True)
class Turn:
    """A frame of the online phase that is due: ``count`` fields of ``width`` bits."""

    receiver: str
    gate: int
    kind: Kind
    block: int
    count: int
    width: int

    @property
    def name(self) -> Name:
        return self.gate, self.kind, self.block

    @property
    def size(self) -> int:
        return packed_size(self.count, self.width)

    @property
    def spare_bits(self) -> int:
        """Bits behind the last field, which are zero."""
        return 8 * self.size - self.count * self.width

    def frame(self, session: bytes, payload: bytes) -> Frame:
        """This frame with some octets: cut or filled up, and without bits behind the last field."""
        data = bytearray(payload[: self.size].ljust(self.size, b"\0"))
        data[-1] &= 0xFF >> self.spare_bits
        return Frame(session, self.gate, self.kind, self.block, bytes(data))

    def uniform(self, session: bytes) -> Frame:
        """This frame as a simulator makes it."""
        return self.frame(session, secrets.token_bytes(self.size))


def conversation(plan: p.Plan) -> tuple[Turn, ...]:
    """The online phase as the data owner has it: each question and, behind it, the answer.

    Written against docs/protocol.md, section 11, as :mod:`tests.reference.bands` has it.
    """
    return tuple(turn for side, turn in _turns(plan, bands.BLOCK_BYTES) if side == "data-owner")


def at_the_model_owner(plan: p.Plan) -> tuple[Turn, ...]:
    """The same frames as the honest model owner sends and takes them."""
    return tuple(turn for side, turn in _turns(plan, bands.BLOCK_BYTES) if side == "model-owner")


@lru_cache(maxsize=16)
def _turns(plan: p.Plan, block_bytes: int) -> tuple[tuple[str, Turn], ...]:
    """(whose order, turn)."""
    word = plan.ring_bits // 8
    dues: dict[int, list[Due]] = {}
    for due in schedule(plan):
        if due.kind not in OFFLINE:
            dues.setdefault(due.gate, []).append(due)
    blocks = {gate: _blocks(plan.steps[gate].shape, block_bytes // word) for gate in dues}
    asked = Counter[tuple[int, int]]()
    found: list[tuple[str, Turn]] = []

    def add(side: str, gate: int, band: int, pair: list[Due]) -> None:
        for number, size in blocks[gate][band]:
            for due in pair:
                turn = Turn(due.receiver, gate, due.kind, number, size, due.width)
                found.append((side, turn))

    said = messages(plan_to_json(plan), word, block_bytes)
    for band in range(len(blocks[0])):
        add("data-owner", 0, band, dues[0])
    for place, (direction, gate, band) in enumerate(said):
        if direction == "up":
            stage = asked[gate, band]
            asked[gate, band] += 1
            add("data-owner", gate, band, dues[gate][2 * stage : 2 * stage + 2])
            if said[place - 1] != ("down", gate, band):
                add("model-owner", gate, band, dues[gate][2 * stage : 2 * stage + 1])
        elif gate == 0:
            add("model-owner", gate, band, dues[gate])
        else:
            stage = 2 * asked[gate, band]
            add("model-owner", gate, band, dues[gate][stage - 1 : stage + 1])
    return tuple(found)


def _blocks(shape: p.Shape, words: int) -> list[list[tuple[int, int]]]:
    """(number in the gate, elements) of the blocks of each band."""
    found: list[list[tuple[int, int]]] = []
    number = 0
    for places in order(shape, words):
        sizes = [min(words, len(places) - start) for start in range(0, len(places), words)]
        found.append([(number + i, size) for i, size in enumerate(sizes)])
        number += len(sizes)
    return found


def named(frames: Iterable[Frame]) -> list[tuple[int, Kind, int, int]]:
    """Gate, kind, block and length of frames."""
    return [(f.gate, f.kind, f.block, len(f.payload)) for f in frames]


def due(turns: Iterable[Turn], receiver: str) -> list[tuple[int, Kind, int, int]]:
    """The same of what a party is to receive."""
    return [(*turn.name, turn.size) for turn in turns if turn.receiver == receiver]


def whole(session: Session) -> Session:
    """The view with the blocks of each online message joined, for readers of whole messages."""
    return replace(
        session,
        to_model_owner=_merged(session.plan, session.to_model_owner),
        to_data_owner=_merged(session.plan, session.to_data_owner),
    )


def _merged(plan: p.Plan, frames: Iterable[Frame]) -> list[Frame]:
    turns = {turn.name: turn for turn in conversation(plan)}
    parts: dict[tuple[int, Kind], list[NDArray[np.uint64]]] = {}
    for frame in frames:
        turn = turns[frame.gate, frame.kind, frame.block]
        raw = np.frombuffer(frame.payload, np.uint8)
        if frame.kind is Kind.OPENING:
            words = fields.masked_words(raw, turn.count)
        else:
            words = fields.numbers(raw, turn.count, turn.width)
        parts.setdefault((frame.gate, frame.kind), []).append(words)
    widths = {(turn.gate, turn.kind): turn.width for turn in turns.values()}
    found: list[Frame] = []
    for (gate, kind), words_of_blocks in parts.items():
        values, width = np.concatenate(words_of_blocks), widths[gate, kind]
        if kind is Kind.OPENING:
            octets = values.astype("<u8").view(np.uint8).reshape(-1, 8)[:, : width // 8]
            payload = octets.T.tobytes()
        else:
            payload = bytes(pack(values, width))
        found.append(Frame(frame.session, gate, kind, 0, payload))
    return found


def across_bands(plan: p.Plan, found: Iterable[Field]) -> Iterator[Field]:
    """Every field, and how its numbers differ from one band of the gate to the next."""
    cut = {site.number: site.bands for site in sites(plan)}
    for item in found:
        yield item
        size = plan.steps[item.gate].size
        if len(cut[item.gate]) < 2 or item.values.size % size or item.name.startswith("bytes of"):
            continue
        planes = item.values.reshape(-1, size)
        parts = [planes[:, band.start : band.stop] for band in cut[item.gate]]
        moved = []
        for a, b in pairwise(parts):
            both = min(a.shape[1], b.shape[1])
            a, b = a[:, :both], b[:, :both]
            moved.append((a ^ b if item.xor else a - b).reshape(-1))
        yield replace(item, name=f"{item.name}, next band", values=np.concatenate(moved))
