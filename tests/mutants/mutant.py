"""What a mutant is, and how it is read."""

from __future__ import annotations

import ast
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).parents[2]
_FOLDER: Final = Path(__file__).parent
_FILE: Final = re.compile(r"(?P<promise>\d\d)_\w+\.toml")


class MutantError(Exception):
    """A mutant that does not fit the tree."""


@dataclass(frozen=True)
class Edit:
    """One place: the lines ``old`` of ``file``, there exactly once, become ``new``."""

    file: str
    old: str
    new: str

    def apply(self, root: Path) -> None:
        """Change the file under ``root``; raises MutantError where it does not fit."""
        path = root / self.file
        path.write_text(self.applied(path.read_text()))

    def applied(self, text: str) -> str:
        """The text of the file with this edit; raises MutantError where it does not fit."""
        found = text.count(self.old)
        if found != 1:
            raise MutantError(f"{self.file}: found {found} times: {self.old!r}")
        changed = text.replace(self.old, self.new)
        if self.file.endswith(".py"):
            try:
                same = ast.dump(ast.parse(changed)) == ast.dump(ast.parse(text))
            except SyntaxError as error:
                raise MutantError(f"{self.file}: no Python any more: {error}") from error
            if same:
                raise MutantError(f"{self.file}: nothing changes: {self.new!r}")
        return changed


@dataclass(frozen=True)
class Mutant:
    """One guard taken out: ``name`` is unique, ``tests`` are what pytest is given."""

    promise: int
    name: str
    tests: tuple[str, ...]
    edits: tuple[Edit, ...]


def _parse(promise: int, entry: dict[str, Any]) -> Mutant:
    edits = tuple(Edit(**edit) for edit in entry["edit"])
    return Mutant(promise, entry["name"], tuple(entry["tests"]), edits)


def read(folder: Path = _FOLDER) -> list[Mutant]:
    """All mutants, in the order of the promises."""
    mutants = []
    for path in sorted(folder.glob("*.toml")):
        matched = _FILE.fullmatch(path.name)
        if matched is None:
            raise MutantError(f"{path.name} is not named like 06_cancellation.toml")
        entries = tomllib.loads(path.read_text())["mutant"]
        mutants += [_parse(int(matched["promise"]), entry) for entry in entries]
    return mutants
