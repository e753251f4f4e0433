"""Configuration files: the printed example loads, and every mistake is named with its remedy."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from radiopaque import config
from radiopaque.certificates import Role, init_directory, load_identity
from radiopaque.errors import ConfigError

LOADERS: dict[Role, Callable[[Path], Any]] = {
    Role.CRYPTO_PROVIDER: config.load_crypto_provider,
    Role.MODEL_OWNER: config.load_model_owner,
    Role.DATA_OWNER: config.load_data_owner,
}

SMALLEST = {
    Role.CRYPTO_PROVIDER: 'store = "s"\n[tls]\ncertificate = "a"\nkey = "b"\nca = "c"\n',
    Role.MODEL_OWNER: 'store = "s"\n[tls]\ncertificate = "a"\nkey = "b"\nca = "c"\n'
    '[crypto_provider]\naddress = "p:1"\n[[models]]\npath = "m"\n',
    Role.DATA_OWNER: 'store = "s"\nmodel = "m"\n[tls]\ncertificate = "a"\nkey = "b"\nca = "c"\n'
    '[crypto_provider]\naddress = "p:1"\n[model_owner]\naddress = "o:2"\n',
}


def load(folder: Path, role: Role, text: str) -> Any:
    path = folder / "party.toml"
    path.write_text(text)
    return LOADERS[role](path)


def problems(folder: Path, role: Role, text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(folder, role, text)
    return str(caught.value)


@pytest.mark.parametrize("role", Role)
def test_example_loads_and_fits_the_certificates_of_init(tmp_path: Path, role: Role) -> None:
    loaded = load(tmp_path, role, config.example(role))
    init_directory(tmp_path / "certificates")
    tls = loaded.tls
    assert load_identity(tls.certificate, tls.key, tls.ca, role).role is role
    assert loaded.store == tmp_path / str(role)


def uncommented(text: str) -> str:
    """The example with its optional keys in force."""
    lines = [
        line.removeprefix("# ") if line.startswith("# ") and " = " in line else line
        for line in text.splitlines()
    ]
    return "\n".join(lines)


@pytest.mark.parametrize("role", Role)
def test_optional_keys_of_the_example_load_too(tmp_path: Path, role: Role) -> None:
    text = uncommented(config.example(role))
    load(tmp_path, role, text)

    def keys(table: Any, prefix: str = "") -> set[str]:
        if isinstance(table, list):
            return set().union(*(keys(one, prefix) for one in table))
        if not isinstance(table, dict):
            return {prefix}
        return set().union(*(keys(value, f"{prefix}.{name}") for name, value in table.items()))

    models: dict[Role, type[BaseModel]] = {
        Role.CRYPTO_PROVIDER: config.CryptoProviderConfig,
        Role.MODEL_OWNER: config.ModelOwnerConfig,
        Role.DATA_OWNER: config.DataOwnerConfig,
    }
    shown = keys(tomllib.loads(text))
    assert {name.split(".")[1] for name in shown} == set(models[role].model_fields)
    assert all(len(line) <= 100 for line in text.splitlines())


def test_examples_of_the_parties_point_at_each_other(tmp_path: Path) -> None:
    provider = load(tmp_path, Role.CRYPTO_PROVIDER, config.example(Role.CRYPTO_PROVIDER))
    owner = load(tmp_path, Role.MODEL_OWNER, config.example(Role.MODEL_OWNER))
    clinic = load(tmp_path, Role.DATA_OWNER, config.example(Role.DATA_OWNER))
    ports = [one.listen.rpartition(":")[2] for one in (provider, owner)]
    assert (
        clinic.crypto_provider.address == owner.crypto_provider.address == f"localhost:{ports[0]}"
    )
    assert clinic.model_owner.address == f"localhost:{ports[1]}"


@pytest.mark.parametrize("role", Role)
def test_smallest_file(tmp_path: Path, role: Role) -> None:
    loaded = load(tmp_path, role, SMALLEST[role])
    assert loaded.tls.certificate == tmp_path / "a"


def test_paths_are_relative_to_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.chdir(tmp_path.parent)
    text = SMALLEST[Role.CRYPTO_PROVIDER]
    text = text.replace('"a"', '"~/a"').replace('"b"', '"/etc/b"').replace('"c"', '"../c"')
    (tmp_path / "party.toml").write_text(text)
    loaded = config.load_crypto_provider(Path(tmp_path.name) / "party.toml")
    assert loaded.store == tmp_path / "s"
    assert loaded.tls.certificate == Path("/home/somebody/a")
    assert loaded.tls.key == Path("/etc/b")
    assert loaded.tls.ca == tmp_path / "../c"


@pytest.mark.parametrize("role", Role)
def test_unknown_keys_everywhere_are_errors(tmp_path: Path, role: Role) -> None:
    text = "colour = 1\n" + SMALLEST[role] + "[tls2]\n"
    text = text.replace("[tls]\n", '[tls]\ncertificat = "x"\n')
    message = problems(tmp_path, role, text)
    assert "party.toml has 3 problem(s):" in message
    assert "colour is not a known key; remove it" in message
    assert "tls2 is not a known key; did you mean tls?" in message
    assert "tls.certificat is not a known key; did you mean certificate?" in message
    assert f"radiopaque config example {role}" in message


def test_all_problems_are_listed_with_key_and_remedy(tmp_path: Path) -> None:
    message = problems(
        tmp_path,
        Role.MODEL_OWNER,
        """
