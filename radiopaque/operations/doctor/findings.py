"""What a check found, and what to do about it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from enum import StrEnum

from radiopaque.errors import RadiopaqueError


class Level(StrEnum):
    """How a check came out: fine; works now, look at it; does not work, or is not safe."""

    PASS = "pass"  # noqa: S105 - no password
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line. ``remedy`` says what to do, and is empty where nothing is to be done."""

    check: str
    level: Level
    text: str
    remedy: str = ""

    def document(self) -> dict[str, str]:
        """As JSON takes it."""
        return asdict(self)


def fine(check: str, text: str) -> Finding:
    return Finding(check, Level.PASS, text)


def warn(check: str, text: str, remedy: str) -> Finding:
    return Finding(check, Level.WARN, text, remedy)


def fail(check: str, text: str, remedy: str) -> Finding:
    return Finding(check, Level.FAIL, text, remedy)


def attempt(check: str, look: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """The findings of ``look``; an error of ours is one more, since it says what to do itself."""
    try:
        yield from look()
    except RadiopaqueError as error:
        message = str(error)
        # a list of problems has its remedies in its lines
        text, _, remedy = (message, "", "") if "\n" in message else message.partition("; ")
        yield fail(check, text, remedy or "correct what the message names")
