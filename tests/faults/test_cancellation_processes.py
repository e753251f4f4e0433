"""What a call took is free again within two seconds of its end, seen from outside the process.

Memory, threads and open files are those that Linux counts. The processes give freed memory back at
once here, while a party's own command keeps it for the next session (:mod:`radiopaque.heap`).
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from radiopaque import versions
from radiopaque.certificates import Role
from radiopaque.errors import ConnectionLostError, ResourceError
from radiopaque.transport.channel import Counters
from radiopaque.transport.grpc_client import Peer
from radiopaque.wire import messages
from radiopaque.wire.frames import Frame, Kind
from radiopaque.wire.v1 import services_pb2 as pb
from tests.e2e.networks import Builder, Network
from tests.e2e.parties import Deployment, Serving, process, until
from tests.faults.hand import Hand, Tampered
from tests.faults.inside import Inside, rewriting
from tests.soak.usage import MIB, Usage

FREED_SECONDS = 2.0
HELD = 32 * MIB
"""What a session takes at least where it is broken off, so that it would be missed."""
LEFT = 16 * MIB
"""What may be left of all those that were broken off: rows in caches, buffers of gRPC."""
MORE_THREADS = 1
"""Of a server's, waiting for calls; none for a call that is over."""
GIVING_BACK = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(1 << 16),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 16),
}
COMMAND = """
from radiopaque.cli import main
main.keep_freed_memory = lambda: None
main.main()
"""
CLINIC = """
import sys
from pathlib import Path
import numpy as np
from data_owner import Client
from radiopaque.errors import RadiopaqueError

images = np.load(sys.argv[2])
with Client.from_config(Path(sys.argv[1])) as client:
    for _ in range(2):
        client.infer_tensor(images)
    client.prepare()
    print("prepared")
    sys.stdin.readline()
    try:
        client.infer_tensor(images)
    except RadiopaqueError as error:
        print(type(error).__name__)
    sys.stdin.readline()
"""


def heavy() -> Network:
    """A million comparisons: 70 MB of material a session, and little to compute."""
    b = Builder(32, 64, 5)
    x = b.relu(b.convolution(0, 64))
    b.head(b.relu(b.convolution(x, 2, weight_bits=1)), 2, weight_bits=3)
    return b.finish("heavy")


class Watched:
    """One process, and what it held before anything was broken off."""

    def __init__(self, name: str, process: int | Serving, more_threads: int = 0) -> None:
        self._name = name
        self._more_threads = more_threads
        self._process = process
        self._idle = Usage.of(process)

    @property
    def held(self) -> int:
        """Bytes more than before."""
        return Usage.of(self._process).resident_bytes - self._idle.resident_bytes

    def free(self) -> bool:
        now = Usage.of(self._process)
        return (
            now.threads <= self._idle.threads + self._more_threads
            and now.files <= self._idle.files
            and now.resident_bytes <= self._idle.resident_bytes + LEFT
        )

    def __str__(self) -> str:
        return f"{self._name}: {self._idle}; now {Usage.of(self._process)}"


@contextmanager
def freed(
    party: Watched, also: Callable[[], bool] = lambda: True, least: int = HELD
) -> Iterator[None]:
    """Within two seconds after the block all is free; until then ``least`` bytes were held."""
    # less than nothing where a process has given back what it had when it was first looked at
    until(lambda: not least or party.held >= least)
    held = party.held
    yield
    began = time.monotonic()
    try:
        until(lambda: also() and party.free(), FREED_SECONDS)
    except AssertionError:
        raise AssertionError(f"not free: {party}") from None
    seconds = time.monotonic() - began
    print(f"{seconds:.2f} s, {held / MIB:.1f} MiB before, {party.held / MIB:+.1f} after")


@pytest.fixture(scope="module")
def giving_back() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in GIVING_BACK.items():
            patch.setenv(name, value)
        yield


class Servers:
    """Both, as processes that have served and are idle."""

    def __init__(self, deployment: Deployment) -> None:
        self.deployment = deployment
        identity = deployment.clinic("clinic").identity()
        self._hand = Hand(deployment, identity, "heavy")
        for _ in range(2):
            self.hand().prepare().infer()
            deployment.assert_used_up(self._hand.session)
        self.owner = Watched("model owner", deployment.owner, MORE_THREADS)

    def hand(self) -> Hand:
        """The same clinic's next session, over the same connections."""
        self._hand.renew()
        return self._hand

    def over(self, session: bytes) -> bool:
        """Whether nothing of a session is left on the disks."""
        ledgers = (self.deployment.owner, self.deployment.provider)
        burnt = all(
            ledger.sessions().get(session, ("BURNT", False)) == ("BURNT", False)
            for ledger in ledgers
        )
        return burnt and not self.deployment.material()


