"""Where a value must lose fraction bits, or get a mask that the crypto provider knows.

A linear gate multiplies: its input needs a mask of the provider's streams and few fraction bits.
The request is made once for each value and before concatenations and reshapes, so that all the
layers of a dense block share one truncation of each of their inputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from radiopaque.graph import plan as p
from radiopaque.graph.draft import (
    Linear,
    Move,
    Op,
    Pad,
    Relu,
    Settle,
    Sum,
    consumers,
    known_masks,
)
from radiopaque.graph.folding import prune

MANY_TERMS = 16
"""Products of a linear gate that are summed as they are must be fewer."""
FREE_COUNT = 64
"""Window sums over up to so many elements take their fraction bits from the gate before them."""


def insert_settles(ops: Sequence[Op]) -> list[Op]:
    """Put a Settle before every linear gate whose input is not ready to be multiplied."""
    return prune(_Inserter(ops).run())


@dataclass
class _Inserter:
    old: Sequence[Op]
    ops: list[Op] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    settled: dict[int, int] = field(default_factory=dict)
    finer: list[int] = field(default_factory=list)
    shared: list[bool] = field(default_factory=list)

    def run(self) -> list[Op]:
        self.known = known_masks(self.old)
        self.readers = consumers(self.old)
        self._measure()
        for op in self.old:
            moved = op.renumbered(self.places)
            if isinstance(op.kind, Linear) or self._drowns(op):
                moved = replace(moved, inputs=tuple(self._settle(value) for value in op.inputs))
            self.places.append(self._add(moved))
        return self.ops

    def _add(self, op: Op) -> int:
        self.ops.append(op)
        return len(self.ops) - 1

    def _measure(self) -> None:
        """For each value, how much finer its scale is than that of the gates it comes from, and
        whether anything else reads those or what lies between."""
        for number, op in enumerate(self.old):
            shared = len(self.readers[number]) > 1
            finer = op.kind.count if isinstance(op.kind, Sum) else 1
            if op.inputs and not isinstance(op.kind, Relu | Settle):
                finer *= max(self.finer[v] for v in op.inputs)
                shared = shared or any(self.shared[v] for v in op.inputs)
            self.finer.append(finer)
            self.shared.append(shared)

    def _ready(self, value: int) -> bool:
        """Whether a value can be multiplied as it is: the gates before it lower their scale."""
        finer, shared = self.finer[value], self.shared[value]
        return self.known[value] and (finer == 1 or (finer <= FREE_COUNT and not shared))

    def _drowns(self, op: Op) -> bool:
        """Whether an op sums so many products that the weights before it would lose their bits."""
        if not isinstance(op.kind, Sum) or self.known[op.inputs[0]]:
            return False
        return op.kind.gate.kernel[0] * op.kind.gate.kernel[1] >= MANY_TERMS

    def _settle(self, value: int) -> int:
        if self._ready(value):
            return self.places[value]
        if value not in self.settled:
            self.settled[value] = self._add(self._settled(value))
        return self.settled[value]

    def _settled(self, value: int) -> Op:
        op = self.old[value]
        moves = isinstance(op.kind, Move) and not isinstance(op.kind.gate, p.Slice)
        if moves or isinstance(op.kind, Pad):
            return replace(op, inputs=tuple(self._settle(v) for v in op.inputs))
        return replace(op, kind=Settle(known=True), inputs=(self.places[value],), bound=None)
