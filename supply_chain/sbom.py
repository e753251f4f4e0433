"""The bill of materials, CycloneDX: what the parties of a deployment run, with licences and hashes.

The environment's packages as cyclonedx-bom describes them, less those that only development needs,
with the version of radiopaque and the hashes of constraints/parties.txt.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import radiopaque
from supply_chain.licences import normalised

PINS: Final = Path("constraints/parties.txt")


def pins(text: str) -> dict[str, tuple[str, list[str]]]:
    """By package: the version and the SHA-256 digests of its files."""
    found: dict[str, tuple[str, list[str]]] = {}
    name = ""
    for line in text.splitlines():
        if pinned := re.match(r"([A-Za-z0-9._-]+)==([^ ;\\]+)", line):
            name = normalised(pinned[1])
            found[name] = (pinned[2], [])
        elif digest := re.search(r"--hash=sha256:([0-9a-f]{64})", line):
            found[name][1].append(digest[1])
    return found


def reduced(bom: dict[str, Any], pinned: dict[str, tuple[str, list[str]]]) -> dict[str, Any]:
    """The bill of materials of what is pinned alone.

    Raises SystemExit where a pinned package is not in the environment at that version.
    """
    root = bom["metadata"]["component"]
    root["version"] = radiopaque.__version__
    kept = [one for one in bom["components"] if normalised(one["name"]) in pinned]
    there = {normalised(one["name"]): one["version"] for one in kept}
    other = [name for name, (version, _) in pinned.items() if there.get(name) != version]
    if other:
        raise SystemExit(f"not installed as pinned: {', '.join(sorted(other))}; make constraints")
    for one in kept:
        digests = pinned[normalised(one["name"])][1]
        one["externalReferences"] = [
            *(link for link in one.get("externalReferences", ()) if link["type"] != "distribution"),
            {
                "type": "distribution",
                "url": f"pkg:pypi/{one['name']}@{one['version']}",
                "hashes": [{"alg": "SHA-256", "content": digest} for digest in digests],
            },
        ]
    references = {root["bom-ref"], *(one["bom-ref"] for one in kept)}
    dependencies = [
        {**one, "dependsOn": [to for to in one.get("dependsOn", ()) if to in references]}
        for one in bom["dependencies"]
        if one["ref"] in references
    ]
    return {**bom, "components": kept, "dependencies": dependencies}


def described(python: str) -> bytes:
    """All packages of the environment of an interpreter, as CycloneDX; the same bytes each time."""
    command = [sys.executable, "-m", "cyclonedx_py", "environment", "--output-reproducible"]
    more = ["--pyproject", "pyproject.toml", "--of", "JSON", "-o", "-", python]
    return subprocess.run([*command, *more], capture_output=True, check=True).stdout  # noqa: S603


def main() -> None:
    """Write dist/radiopaque.cdx.json."""
    bom = reduced(json.loads(described(sys.executable)), pins(PINS.read_text()))
    output = Path("dist/radiopaque.cdx.json")
    output.parent.mkdir(exist_ok=True)
    output.write_text(json.dumps(bom, indent=1, sort_keys=True) + "\n")
    print(f"{output}: {len(bom['components'])} components")


if __name__ == "__main__":
    main()
