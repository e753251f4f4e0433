"""Which divisor a value's scale should have, so that averages can be added to other values.

The average of 9 positions has a scale that is 9 times a power of two. A linear gate may give its
result any scale: one that is added to such an average takes the same divisor, for free. What
remains, averages of different counts that meet, is multiplied out (:mod:`radiopaque.graph.emit`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import lcm

from radiopaque.graph import plan as p
from radiopaque.graph.draft import Combine, Linear, Op, Source, Sum, is_move

MOST = 1 << 12
"""Largest divisor that a gate takes over."""


@dataclass(frozen=True)
class Divisors:
    """``chosen``: the divisor of each gate that may choose; ``clashing``: values that meet others
    of another divisor all the same."""

    chosen: dict[int, int]
    clashing: frozenset[int]


def divisors(ops: Sequence[Op]) -> Divisors:
    """Choose divisors; each gate at most once, from the first meeting on."""
    chosen: dict[int, int] = {}
    while True:
        found, roots = _forwards(ops, chosen)
        wishes = {
            root: wanted
            for wanted, values in _meetings(ops, found)
            if wanted <= MOST
            for value in values
            if found[value] == 1 and (root := roots[value]) is not None and root not in chosen
        }
        if not wishes:
            break
        root = min(wishes)
        chosen[root] = wishes[root]
    clashing = {v for _, values in _meetings(ops, found) for v in values if found[v] > 1}
    return Divisors(chosen, frozenset(clashing))


def _forwards(ops: Sequence[Op], chosen: dict[int, int]) -> tuple[list[int], list[int | None]]:
    """For each value, its divisor and the gate that chose it, None where several meet."""
    found: list[int] = []
    roots: list[int | None] = []
    for number, op in enumerate(ops):
        if isinstance(op.kind, Linear | Source):
            found.append(chosen.get(number, 1))
            roots.append(number)
            continue
        own = lcm(*(found[v] for v in op.inputs))
        if isinstance(op.kind, Sum):
            own *= odd_part(op.kind.count)
        found.append(own)
        same = {roots[v] for v in op.inputs}
        roots.append(same.pop() if len(same) == 1 and own == found[op.inputs[0]] else None)
    return found, roots


def _meetings(ops: Sequence[Op], found: Sequence[int]) -> list[tuple[int, tuple[int, ...]]]:
    """Where values of different divisors meet: the common one, and the values."""
    meetings = []
    for op in ops:
        if not isinstance(op.kind, Combine) and not is_move(op, p.Concatenate):
            continue
        common = lcm(*(found[v] for v in op.inputs))
        if any(found[v] != common for v in op.inputs):
            meetings.append((common, op.inputs))
    return meetings


def odd_part(count: int) -> int:
    """What is left of a number without its factors of two."""
    return count // (count & -count)
