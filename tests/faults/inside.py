"""Both servers inside the test's process, behind real gRPC, with methods that can lie."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from crypto_provider.service import CryptoProvider
from model_owner.admission import Limits
from model_owner.dealer import Dealer
from model_owner.hosting import Hosted
from model_owner.policy import Rules
from model_owner.service import ModelOwner
from radiopaque.certificates import PeerIdentity, Role, init_directory, load_identity
from radiopaque.config import CryptoProviderLimits, ModelOwnerLimits
from radiopaque.engine.weights_file import write_compiled
from radiopaque.kernels.cpu import CPU
from radiopaque.kernels.device import Device
from radiopaque.transport.channel import Channel
from radiopaque.transport.grpc_client import Peer
from radiopaque.transport.grpc_server import Call, Handler, Server
from radiopaque.transport.places import Places
from radiopaque.wire.frames import Frame
from tests.e2e.networks import Network
from tests.e2e.parties import ledger_on_disk, tls_table

Original = Callable[..., Any]
Lie = Callable[..., Any]
"""Takes the honest function and then its arguments."""


@dataclass
class Listening:
    """Where one of the servers listens and keeps its ledger."""

    address: str
    store: Path
    server: Server

    def sessions(self) -> dict[bytes, tuple[str, bool]]:
        return ledger_on_disk(self.store)


class Inside:
    """A crypto provider and a model owner with one network. A context manager."""

    def __init__(
        self, folder: Path, network: Network, device: Device = CPU, rules: Rules | None = None
    ) -> None:
        self.folder = folder
        self.networks = {"it": network}
        self.certificates = init_directory(folder / "certificates")
        self.compiled = {"it": write_compiled(folder / "it", network.plan, network.weights)}
        self.lies: dict[str, Lie] = {}
        deals = CryptoProviderLimits()
        self.dealing = CryptoProvider(
            folder / "crypto-provider",
            most_models=deals.models,
            model_bytes=deals.model_bytes,
            most_reserved=deals.reserved_sessions,
            most_reserved_per_clinic=deals.reserved_per_clinic,
            reservation_seconds=deals.reservation_seconds,
            concurrent_deals=deals.concurrent_deals,
            device=device,
        )
        self.provider = self._listen(Role.CRYPTO_PROVIDER, self.dealing.handlers())
        hosts = ModelOwnerLimits()
        limits = Limits(
            hosts.sessions_per_clinic,
            hosts.concurrent_inferences,
            hosts.material_bytes,
            hosts.session_days * 86_400.0,
            hosts.window_bytes,
            hosts.sessions,
        )
        self._peer = Peer(
            Role.CRYPTO_PROVIDER, self.provider.address, self.identity(Role.MODEL_OWNER)
        )
        self.hosting = ModelOwner(
            folder / "model-owner",
            Hosted.load([(folder / "it", None, None)], device),
            Dealer(self._peer),
            limits,
            rules=rules,
        )
        self.owner = self._listen(Role.MODEL_OWNER, self.hosting.handlers())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for listening in (self.owner, self.provider):
            listening.server.stop(0)
        self._peer.close()
        self.hosting.close()
        self.dealing.close()

    def identity(self, role: Role) -> Any:
        files = self.certificates[role]
        return load_identity(files.certificate, files.key, files.ca, role)

    def clinic(self, name: str = "clinic") -> Path:
        """The configuration of a clinic with an empty store."""
        config = self.folder / f"{name}.toml"
        config.write_text(
            f'store = "{self.folder / name}"\nmodel = "{self.networks["it"].plan.name}"\n'
            "deadline_seconds = 20.0\n"
            + tls_table(self.certificates[Role.DATA_OWNER])
            + f'[model_owner]\naddress = "{self.owner.address}"\n'
            + f'[crypto_provider]\naddress = "{self.provider.address}"\n'
        )
        return config

    def material(self) -> list[Path]:
        return sorted((self.owner.store / "material").iterdir())

    def _listen(self, role: Role, handlers: Mapping[str, Handler]) -> Listening:
        table = {
            name: replace(handler, function=self._perhaps(name, handler.function))
            for name, handler in handlers.items()
        }
        server = Server(self.identity(role), table)
        return Listening(f"127.0.0.1:{server.start('127.0.0.1:0')}", self.folder / role, server)

    def _perhaps(self, name: str, honest: Original) -> Original:
        def function(*arguments: Any) -> Any:
            lie = self.lies.get(name)
            return honest(*arguments) if lie is None else lie(honest, *arguments)

        return function


class Rewritten:
    """A serving channel whose sent frames are changed, and which remembers what came in."""

    def __init__(self, channel: Channel, change: Callable[[Frame], Iterable[Frame]]) -> None:
        self._channel = channel
        self._change = change
        self.counters = channel.counters
        self.received: list[Frame] = []
        self.ending: Exception | None = None

    def send(self, frame: Frame) -> None:
        for changed in self._change(frame):
            self._channel.send(changed)

    def receive(self, more: bool = False) -> Frame:
        try:
            frame = self._channel.receive()
        except Exception as error:
            self.ending = error
            raise
        self.received.append(frame)
        return frame

    def close(self, error: Any = None) -> None:
        self._channel.close(error)


def rewriting(change: Callable[[Frame], Iterable[Frame]], seen: list[Rewritten]) -> Lie:
    """A model owner whose online frames are changed."""

    def infer(honest: Original, channel: Channel, call: Call) -> None:
        seen.append(Rewritten(channel, change))
        honest(seen[-1], call)

    return infer


def redealing(change: Callable[[list[Frame]], list[Frame]]) -> Lie:
    """A crypto provider whose corrections are changed."""

    def deal(honest: Original, request: Any, call: Call) -> Iterator[Frame]:
        return iter(change(list(honest(request, call))))

    return deal


@contextmanager
def occupied(places: Places, count: int) -> Iterator[None]:
    """Each of so many places is taken by somebody else."""
    with ExitStack() as taken:
        for number in range(count):
            other = Call(PeerIdentity(Role.DATA_OWNER, f"other-{number}"), 60.0)
            taken.enter_context(places.place(other, 0.0))
        yield
