"""What a serving party has in its store, as its service reports it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from radiopaque.ledger import State


@dataclass(frozen=True, slots=True)
class Stock:
    """Sessions that are not over, by state; bytes of prepared material, and how many there may be.

    ``material_bytes`` and ``material_limit`` are zero at a party that keeps none.
    """

    sessions: Mapping[State, int]
    material_bytes: int = 0
    material_limit: int = 0