listen = "here"
grace_seconds = 0
[tls]
certificate = "a"
key = 3
[crypto_provider]
address = "host:0"
server_name = ""
[limits]
sessions_per_clinic = "many"
concurrent_calls = true
material_bytes = 1.5
[[models]]
path = "x"
[[models]]
nam = "x"
""",
    )
    for expected in (
        "listen: must be address:port, for example 0.0.0.0:7302; port 0 takes a free one "
        "(it is 'here')",
        "store is missing; add it",
        "grace_seconds: input should be greater than 0 (it is 0)",
        "tls.key: ",
        "tls.ca is missing; add it",
        "crypto_provider.address: must be host:port with a port from 1 to 65535",
        "crypto_provider.server_name: ",
        "limits.sessions_per_clinic: ",
        "limits.concurrent_calls: ",
        "limits.material_bytes: ",
        "models.1.path is missing; add it",
        "models.1.nam is not a known key; did you mean name?",
    ):
        assert f"  - {expected}" in message
    assert "has 12 problem(s)" in message


@pytest.mark.parametrize("value", ["0", "-1", '"1 GB"', "1e9", "true"])
def test_windows_that_are_refused(tmp_path: Path, value: str) -> None:
    owner = SMALLEST[Role.MODEL_OWNER].replace(
        "[[models]]", f"[limits]\nwindow_bytes = {value}\n[[models]]"
    )
    assert "limits.window_bytes: " in problems(tmp_path, Role.MODEL_OWNER, owner)
    clinic = f"window_bytes = {value}\n" + SMALLEST[Role.DATA_OWNER]
    assert "  - window_bytes: " in problems(tmp_path, Role.DATA_OWNER, clinic)


@pytest.mark.parametrize(
    "address",
    [
        "localhost",
        ":1",
        "host:",
        "host:65536",
        "host:x",
        "http://host:1",
        "host:1/x",
        "a b:1",
        "::1:5",
    ],
)
def test_addresses_that_are_refused(tmp_path: Path, address: str) -> None:
    text = SMALLEST[Role.DATA_OWNER].replace("o:2", address)
    assert "model_owner.address: must be host:port" in problems(tmp_path, Role.DATA_OWNER, text)


@pytest.mark.parametrize("address", ["host:1", "a-b.example:65535", "127.0.0.1:7302", "[::1]:5"])
def test_addresses_that_are_accepted(tmp_path: Path, address: str) -> None:
    text = SMALLEST[Role.DATA_OWNER].replace("o:2", address)
    assert load(tmp_path, Role.DATA_OWNER, text).model_owner.address == address


def test_listening_on_a_free_port(tmp_path: Path) -> None:
    text = 'listen = "127.0.0.1:0"\n' + SMALLEST[Role.CRYPTO_PROVIDER]
    assert load(tmp_path, Role.CRYPTO_PROVIDER, text).listen == "127.0.0.1:0"


def test_a_model_owner_without_models(tmp_path: Path) -> None:
    text = "models = []\n" + SMALLEST[Role.MODEL_OWNER].replace('[[models]]\npath = "m"\n', "")
    assert "models: " in problems(tmp_path, Role.MODEL_OWNER, text)


def test_missing_file_names_the_example(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="radiopaque config example data-owner"):
        config.load_data_owner(tmp_path / "none.toml")


@pytest.mark.parametrize("text", [b"store = ", b"a = 1\na = 2", b"\xff\xfe"])
def test_files_that_are_not_toml(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "party.toml").write_bytes(text)
    with pytest.raises(ConfigError, match="is not a TOML file"):
        config.load_data_owner(tmp_path / "party.toml")


def test_huge_file(tmp_path: Path) -> None:
    (tmp_path / "party.toml").write_bytes(b"#" * (2 << 20))
    with pytest.raises(ConfigError, match="bytes"):
        config.load_data_owner(tmp_path / "party.toml")


@pytest.mark.parametrize(
    ("url", "accepted"),
    [
        ("http://127.0.0.1:4318/v1/traces", True),
        ("http://localhost:4318", True),
        ("https://collector.example/v1/traces", True),
        ("http://collector.example:4318/v1/traces", False),
        ("http://127.0.0.1.example:4318/", False),
        ("https://user:word@collector.example/", False),
        ("collector.example:4318", False),
        ("ftp://localhost/", False),
    ],
)
def test_collectors_of_traces(tmp_path: Path, url: str, accepted: bool) -> None:
    text = f'traces = "{url}"\n' + SMALLEST[Role.CRYPTO_PROVIDER]
    if accepted:
        assert load(tmp_path, Role.CRYPTO_PROVIDER, text).traces == url
    else:
        assert "traces: must be" in problems(tmp_path, Role.CRYPTO_PROVIDER, text)


@pytest.mark.parametrize("value", ["-0.1", "1.1", "nan", '"0.1"', "true"])
def test_shares_that_are_refused(tmp_path: Path, value: str) -> None:
    clinic = SMALLEST[Role.DATA_OWNER]
    message = problems(tmp_path, Role.DATA_OWNER, f"audit_share = {value}\n{clinic}")
    assert "audit_share" in message
    loaded = load(tmp_path, Role.DATA_OWNER, f"audit_share = 1\n{clinic}")
    assert loaded.audit_share == 1
