"""Copies of the tree, mutants put into them, and what the tests say."""

from __future__ import annotations

import os
import queue
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from xml.etree import ElementTree

from tests.mutants.mutant import ROOT, Mutant

SECONDS: Final = 300.0
"""Longest run for one mutant; one that takes longer was not noticed."""


@dataclass(frozen=True)
class Tested:
    """What pytest said: names of tests by their outcome, or why there is nothing."""

    failed: tuple[str, ...]
    passed: int
    skipped: int
    trouble: str = ""


@dataclass(frozen=True)
class Verdict:
    """Whether the tests noticed that the guard was out, and which of them did first."""

    promise: int
    name: str
    noticed: bool
    by: str
    seconds: float


class Tree:
    """A copy of the checkout, with what is not committed yet, that mutants are put into."""

    def __init__(self, parent: Path) -> None:
        self._parent = parent
        self._root = parent / "tree"
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT,
            check=True,
            capture_output=True,
        ).stdout.decode()
        for name in filter(None, listed.split("\0")):
            self._copy(ROOT / name)
        # parties start in time on a busy machine where their loops are compiled already
        for compiled in ROOT.glob("radiopaque/kernels/__pycache__/*.nb?"):
            self._copy(compiled)
        shared = ROOT.parent / "shared"
        if shared.is_dir():
            (parent / "shared").symlink_to(shared)

    def _copy(self, path: Path) -> None:
        if path.is_file():
            copied = self._root / path.relative_to(ROOT)
            copied.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, copied)

    def test(self, names: Iterable[str], *, first: bool) -> Tested:
        """Run tests in the copy; ``first``: until one fails."""
        report = self._parent / "report.xml"
        report.unlink(missing_ok=True)
        arguments = ["-q", "-p", "no:cacheprovider", "-m", "", f"--junit-xml={report}"]
        environment = os.environ | {
            "PYTHONPATH": str(self._root),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        process = subprocess.Popen(
            [sys.executable, "-m", "pytest", *arguments, *(["-x"] if first else []), *names],
            cwd=self._root,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            process.wait(SECONDS if first else None)
        except subprocess.TimeoutExpired:
            return Tested((), 0, 0, f"no end within {SECONDS:.0f} s")
        finally:
            # with the parties that its tests may have left behind
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if process.returncode not in (0, 1) or not report.exists():
            return Tested((), 0, 0, f"pytest ended with {process.returncode}")
        return _read(report)

    def mutated(self, mutant: Mutant) -> Tested:
        """Put one mutant in, run its tests, take it out again."""
        kept = {
            path: (path.read_bytes(), path.stat().st_mtime_ns)
            for path in (self._root / edit.file for edit in mutant.edits)
        }
        try:
            for edit in mutant.edits:
                edit.apply(self._root)
            return self.test(mutant.tests, first=True)
        finally:
            for path, (content, changed_ns) in kept.items():
                path.write_bytes(content)
                # or loops that were compiled from it would be compiled again
                os.utime(path, ns=(changed_ns, changed_ns))


def _read(report: Path) -> Tested:
    cases = list(ElementTree.parse(report).iter("testcase"))
    failed = tuple(case.get("name", "") for case in cases if case.find("failure") is not None)
    skipped = sum(case.find("skipped") is not None for case in cases)
    errors = [case.get("name", "") for case in cases if case.find("error") is not None]
    trouble = f"no test, but its fixture failed: {errors[0]}" if errors and not failed else ""
    return Tested(failed, len(cases) - len(failed) - skipped - len(errors), skipped, trouble)


def judge(mutant: Mutant, tree: Tree) -> Verdict:
    """Take one guard out. A test has to fail; one that could not even begin has noticed nothing."""
    begun = time.monotonic()
    tested = tree.mutated(mutant)
    by = tested.failed[0] if tested.failed else tested.trouble or f"{tested.passed} tests passed"
    return Verdict(mutant.promise, mutant.name, bool(tested.failed), by, time.monotonic() - begun)


def judge_all(
    mutants: list[Mutant], parent: Path, jobs: int, tell: Callable[[Verdict], None]
) -> list[Verdict]:
    """All of them, ``jobs`` side by side, each in a copy of the tree; in their order."""
    trees: queue.SimpleQueue[Tree] = queue.SimpleQueue()
    for number in range(jobs):
        trees.put(Tree(parent / str(number)))

    def one(mutant: Mutant) -> Verdict:
        tree = trees.get()
        try:
            verdict = judge(mutant, tree)
        finally:
            trees.put(tree)
        tell(verdict)
        return verdict

    with ThreadPoolExecutor(jobs) as pool:
        return list(pool.map(one, mutants))
