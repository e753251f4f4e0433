"""Mutants fit the tree as it is, and the runner tells a test that noticed from one that did not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.mutants import run
from tests.mutants.mutant import ROOT, Edit, Mutant, MutantError, read

MUTANTS = read()


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_fits_the_tree(mutant: Mutant) -> None:
    texts: dict[str, str] = {}
    for edit in mutant.edits:
        text = texts.get(edit.file) or (ROOT / edit.file).read_text()
        texts[edit.file] = edit.applied(text)
    assert texts
    assert mutant.tests
    for name in mutant.tests:
        path, *functions = name.split("::")
        text = (ROOT / path).read_text()
        assert all(f"def {function.partition('[')[0]}(" in text for function in functions)


def test_mutants_fail_for_what_they_leave_out_and_not_for_a_wrong_name(tmp_path: Path) -> None:
    for number, mutant in enumerate(MUTANTS):
        texts: dict[str, str] = {}
        for edit in mutant.edits:
            texts[edit.file] = edit.applied(texts.get(edit.file) or (ROOT / edit.file).read_text())
        for file, text in texts.items():
            if file.endswith(".py"):
                (tmp_path / f"{number:03}_{Path(file).name}").write_text(text)
    ruff = [sys.executable, "-m", "ruff", "check", "--isolated", "--select", "F821", "--quiet"]
    found = subprocess.run([*ruff, tmp_path], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout


def test_names_are_unique_and_every_promise_has_one() -> None:
    names = [mutant.name for mutant in MUTANTS]
    assert len(set(names)) == len(names)
    assert {mutant.promise for mutant in MUTANTS} == set(range(1, 16))


@pytest.mark.parametrize(
    ("edit", "text"),
    [
        (Edit("a.py", "x = 1", "x = 2"), "y = 1\n"),
        (Edit("a.py", "x = 1", "x = 2"), "x = 1\nx = 1\n"),
        (Edit("a.py", "x = 1", "x ="), "x = 1\n"),
        (Edit("a.py", "x = 1", "x = 1  # as it was"), "x = 1\n"),
    ],
    ids=["not there", "twice", "no Python", "nothing changes"],
)
def test_an_edit_that_does_not_fit(edit: Edit, text: str) -> None:
    with pytest.raises(MutantError):
        edit.applied(text)


_TESTS = """
import pytest
from guarded import refuses

@pytest.fixture
def broken():
    if not refuses(2):
        raise ValueError("no fixture")

def test_a_guard():
    assert refuses(2)

def test_something_else():
    assert refuses(3)

def test_a_fixture(broken):
    pass
"""


@pytest.mark.parametrize(
    ("new", "test", "noticed"),
    [
        ("return number > 2", "test_a_guard", True),
        ("return number > 2", "test_something_else", False),
        ("return number > 2", "test_a_fixture", False),
        ("return nothing > 2", "test_missing", False),
    ],
)
def test_the_runner(
    new: str, test: str, noticed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "ROOT", tmp_path / "checkout")
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    (checkout / "guarded.py").write_text("def refuses(number):\n    return number > 1\n")
    (checkout / "test_guarded.py").write_text(_TESTS)
    subprocess.run(["git", "init", "-q"], cwd=checkout, check=True)
    edit = Edit("guarded.py", "return number > 1", new)
    mutant = Mutant(1, "a guard", (f"test_guarded.py::{test}",), (edit,))
    tree = run.Tree(tmp_path / "copies")
    verdict = run.judge(mutant, tree)
    assert verdict.noticed is noticed, verdict.by
    assert tree.test(["test_guarded.py"], first=False).passed == 3
    assert "number > 1" in (checkout / "guarded.py").read_text()
