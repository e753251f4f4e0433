"""Small plans for the tests, step by step."""

from __future__ import annotations

import random
from math import prod

from radiopaque.graph import plan as p

Shape = tuple[int, ...]


class PlanBuilder:
    """Collects steps; values are named by their numbers, as in the plan itself."""

    def __init__(
        self,
        ring_bits: int,
        shape: Shape,
        limit: int | None = None,
        fraction_bits: int = 0,
        name: str = "test",
    ) -> None:
        self.ring_bits = ring_bits
        self.full = (1 << (ring_bits - 1)) - 1
        self._name = name
        self._steps = [
            p.Step(p.Input(), (), shape, fraction_bits, limit=self.full if limit is None else limit)
        ]

    @property
    def last(self) -> int:
        """The number of the newest value."""
        return len(self._steps) - 1

    def add(
        self,
        gate: p.Gate,
        *inputs: int,
        shape: Shape | None = None,
        limit: int | None = None,
        fraction_bits: int = 0,
    ) -> int:
        """Append a step; shape and limit are the first input's unless given. Returns its number."""
        first = self._steps[inputs[0]]
        self._steps.append(
            p.Step(
                gate,
                inputs,
                first.shape if shape is None else shape,
                fraction_bits,
                limit=first.limit if limit is None else limit,
            )
        )
        return self.last

    def finish(self, bits: int | None = None, position: int = 0, fraction_bits: int = 0) -> p.Plan:
        """Reveal the last value: by default as many of its low bits as an output may have."""
        bits = min(self.ring_bits, 63) if bits is None else bits
        last = self.last
        if self._steps[last].limit >= 1 << (position + bits - 1):
            # what is tested here is arithmetic mod 2**bits; the promise only has to fit the window
            step = self._steps[last]
            self._steps[last] = p.Step(
                step.gate, step.inputs, step.shape, step.fraction_bits, limit=1
            )
        self.add(p.Output(bits, position), last, limit=0, fraction_bits=fraction_bits)
        return p.Plan(self.ring_bits, self._name, "1", tuple(self._steps))


def product_plan(columns: int, rows: int, ring_bits: int = 64) -> p.Plan:
    """One row by a matrix: a plan of some bytes for weights of any size."""
    builder = PlanBuilder(ring_bits, (1, rows), limit=1)
    builder.add(p.MatrixProduct(columns), 0, shape=(1, columns))
    return builder.finish()


def edge_values(limit: int, shift: int, count: int, rng: random.Random) -> list[int]:
    """Range ends and rounding borders, then random numbers of every magnitude; exact as floats."""
    unit = 1 << shift
    edges = [0, limit, -limit, 1, -1, unit, -unit, unit - 1, 1 - unit, unit + 1, -1 - unit]
    edges += [2 * unit - 1, 1 - 2 * unit, limit - unit, unit - limit, limit // 2, -(limit // 2)]
    edges += [limit - 1, 1 - limit, 3 * unit + unit // 2, -3 * unit - unit // 2]
    values = [v for v in dict.fromkeys(edges) if abs(v) <= limit and int(float(v)) == v]
    while len(values) < count:
        v = rng.randint(-limit, limit) >> rng.randrange(limit.bit_length())
        v = v >> max(0, v.bit_length() - 53) << max(0, v.bit_length() - 53)
        if abs(v) <= limit:
            values.append(v)
    return values[:count]


def ring_values(bits: int, count: int, rng: random.Random) -> list[int]:
    """Signed ring elements: edges first, then uniform ones."""
    half = 1 << (bits - 1)
    edges = [1, -1, 0, half - 1, -half, 2, -2, 1 << (bits // 2), half // 3]
    return (edges + [rng.randrange(-half, half) for _ in range(count)])[:count]


def elements(shape: Shape) -> int:
    """Number of elements."""
    return prod(shape)
