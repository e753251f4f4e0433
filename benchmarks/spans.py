"""Files of spans: what each party wrote down of where its time went."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from radiopaque.certificates import Role
from radiopaque.telemetry import Span


def save(path: Path, spans: Iterable[Span]) -> None:
    """Write spans as JSON."""
    path.write_text(json.dumps(list(spans), separators=(",", ":")))


def load(path: Path) -> list[Span]:
    """Read what :func:`save` wrote, in order of time."""
    return sorted((Span(*fields) for fields in json.loads(path.read_text())), key=_begin)


def load_all(folder: Path) -> dict[Role, list[Span]]:
    """The spans of every party that has ended."""
    return {role: load(folder / f"{role}.spans") for role in Role}


def _begin(span: Span) -> tuple[int, int]:
    return span.begin, -span.end
