"""The files under deploy/ as far as they can be read here: units, container files, the port table.

They are not run here: that takes systemd as process 1 and a container engine. docs/guarantees.md
says when they were.
"""

from __future__ import annotations

import configparser
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from radiopaque import config
from radiopaque.certificates import Role
from radiopaque.cli.main import COMMANDS

ROOT = Path(__file__).parents[3]
SERVING = [Role.CRYPTO_PROVIDER, Role.MODEL_OWNER]
CONTAINERS = ROOT / "deploy" / "containers"
CONFIGS: dict[Role, type[config.CryptoProviderConfig | config.ModelOwnerConfig]] = {
    Role.CRYPTO_PROVIDER: config.CryptoProviderConfig,
    Role.MODEL_OWNER: config.ModelOwnerConfig,
}


def unit_of(role: Role) -> Path:
    return ROOT / "deploy" / "systemd" / f"radiopaque-{role}.service"


@pytest.mark.parametrize("role", SERVING)
def test_units_are_closed(role: Role) -> None:
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[method-assign, assignment]
    parser.read(unit_of(role))
    service = dict(parser["Service"])
    assert service["User"] == "radiopaque"
    assert service["UMask"] == "0077"
    assert service["LimitCORE"] == "0"
    assert service["MemorySwapMax"] == "0"
    assert service["CapabilityBoundingSet"] == ""
    assert service["StateDirectoryMode"] == "0700"
    assert service["ProtectSystem"] == "strict"
    for setting in ("NoNewPrivileges", "PrivateTmp", "PrivateDevices", "ProtectHome"):
        assert service[setting] == "yes", setting
    for setting in ("RestrictNamespaces", "RestrictSUIDSGID", "ProtectKernelTunables"):
        assert service[setting] == "yes", setting
    grace = CONFIGS[role].model_fields["grace_seconds"].default
    assert float(service["TimeoutStopSec"]) > grace + 10
    words = service["ExecStart"].split()
    assert words[1:3] == [str(role), "serve"]
    assert words[1] in COMMANDS


@pytest.mark.parametrize("role", SERVING)
@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_finds_nothing_wrong_with_them(role: Role) -> None:
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", unit_of(role)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    said = [line for line in done.stderr.splitlines() if unit_of(role).name in line]
    # the program lies where the guide puts it, not on this machine
    assert all("is not executable: No such file" in line for line in said), said


def services() -> dict[str, Any]:
    return dict(yaml.safe_load((CONTAINERS / "compose.yaml").read_text())["services"])


def test_three_parties_without_privileges() -> None:
    assert set(services()) == {str(role) for role in Role}
    for name, service in services().items():
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["read_only"] is True, name
        assert not service["user"].startswith("0"), name
        assert service["ulimits"]["core"] == 0, name
        # each party sees its own configuration alone
        mounted = [one.split(":")[0] for one in service["volumes"] if "/etc/radiopaque" in one]
        assert mounted == [f"./config/{name}"], name
        assert service["command"][0] == name
    for role in SERVING:
        assert services()[role]["command"][1] == "serve"
        grace = CONFIGS[role].model_fields["grace_seconds"].default
        assert int(services()[role]["stop_grace_period"].removesuffix("s")) > grace + 10
    assert "ports" not in services()["data-owner"]


def test_no_party_shares_a_volume_with_another() -> None:
    named = [one.split(":")[0] for service in services().values() for one in service["volumes"]]
    assert len(named) == len(set(named))


def test_the_image_installs_what_was_tested_and_runs_as_nobody() -> None:
    text = (CONTAINERS / "Containerfile").read_text().replace("\\\n", " ")
    installs = list(re.findall(r"pip install[^&\n]*", text))
    assert len(installs) == 2
    assert "--require-hashes" in installs[0]
    assert "--no-deps --no-index" in installs[1]
    # keys and images that lie in a checkout are not sent to the engine
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    admitted = [line for line in ignored if not line.startswith("#")]
    assert admitted.pop(0) == "*"
    assert len(admitted) == 2
    for source in re.findall(r"^COPY (?!--from)(\S+)", text, re.MULTILINE):
        assert source.startswith("dist/") or (ROOT / source).exists(), source
        assert f"!{source}" in admitted, source
    last = text[text.rindex("FROM ") :]
    assert re.search(r"^USER 10001:10001$", last, re.MULTILINE)
    assert last.index("USER") > last.index("RUN")


def test_the_port_table_is_that_of_the_configuration() -> None:
    text = (ROOT / "docs" / "operations.md").read_text()
    for role, settings in CONFIGS.items():
        fields = settings.model_fields
        metrics = fields["metrics"].examples
        assert metrics is not None
        for field, value in (
            ("listen", fields["listen"].default),
            ("metrics", metrics[0]),
        ):
            port = value.rpartition(":")[2]
            row = rf"^\| {port} \| {str(role).replace('-', ' ')} \| `{field}`"
            assert re.search(row, text, re.MULTILINE), (role, field)
