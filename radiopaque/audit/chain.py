"""The form of the audit log, and its check: where a chain of lines breaks."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from radiopaque.errors import StoreError

HEAD_NAME: Final = "head"
MAX_LINE_BYTES: Final = 1 << 14
_ATTEMPTS: Final = 10
_SEGMENT: Final = re.compile(r"audit-(\d{12})\.jsonl")
_HEAD: Final = re.compile(rb"(\d{12}) ([0-9a-f]{64})\n")


@dataclass(frozen=True, slots=True)
class Head:
    """A line: its number, from 1, and its SHA-256 in hexadecimal."""

    number: int
    digest: str


EMPTY: Final = Head(0, "0" * 64)
"""In the place of a line before the first."""


@dataclass(frozen=True, slots=True)
class Break:
    """Where a chain does not hold: the file, the line of that file, and what is wrong there."""

    path: Path
    line: int
    reason: str

    def __str__(self) -> str:
        return f"{self.path.name}, line {self.line}: {self.reason}"


@dataclass(frozen=True, slots=True)
class Segment:
    """What a file holds: ``last`` and ``but_one`` are its last two whole lines, ``size`` the bytes
    of all whole lines, ``rest`` those of an unfinished one behind them."""

    first: int
    last: Head
    but_one: Head
    size: int
    rest: int
    found: bool
    broken: Break | None


@dataclass(frozen=True, slots=True)
class Report:
    """The outcome of a check. ``first``: number of the first line that is still here.

    ``found`` says whether the line that was asked for is there; ``unfinished``, that the last line
    is not whole, as a crash leaves it.
    """

    lines: int
    first: int
    head: Head
    unfinished: bool
    found: bool
    broken: Break | None

    @property
    def holds(self) -> bool:
        """Whether nothing is wrong."""
        return self.broken is None and self.found


def digest(line: bytes) -> str:
    """SHA-256 of a line with its newline, in hexadecimal."""
    return hashlib.sha256(line).hexdigest()


def segments(folder: Path) -> list[Path]:
    """The log's files in their order."""
    return sorted(path for path in folder.iterdir() if _SEGMENT.fullmatch(path.name))


def segment_name(number: int) -> str:
    """Of the segment that begins with this line."""
    return f"audit-{number:012d}.jsonl"


def first_number(path: Path) -> int:
    """Number of the first line, by a segment's name. Raises StoreError."""
    match = _SEGMENT.fullmatch(path.name)
    if match is None:
        raise StoreError(f"{path} is no file of an audit log, which are named audit-NUMBER.jsonl")
    return int(match[1])


def parse_head(data: bytes, folder: Path) -> Head:
    """What the head file says; empty for a new log. Raises StoreError."""
    if not data:
        return EMPTY
    match = _HEAD.fullmatch(data)
    if match is None:
        raise StoreError(
            f"the head of the audit log in {folder} is damaged; keep the folder as it is, look "
            "into what happened, and move it away for the party to begin another log"
        )
    return Head(int(match[1]), match[2].decode("ascii"))


def verify(path: Path, contains: str | None = None) -> Report:
    """Check a whole log, given its folder, or one of its files and what follows it.

    ``contains`` is the hash of a line that must be there. Raises StoreError for what is no log.
    """
    try:
        if not path.exists():
            raise StoreError(f"{path} does not exist; a log is the folder audit in a party's store")
        folder = path if path.is_dir() else path.parent
        paths = segments(folder)
        if path != folder:
            first_number(path)
            paths = paths[paths.index(path) :]
        if not paths:
            raise StoreError(f"there is no audit log in {folder}; check the path")
        for _ in range(_ATTEMPTS):
            head = parse_head((folder / HEAD_NAME).read_bytes(), folder)
            report = _verify(paths, head, contains)
            if parse_head((folder / HEAD_NAME).read_bytes(), folder) == head:
                break
            # its party is writing
            paths = [paths[0], *(one for one in segments(folder) if one > paths[0])]
        return report
    except (OSError, ValueError) as error:
        raise StoreError(
            f"cannot read the audit log {path}: {_why(error)}; a log is a folder with the file "
            f"{HEAD_NAME} and files named audit-NUMBER.jsonl"
        ) from error


def _why(error: OSError | ValueError) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error)


