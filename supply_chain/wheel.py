"""Builds the wheel so that the same commit gives the same bytes, whoever builds it and where.

Tracked files alone are copied to a folder of their own, with modes that do not depend on the umask,
and the archive's times are the commit's. Nothing is fetched: setuptools is the environment's, whose
version is pinned in constraints/.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

NEEDED: Final = (
    *("pyproject.toml", "README.md", "LICENSE"),
    *("radiopaque", "crypto_provider", "model_owner", "data_owner", "training"),
)


def build(checkout: Path, output: Path) -> Path:
    """The wheel of ``checkout``'s tracked files, as they are now, in the folder ``output``.

    It replaces the wheels of other versions there: who installs ``radiopaque-*.whl`` gets this one.
    """
    with tempfile.TemporaryDirectory() as folder:
        source, made = Path(folder) / "source", Path(folder) / "made"
        for name in _git(checkout, "ls-files", "-z", "--", *NEEDED).split("\0"):
            if name and (checkout / name).is_file():
                _copy(checkout / name, source / name)
        epoch = os.environ.get("SOURCE_DATE_EPOCH")
        environment = {
            **os.environ,
            "SOURCE_DATE_EPOCH": epoch or _git(checkout, "log", "-1", "--format=%ct").strip(),
            "PYTHONHASHSEED": "0",
        }
        command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"]
        offline = ["--no-build-isolation", "--no-index", "--disable-pip-version-check"]
        subprocess.run(  # noqa: S603 - our own command
            [*command, *offline, "--wheel-dir", str(made), str(source)],
            env=environment,
            check=True,
        )
        (wheel,) = made.glob("*.whl")
        output.mkdir(parents=True, exist_ok=True)
        for older in output.glob(f"{wheel.name.partition('-')[0]}-*.whl"):
            older.unlink()
        return Path(shutil.copyfile(wheel, output / wheel.name))


def _copy(file: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
    shutil.copyfile(file, target)
    target.chmod(0o644)


def _git(checkout: Path, *words: str) -> str:
    done = subprocess.run(  # noqa: S603 - our own command
        ["git", "-C", str(checkout), *words],  # noqa: S607 - the developer's git
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def main() -> None:
    """Build into ``dist`` and print the digest."""
    wheel = build(Path.cwd(), Path("dist"))
    print(f"{hashlib.sha256(wheel.read_bytes()).hexdigest()}  {wheel}")


if __name__ == "__main__":
    main()
