"""What goes into a release: licences, pins, the bill of materials, the same bytes twice."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import tomllib
import venv
import zipfile
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

import radiopaque
from radiopaque.engine.crypten.process import VERSION
from supply_chain import licences, sbom, wheel
from supply_chain.licences import Package

ROOT = Path(__file__).parents[3]
KINDS = (".py", ".pyi", ".typed", ".toml", ".md", ".css", ".html", "")
PINNED = {"parties.txt": 40, "tests.txt": 40, "crypten.txt": 1}
"""The files, and least packages of each."""


def package(name: str, *requires: str, expression: str | None = None, **more: Any) -> Package:
    return Package(name, requires, expression, more.get("classifiers", ()))


def test_what_is_installed_passes_the_gate() -> None:
    packages = list(licences.shipped(licences.asked_for(ROOT / "pyproject.toml")))
    assert {"numpy", "grpcio", "protobuf", "prometheus-client"} <= {one.name for one in packages}
    assert licences.problems(packages) == []


@pytest.mark.parametrize(
    ("expression", "passes"),
    [
        ("MIT", True),
        ("GPL-3.0-only", False),
        ("MIT OR GPL-3.0-only", True),
        ("GPL-3.0-only OR MIT", True),
        ("MIT AND GPL-3.0-only", False),
        ("GPL-3.0-only AND MIT", False),
        ("MIT OR Apache-2.0 AND GPL-3.0-only", True),
        ("(MIT OR Apache-2.0) AND GPL-3.0-only", False),
        ("(MIT AND (BSD-3-Clause OR AGPL-3.0-only))", True),
        ("Apache-2.0 WITH LLVM-exception", True),
        ("GPL-2.0-only WITH Classpath-exception-2.0", False),
        ("UNKNOWN", False),
        ("", False),
        ("MIT AND", False),
        ("(MIT", False),
        ("MIT MIT", False),
        ("Copyright (c) somebody. All rights reserved.", False),
    ],
)
def test_expressions(expression: str, passes: bool) -> None:
    assert licences.admitted(expression) is passes
    assert (licences.problem(package("x", expression=expression)) is None) is passes


def test_classifiers_and_packages_that_say_nothing() -> None:
    mit, gpl = "MIT License", "GNU General Public License v3 (GPLv3)"
    assert licences.problem(package("x", classifiers=(mit,))) is None
    assert "GNU" in str(licences.problem(package("x", classifiers=(gpl,))))
    assert licences.problem(package("x", classifiers=(mit, gpl))) is not None
    assert "say nothing" in str(licences.problem(package("x")))
    assert licences.problem(package("psycopg", expression="LGPL-3.0-only")) is None


def test_the_gate_follows_extras_and_what_they_bring() -> None:
    world = {
        "a": package("a", "deep", "no; sys_platform == 'none'"),
        "b": package("b", "c; extra == 'x'", "d; extra == 'y'"),
        **{name: package(name) for name in ("c", "d", "deep", "no")},
    }
    found = [one.name for one in licences.shipped(["a>=1", "b[x]", "absent"], world.get)]
    assert sorted(found) == ["a", "b", "c", "deep"]
    assert len(licences.problems(licences.shipped(["a", "b[x]"], world.get))) == 4


def test_the_gate_covers_every_extra_that_is_not_for_development() -> None:
    asked = licences.asked_for(ROOT / "pyproject.toml")
    assert any(text.startswith("opentelemetry-sdk") for text in asked)
    assert any(text.startswith("numpy") for text in asked)
    assert not any(text.startswith(("pytest", "ruff")) for text in asked)


@pytest.mark.parametrize("name", PINNED)
def test_everything_is_pinned_with_hashes_and_no_index_is_named(name: str) -> None:
    text = (ROOT / "constraints" / name).read_text()
    assert "://" not in text
    lines = [line for line in text.replace("\\\n", " ").splitlines() if line[:1] not in ("#", "")]
    for line in lines:
        assert re.fullmatch(
            r"[a-z0-9._-]+==[A-Za-z0-9.+!]+( ; [^#-]+)?(\s+--hash=sha256:[0-9a-f]{64})+\s*", line
        ), line
    assert len(lines) >= PINNED[name]


def test_the_pins_are_what_the_project_asks_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = {
        "parties.txt": [
            *project["dependencies"],
            *(text for name in ("dicom", "otel", "postgresql") for text in extras.get(name, ())),
        ],
        "tests.txt": [*project["dependencies"], *extras["dev"]],
    }
    for name, texts in wanted.items():
        pins = sbom.pins((ROOT / "constraints" / name).read_text())
        for needed in map(Requirement, texts):
            if needed.name in ("radiopaque", "torch"):
                continue
            pinned = pins[licences.normalised(needed.name)][0]
            assert needed.specifier.contains(pinned, prereleases=True), needed
    parties = sbom.pins((ROOT / "constraints" / "parties.txt").read_text())
    assert not {"torch", "pytest", "flwr"} & set(parties)


def test_crypten_is_pinned_as_the_engine_asks_for_it() -> None:
    """And installed from there for the tests."""
    assert set(sbom.pins((ROOT / "constraints" / "crypten.txt").read_text())) == {"crypten"}
    assert sbom.pins((ROOT / "constraints" / "crypten.txt").read_text())["crypten"][0] == VERSION
    command = "--no-deps --require-hashes --requirement constraints/crypten.txt"
    for path in ("Makefile", "docs/crypten-engine.md"):
        assert command in (ROOT / path).read_text()
        assert "--no-deps crypten" not in (ROOT / path).read_text()


BOM = {
    "metadata": {"component": {"bom-ref": "root", "name": "radiopaque"}},
    "components": [
        {"bom-ref": "a", "name": "A.b", "version": "1", "licenses": []},
        {"bom-ref": "t", "name": "tool", "version": "9"},
    ],
    "dependencies": [
        {"ref": "root", "dependsOn": ["a", "t"]},
        {"ref": "a", "dependsOn": ["t"]},
        {"ref": "t"},
    ],
}


def test_the_bill_of_materials_is_what_is_pinned() -> None:
    pins = sbom.pins("# c\na-b==1 ; x \\\n    --hash=sha256:" + "0" * 64 + "\n")
    assert pins == {"a-b": ("1", ["0" * 64])}
    reduced = sbom.reduced(BOM, pins)
    (component,) = reduced["components"]
    assert component["externalReferences"][0]["hashes"][0]["content"] == "0" * 64
    assert reduced["dependencies"] == [
        {"ref": "root", "dependsOn": ["a"]},
        {"ref": "a", "dependsOn": []},
    ]
    assert reduced["metadata"]["component"]["version"] == radiopaque.__version__
    with pytest.raises(SystemExit, match="not installed as pinned: a-b"):
        sbom.reduced(BOM, {"a-b": ("2", [])})


def test_two_runs_give_the_same_bill_of_materials(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of an environment with nothing in it, which is quick. No time and no number of a run."""
    monkeypatch.chdir(ROOT)
    venv.create(tmp_path / "environment")
    python = str(tmp_path / "environment" / "bin" / "python")
    first = sbom.described(python)
    assert json.loads(first)["specVersion"] == "1.6"
    assert sbom.described(python) == first