@pytest.fixture(scope="module")
def servers(giving_back: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """With a place for one inference: what is broken off makes room for the next."""
    deployment = Deployment(tmp_path_factory.mktemp("freed"), {"heavy": heavy()})
    deployment.owner.write_config("concurrent_inferences = 1")
    for party in (deployment.owner, deployment.provider):
        whole = party._command()[3:]
        party._command = lambda whole=whole: [sys.executable, "-c", COMMAND, *whole]  # type: ignore[method-assign,misc]
    with deployment:
        yield Servers(deployment)


@pytest.mark.parametrize("kind", [Kind.READY, Kind.IMAGE, Kind.SELECTION, Kind.RERANDOMISED])
def test_an_inference_that_its_clinic_cancels(servers: Servers, kind: Kind) -> None:
    """After READY, and before the first frame of a kind."""
    hand = servers.hand()
    channel = hand.prepare().start()

    def cancel(frame: Frame | None = None) -> Iterable[Frame]:
        if frame is None or frame.kind is kind:
            with freed(servers.owner, also=lambda: servers.over(hand.session)):
                channel.close(ConnectionLostError("enough"))
        return [frame] if frame else []

    if kind is Kind.READY:
        cancel()
    else:
        with pytest.raises(ConnectionLostError, match="enough"):
            hand.run(Tampered(channel, cancel))


def test_an_inference_whose_deadline_passes(servers: Servers) -> None:
    hand = servers.hand()
    hand.prepare()
    until_then = time.monotonic() + 1.5
    channel = hand.start(seconds=1.5)
    with freed(servers.owner, also=lambda: servers.over(hand.session)):
        time.sleep(until_then - time.monotonic())
    channel.close()


def test_an_upload_that_its_clinic_cancels(servers: Servers) -> None:
    """What was dealt for it goes, too."""
    hand = servers.hand()
    hand.reserve()
    stopped = threading.Event()

    def upload() -> Iterator[bytes]:
        yield from map(messages.encode, list(hand.requests())[:-1])
        stopped.wait(30)

    method = hand.owner._connected(30.0).stream_unary(hand.owner._path("Prepare"))
    call = method.future(upload(), timeout=30.0, metadata=versions.own())
    until(lambda: len(servers.deployment.material()) == 2)
    until(lambda: servers.deployment.provider.sessions()[hand.session] == ("BURNT", False))
    with freed(servers.owner, also=lambda: servers.over(hand.session), least=0):
        call.cancel()
    stopped.set()


def test_corrections_that_their_model_owner_does_not_read_any_more(servers: Servers) -> None:
    deployment = servers.deployment
    identity = deployment.identity(Role.MODEL_OWNER)
    with Peer(Role.CRYPTO_PROVIDER, deployment.provider.address, identity) as peer:

        def deal(hand: Hand) -> Generator[Frame, None, None]:
            hand.reserve()
            artefact = hand.artefact.artefact
            request = pb.DealRequest(session=hand.session, artefact=artefact, key_o=bytes(32))
            yield from peer.download_frames("Deal", request, Counters(), 30.0)

        assert list(deal(servers.hand()))
        provider = Watched("crypto provider", deployment.provider, MORE_THREADS)
        hand = servers.hand()
        frames = deal(hand)
        next(frames)
        with freed(provider, also=lambda: servers.over(hand.session)):
            frames.close()


def test_a_clinic_whose_model_owner_breaks_off(giving_back: None, tmp_path: Path) -> None:
    """In the middle of an inference; the clinic waits for nothing then."""
    number = 0

    def change(frame: Frame) -> list[Frame]:
        nonlocal number
        number += 1
        if number == 4:
            until(lambda: watched.held > HELD)
            raise ResourceError("enough")
        return [frame]

    with Inside(tmp_path, heavy()) as inside:
        np.save(tmp_path / "images.npy", inside.networks["it"].images())
        config = inside.clinic()
        with process(CLINIC, config, tmp_path / "images.npy") as clinic:
            assert clinic.stdout is not None
            assert clinic.stdin is not None
            assert clinic.stdout.readline() == "prepared\n"
            watched = Watched("clinic", clinic.pid)
            inside.lies["Infer"] = rewriting(change, [])
            clinic.stdin.write("\n")
            clinic.stdin.flush()
            assert clinic.stdout.readline() == "ResourceError\n"
            with freed(watched, least=0):
                pass