def _verify(paths: list[Path], head: Head, contains: str | None) -> Report:
    before: Head | None = None
    found = contains is None
    for path in paths:
        segment = check_segment(path, before, contains)
        before, found = segment.last, found or segment.found
        broken = segment.broken
        if broken is None and segment.rest and path != paths[-1]:
            broken = Break(path, segment.last.number - segment.first + 2, "the line is cut")
        if broken is None and path == paths[-1]:
            broken = against_head(path, segment, head)
        if broken is not None:
            break
    first = first_number(paths[0])
    return Report(
        segment.last.number - first + 1, first, segment.last, segment.rest > 0, found, broken
    )


def against_head(path: Path, segment: Segment, head: Head) -> Break | None:
    """What is wrong with the end of a log: the head is its last line, or the one before.

    The head is written after the line: whoever looks in between, or after a crash, sees it behind.
    """
    if head in (segment.last, segment.but_one):
        return None
    line = segment.last.number - segment.first + 2
    if head.number > segment.last.number:
        return Break(
            path,
            line,
            f"the end was cut: the head counts {head.number} lines, this is where "
            f"{segment.last.number} end",
        )
    return Break(path, line - 1, f"the last line is not the one that the head names, {head.number}")


def check_joints(paths: list[Path]) -> tuple[Head | None, Break | None]:
    """Whether each file begins where the one before it ended, by their first and last lines alone.

    Returns the end of the last file but one, where there is one, and what is wrong.
    """
    before = None
    for path, following in pairwise(paths):
        before, due = _end(path), first_number(following)
        if before is None:
            return before, Break(path, due - first_number(path), "the line is cut or missing")
        if before.number != due - 1:
            return before, Break(following, 1, _missing(before.number + 1, due - 1))
        first = next(_lines(following), b"")
        if first and _links(first) != (due, before.digest):
            return before, Break(following, 1, _unlinked(1))
    return before, None


def _end(path: Path) -> Head | None:
    """The last line of a file, None where it is not whole."""
    with path.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - MAX_LINE_BYTES))
        line = file.read().splitlines(keepends=True)[-1:]
    number = _links(line[0])[0] if line and line[0].endswith(b"\n") else None
    return None if number is None else Head(number, digest(line[0]))


def _unlinked(line: int) -> str:
    """Of a line of a file that does not hold the hash of the one before."""
    before = f"line {line - 1}" if line > 1 else "the last line of the file before"
    return f"it does not hold the hash of {before}: {before} or line {line} was changed"


def _missing(first: int, last: int) -> str:
    return f"lines {first} to {last} are missing before this file"


def check_segment(path: Path, before: Head | None, contains: str | None = None) -> Segment:
    """Follow the chain through one file, up to its first break.

    ``before`` is the line before its first one, None where that is not known.
    """
    first = first_number(path)
    last = but_one = before or (EMPTY if first == 1 else Head(first - 1, ""))
    size = rest = 0
    found = False

    def result(reason: str | None) -> Segment:
        broken = None if reason is None else Break(path, last.number - first + 2, reason)
        return Segment(first, last, but_one, size, rest, found, broken)

    if last.number != first - 1:
        return result(_missing(last.number + 1, first - 1))
    for line in _lines(path):
        if not line.endswith(b"\n"):
            rest = len(line)
            return result("the line is too long" if rest >= MAX_LINE_BYTES else None)
        number, previous = _links(line)
        if number != last.number + 1:
            return result(f"the line numbered {last.number + 1} is due, not {number}")
        if last.digest and previous != last.digest:
            return result(_unlinked(last.number - first + 2))
        if not last.digest:
            last = Head(last.number, previous or "")
        but_one, last = last, Head(last.number + 1, digest(line))
        size += len(line)
        found = found or last.digest == contains
    return result(None)


def _lines(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while line := file.readline(MAX_LINE_BYTES):
            yield line


def _links(line: bytes) -> tuple[int | None, str | None]:
    """A line's own number and the hash that it holds; None for what is not there."""
    try:
        entry: Any = json.loads(line)
    except (ValueError, RecursionError):
        return None, None
    if not isinstance(entry, dict):
        return None, None
    number, previous = entry.get("number"), entry.get("previous")
    return (
        number if type(number) is int else None,
        previous if isinstance(previous, str) and len(previous) == 64 else None,
    )