@pytest.fixture
def checkouts(tmp_path: Path) -> list[Path]:
    """Two clones of what a wheel is made of: other folders, times, modes and leftovers."""
    there = [path for name in wheel.NEEDED for path in (ROOT / name, *(ROOT / name).rglob("*"))]
    listed = [path.relative_to(ROOT) for path in there if path.is_file() and path.suffix in KINDS]
    made = []
    for name, umask in (("one", 0o022), ("another-place", 0o077)):
        before = os.umask(umask)
        folder = tmp_path / name
        for file in listed:
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / file, folder / file)
        subprocess.run(["git", "init", "-q", folder], check=True)
        subprocess.run(["git", "-C", folder, "add", "-A"], check=True)
        author = ["-c", "user.name=x", "-c", "user.email=x@example.com"]
        dates = dict.fromkeys(("GIT_AUTHOR_DATE", "GIT_COMMITTER_DATE"), "1700000000 +0000")
        subprocess.run(
            ["git", "-C", folder, *author, "commit", "-q", "-m", "x"],
            check=True,
            env={**os.environ, **dates},
        )
        os.umask(before)
        made.append(folder)
    for path in made[1].rglob("*.py"):
        os.utime(path, (1, 1))
    (made[1] / "radiopaque" / "untracked.py").write_text("raise SystemExit")
    (made[1] / "build" / "lib" / "radiopaque").mkdir(parents=True)
    (made[1] / "build" / "lib" / "radiopaque" / "stale.py").write_text("")
    return made


def test_the_same_files_give_the_same_wheel(
    checkouts: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SOURCE_DATE_EPOCH", raising=False)
    older = tmp_path / "wheel-one" / "radiopaque-0.0.1-py3-none-any.whl"
    older.parent.mkdir()
    older.touch()
    wheels = [wheel.build(checkout, tmp_path / f"wheel-{checkout.name}") for checkout in checkouts]
    digests = {hashlib.sha256(made.read_bytes()).hexdigest() for made in wheels}
    assert len(digests) == 1
    assert list(older.parent.iterdir()) == [wheels[0]]
    with zipfile.ZipFile(wheels[0]) as archive:
        names = archive.namelist()
        assert {one.date_time[0] for one in archive.infolist()} == {2023}
    assert "radiopaque/cli/main.py" in names
    assert "radiopaque/operations/doctor/run.py" in names
    assert not any(name.startswith(("tests/", "benchmarks/", "supply_chain/")) for name in names)
    assert not any("untracked" in name or "stale" in name for name in names)
