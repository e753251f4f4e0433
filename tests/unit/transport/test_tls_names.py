"""What a client says of a server whose certificate carries another name."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from radiopaque.certificates import Identity, Role
from radiopaque.errors import AuthenticationError
from radiopaque.transport.tls import trusting_only
from tests.unit.transport.conftest import Host


@pytest.fixture
def host(identities: dict[Role, Identity]) -> Iterator[Host]:
    started = Host(identities)
    yield started
    started.close()


def test_the_name_that_is_missing_is_named(host: Host, identities: dict[Role, Identity]) -> None:
    with pytest.raises(AuthenticationError) as raised:
        trusting_only(
            identities[Role.DATA_OWNER], host.address, "vendor.example", Role.MODEL_OWNER, 60
        )
    message = str(raised.value)
    assert "that the certificate carries the name vendor.example" in message
    assert "not valid for 'vendor.example')" in message
