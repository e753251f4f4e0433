"""Certificates for the tests of the transport, and a model owner whose methods do as told."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from radiopaque.certificates import (
    CertificateFiles,
    Identity,
    PeerIdentity,
    Role,
    init_directory,
    load_identity,
)
from radiopaque.transport.grpc_client import Peer
from radiopaque.transport.grpc_server import Handler, Server
from tests.unit.transport.calls import no_models

METHODS = ("ListModels", "FetchPlan", "FetchMaskedWeights", "Prepare", "Infer", "Audit")


def load(files: CertificateFiles, role: Role) -> Identity:
    return load_identity(files.certificate, files.key, files.ca, role, files.crl)


@pytest.fixture(scope="session")
def certificate_files(tmp_path_factory: pytest.TempPathFactory) -> dict[Role, CertificateFiles]:
    return init_directory(tmp_path_factory.mktemp("pki") / "certs")


@pytest.fixture(scope="session")
def identities(certificate_files: dict[Role, CertificateFiles]) -> dict[Role, Identity]:
    return {role: load(files, role) for role, files in certificate_files.items()}


class Host:
    """A model owner whose methods can be replaced, and a data owner that calls it."""

    def __init__(
        self,
        identities: dict[Role, Identity],
        admit: Callable[[PeerIdentity], None] | None = None,
        **options: Any,
    ) -> None:
        self.identities = identities
        self.functions: dict[str, Callable[..., Any]] = {}
        roles = frozenset({Role.DATA_OWNER})
        handlers = {name: Handler(self._function(name), roles, admit=admit) for name in METHODS}
        self.server = Server(identities[Role.MODEL_OWNER], handlers, **options)
        self.port = self.server.start("127.0.0.1:0")
        self.address = f"127.0.0.1:{self.port}"
        self.peer = self.peer_of(identities[Role.DATA_OWNER])

    def peer_of(self, identity: Identity, **options: Any) -> Peer:
        return Peer(Role.MODEL_OWNER, self.address, identity, **options)

    def _function(self, name: str) -> Callable[..., Any]:
        return lambda *arguments: self.functions[name](*arguments)

    def close(self) -> None:
        self.peer.close()
        self.server.stop(0)


@pytest.fixture(scope="module")
def shared_host(identities: dict[Role, Identity]) -> Iterator[Host]:
    host = Host(identities)
    yield host
    host.close()


@pytest.fixture
def host(shared_host: Host) -> Host:
    shared_host.functions.clear()
    return shared_host


@pytest.fixture
def make_host(identities: dict[Role, Identity]) -> Iterator[Callable[..., Host]]:
    hosts: list[Host] = []

    def make(**options: Any) -> Host:
        hosts.append(Host(identities, **options))
        return hosts[-1]

    yield make
    for host in hosts:
        host.close()


@pytest.fixture
def hosting() -> Iterator[Callable[[dict[Role, CertificateFiles]], Host]]:
    """Hosts with certificates of one's own choice."""
    hosts: list[Host] = []

    def start(files: dict[Role, CertificateFiles]) -> Host:
        host = Host({role: load(one, role) for role, one in files.items()})
        host.functions["ListModels"] = no_models
        hosts.append(host)
        return host

    yield start
    for host in hosts:
        host.close()
