"""Which connections to PostgreSQL are made at all; no server is asked."""

from __future__ import annotations

import pytest

from radiopaque.errors import ConfigError
from radiopaque.ledger import conninfo


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"host": "", "port": "5432"},
        {"host": "/var/run/postgresql"},
        {"host": "localhost,127.0.0.1,::1,127.1.2.3", "port": "5432,5433"},
        {"hostaddr": "127.0.0.1"},
    ],
)
def test_on_this_machine(parameters: dict[str, str]) -> None:
    assert conninfo.protection({**parameters, "sslmode": "prefer"}) == {}


@pytest.mark.parametrize(
    "parameters",
    [
        {"host": "db.example"},
        {"host": "192.0.2.2"},
        {"host": "localhost.example"},
        {"host": "127.0.0.1,db.example"},
        {"host": "localhost", "hostaddr": "192.0.2.2"},
        {"host": "db.example", "hostaddr": "127.0.0.1"},
        {"hostaddr": "127.0.0.1,2001:db8::1"},
    ],
)
def test_elsewhere(parameters: dict[str, str]) -> None:
    for mode in ("disable", "allow", "prefer", "require", "verify-ca", ""):
        with pytest.raises(ConfigError, match="add sslmode=verify-full, and sslrootcert=FILE"):
            conninfo.protection({**parameters, "sslmode": mode})
    with pytest.raises(ConfigError, match="add sslmode=verify-full"):
        conninfo.protection(parameters)
    assert conninfo.protection({**parameters, "sslmode": "verify-full"}) == {
        "sslmode": "verify-full",
        "ssl_min_protocol_version": "TLSv1.3",
        "gssencmode": "disable",
    }


def test_what_cannot_be_checked() -> None:
    with pytest.raises(ConfigError, match="names a service"):
        conninfo.protection({"service": "ledger"})


ADDRESSES = (
    "postgresql://ledger@db/radiopaque?sslmode=verify-full",
    "postgres://u:p%40w@db:5432/x",
)


@pytest.mark.parametrize("address", ADDRESSES)
def test_addresses(address: str) -> None:
    conninfo.check_text(address)


@pytest.mark.parametrize(
    "address",
    [
        "postgresql://u:hunter@2@db/x",
        "postgresql://u:12/hunter2@db/x",
        "postgres://u:12?hunter2@db/x",
        "postgresql://u:12#hunter2@db/x",
    ],
)
def test_a_password_that_looks_like_an_address(address: str) -> None:
    with pytest.raises(ConfigError, match="percent-encode") as caught:
        conninfo.check_text(address)
    assert "hunter" not in str(caught.value)
