"""The parts that run in the worker: communicator, tuple provider, sources; and the pipe to it."""

from __future__ import annotations

import errno
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

import numpy as np
import pytest

from radiopaque.engine.crypten.encoding import encode_plan
from radiopaque.engine.crypten.pipe import Pipe, Record
from radiopaque.engine.crypten.plan import CryptenPlan
from radiopaque.engine.crypten.process import Job, Setup, Worker
from radiopaque.engine.crypten.program import Operation, Program
from radiopaque.engine.crypten.tuples import Halves, Request, TupleKind, data_owner_half
from radiopaque.errors import ConfigError, DeadlineError, EngineError, PlanError
from radiopaque.prg import SecretKey, Streams
from tests.protocol.chisquare import THRESHOLD, uniform

KEY = SecretKey(bytes(range(32)))


def streams(role: Any = "data-owner") -> Streams:
    return Streams(KEY, bytes(32), bytes(16), role)


class Queues:
    """One end of a wire in memory."""

    def __init__(self) -> None:
        self.inbox: SimpleQueue[tuple[int, bytes]] = SimpleQueue()
        self.peer: Queues = self
        self.sent: list[tuple[int, int]] = []

    def send(self, number: int, data: memoryview) -> None:
        self.sent.append((number, len(data)))
        self.peer.inbox.put((number, bytes(data)))

    def receive(self, number: int, size: int) -> bytearray:
        found, data = self.inbox.get(timeout=5)
        assert (found, len(data)) == (number, size)
        return bytearray(data)


@pytest.fixture
def ranks(crypten: None) -> list[Any]:
    """Two communicators that are connected; each has its wire as ``wire``."""
    from radiopaque.engine.crypten.worker.communicator import TwoPartyCommunicator

    wires = [Queues(), Queues()]
    wires[0].peer, wires[1].peer = wires[1], wires[0]
    communicators = []
    for rank, wire in enumerate(wires):
        communicators.append(TwoPartyCommunicator(rank, wire))
        communicators[rank].wire = wire
    return communicators


def both(ranks: list[Any], call: Callable[[Any], Any]) -> list[Any]:
    """The same call at both ranks at the same time."""
    results: list[Any] = [None, None]

    def run(rank: int) -> None:
        results[rank] = call(ranks[rank])

    threads = [threading.Thread(target=run, args=(rank,)) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    return results


def test_all_reduce_adds_and_xors(ranks: list[Any]) -> None:
    import torch

    # the sum of the two largest wraps: the ring is that of 64-bit words
    own = {0: torch.tensor([[1, 2**63 - 1], [-5, 7]]), 1: torch.tensor([[10, 2**63 - 1], [5, 1]])}
    sums = both(ranks, lambda c: c.all_reduce(own[c.get_rank()]))
    assert sums[0].tolist() == sums[1].tolist() == [[11, -2], [0, 8]]
    op = torch.distributed.ReduceOp.BXOR
    xors = both(ranks, lambda c: c.all_reduce(own[c.get_rank()], op=op))
    assert xors[0].tolist() == xors[1].tolist() == [[11, 0], [-2, 6]]
    assert own[0].tolist() == [[1, 2**63 - 1], [-5, 7]]
    assert ranks[0].wire.sent == [(1, 32), (2, 32)]


def test_a_batch_is_one_exchange(ranks: list[Any]) -> None:
    import torch

    tensors = [torch.arange(6).reshape(2, 3), torch.tensor(9), torch.arange(4).reshape(2, 2).t()]
    found = both(ranks, lambda c: c.all_reduce(list(tensors), batched=True))
    assert [t.tolist() for t in found[0]] == [(2 * t).tolist() for t in tensors]
    assert ranks[0].wire.sent == ranks[1].wire.sent == [(1, 8 * 11)]


def test_reduce_tells_one_rank_alone(ranks: list[Any]) -> None:
    import torch

    found = both(ranks, lambda c: c.reduce(torch.tensor([4, 5]), 1))
    assert found[0] is None
    assert found[1].tolist() == [8, 10]
    assert (ranks[0].wire.sent, ranks[1].wire.sent) == ([(1, 16)], [])


def test_nothing_else_travels(ranks: list[Any]) -> None:
    """No pickled object, no real, no operation that two ranks do not need."""
    import torch

    rank = ranks[0]
    refused: list[Callable[[], Any]] = [
        lambda: rank.send_obj({"size": 3}, 1),
        lambda: rank.recv_obj(1),
        lambda: rank.broadcast_obj(torch.Size([3]), 0),
        lambda: rank.scatter([torch.tensor(1)] * 2, 0),
        lambda: rank.gather(torch.tensor(1), 0),
        lambda: rank.all_reduce(torch.tensor([1.5])),
    ]
    for call in refused:
        with pytest.raises(EngineError):
            call()
    assert rank.wire.sent == []
    for name in ("send", "recv", "broadcast", "all_gather", "barrier"):
        with pytest.raises((NotImplementedError, TypeError)):
            getattr(rank, name)(torch.tensor(1))


# in a process of its own: what install() replaces stays replaced
DRAWS = """
from radiopaque.engine.crypten.worker.compatibility import install, torch
from radiopaque.engine.crypten.worker.sources import ZeroSource
from radiopaque.engine.crypten.worker.trace import _Alone, _Recorder
from radiopaque.errors import EngineError

zeros = ZeroSource()
install(_Alone(), _Recorder(), {"prev": zeros, "next": zeros, "local": zeros})
dispatched = {name[6:].split(".")[0] for name in torch._C._dispatch_get_all_op_names()}
for name in sorted(dispatched):
    packet = getattr(torch.ops.aten, name, None)
    if name.startswith("_") or not hasattr(packet, "overloads"):
        continue
    tags = {tag for each in packet.overloads() for tag in getattr(packet, each).tags}
    if torch.Tag.nondeterministic_seeded not in tags:
        continue
    for place in (torch, torch.Tensor, torch.nn.functional):
        if hasattr(place, name):
            try:
                getattr(place, name)()
            except EngineError:
                print(name)
            except Exception as error:
                print("not refused:", place, name, error)
values = torch.ones(4)
for draw in (
    lambda: torch.rand_like(values),
    values.uniform_,
    lambda: torch.nn.functional.dropout2d(values.reshape(1, 4, 1, 1)),
    lambda: torch.nn.Dropout()(values),
    lambda: torch.nn.functional.gumbel_softmax(values),
    lambda: torch.nn.init.normal_(values),
):
    try:
        draw()
        print("not refused:", draw)
    except EngineError:
        pass
"""


def test_nothing_of_torch_s_draws(crypten: None) -> None:
    """Neither what torch marks as drawing, in any public place, nor what is made of it."""
    found = subprocess.run(
        [sys.executable, "-c", DRAWS], check=True, capture_output=True, text=True, timeout=300
    ).stdout.splitlines()
    assert not [line for line in found if line.startswith("not refused")]
    assert len(found) > 40
    assert {"rand_like", "random_", "dropout"} <= set(found)


PLAN = CryptenPlan(
    "model",
    "1",
    Program((Operation("input", (), (1, 3)), Operation("relu", (0,), (1, 3)))),
    (Request(TupleKind.SQUARE, (1 << 20,)),),
)


def test_a_worker_has_the_memory_that_its_plan_accounts_for(crypten: None) -> None:
    """The operating system refuses it more; a compiler's own model is not somebody else's."""
    from radiopaque.engine.crypten.worker.memory import most_bytes

    most = most_bytes(PLAN)
    assert 2 << 30 < most < 3 << 30
    for job, expected in ((Job.DATA_OWNER, most), (Job.TRACE, resource.RLIM_INFINITY)):
        with Worker(60.0) as worker:
            worker.wait_ready()
            worker.start(Setup(job, bytes(16), bytes(32), KEY, encode_plan(PLAN)), [])
            for _ in range(200 if expected == most else 10):
                found = resource.prlimit(worker.pid, resource.RLIMIT_DATA)[0]
                if found != resource.RLIM_INFINITY:
                    break
                time.sleep(0.05)
            assert found == expected


FILLS = """
from radiopaque.engine.crypten.encoding import decode_plan
from radiopaque.engine.crypten.worker.__main__ import _last_words
from radiopaque.engine.crypten.worker.compatibility import torch
from radiopaque.engine.crypten.worker.memory import bound
import numpy as np
import sys

bound(decode_plan(sys.stdin.buffer.read()))
print(open("/proc/self/oom_score_adj").read().strip())
for fill in (lambda: torch.zeros(1 << 30), lambda: np.empty(1 << 30)):
    try:
        fill()
    except Exception as error:
        print(_last_words(error).splitlines()[1])
"""


def test_memory_beyond_the_plan_is_refused_in_words(crypten: None) -> None:
    """And where a machine runs out of it, Linux ends the worker, not the party."""
    found = subprocess.run(
        [sys.executable, "-c", FILLS], input=encode_plan(PLAN), check=True, capture_output=True
    ).stdout.decode()
    text = "it takes more memory than is free or than its plan accounts for"
    assert found.splitlines() == ["1000", text, text]


def test_the_provider_follows_the_plan(crypten: None) -> None:
    from radiopaque.engine.crypten.worker.provider import PlannedProvider

    conv = Request(TupleKind.CONVOLUTION, (1, 1, 4, 4), (2, 1, 3, 3), (1, 1, 0, 0, 1, 1, 1))
    plan = (conv, Request(TupleKind.SQUARE, (3,)), Request(TupleKind.BIT, (2,)))
    drawn: list[int] = []

    def draw(number: int, request: Request) -> Halves:
        drawn.append(number)
        return data_owner_half(request, number, streams())

    provider = PlannedProvider(plan, draw)
    call = {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1), "groups": 1}
    a, b, c = provider.generate_additive_triple((1, 1, 4, 4), (2, 1, 3, 3), "conv2d", **call)
    half = data_owner_half(conv, 0, streams())
    for part, words in ((a, half.a), (b, half.b), (c, half.c)):
        assert (part.share.numpy().view(np.uint64) == words).all()
        assert part.encoder.scale == 1
    with pytest.raises(PlanError, match="compile the model again"):
        provider.square((4,))
    r, r2 = provider.square((3,))
    assert r.share.shape == r2.share.shape == (3,)
    with pytest.raises(PlanError, match="used 2"):
        provider.finish()
    arithmetic, binary = provider.B2A_rng((2,))
    assert set(binary.share.tolist()) <= {0, 1}
    assert arithmetic.share.shape == (2,)
    provider.finish()
    with pytest.raises(PlanError, match="the plan has None"):
        provider.square((3,))
    assert drawn == [0, 1, 2]


@pytest.mark.parametrize("op", ["conv1d", "conv_transpose2d", "__class__"])
def test_the_provider_knows_three_products(crypten: None, op: str) -> None:
    from radiopaque.engine.crypten.worker.provider import triple_request

    with pytest.raises(EngineError, match=op):
        triple_request((2,), (2,), op, (), {})
    with pytest.raises(EngineError):
        triple_request((2,), (2,), "mul", (), {"out": 1})


def test_zero_sharings_add_up_and_repeat_nothing(crypten: None) -> None:
    """One rank's "next" is the other's "prev", draw by draw; "local" is nobody else's."""
    from radiopaque.engine.crypten.worker.sources import of_rank

    common = streams("both")
    clinic = of_rank(1, streams("data-owner"), common)
    vendor = of_rank(0, streams("model-owner"), common)
    seen = []
    for shape in ((4, 3), (5,), (), (4, 3)):
        up = [vendor["next"].words(shape), clinic["prev"].words(shape)]
        down = [clinic["next"].words(shape), vendor["prev"].words(shape)]
        own = [clinic["local"].words(shape), vendor["local"].words(shape)]
        assert (up[0] == up[1]).all()
        assert (down[0] == down[1]).all()
        seen += [t.numpy().tobytes() for t in (up[0], down[0], *own)]
    assert len(set(seen)) == len(seen)
    words = vendor["local"].words((8192,)).numpy().view(np.uint64)
    assert min(uniform(words, 64)) > THRESHOLD


def pair(seconds: float | None = 5.0) -> tuple[Pipe, Pipe, socket.socket]:
    one, other = socket.socketpair()
    return Pipe(one, seconds), Pipe(other, seconds), other


def test_the_pipe_takes_only_what_is_due() -> None:
    one, other, _ = pair()
    one.write(Record.ARRAY, 3, b"12345678")
    assert other.header() == (Record.ARRAY, 3, 8)
    assert other.pull(8) == b"12345678"
    one.write(Record.ARRAY, 0, b"123456789")
    with pytest.raises(EngineError, match="at most 8"):
        other.expect(Record.ARRAY, 8)
    one.write(Record.READY)
    other.pull(9)
    with pytest.raises(EngineError, match="expected ARRAY"):
        other.expect(Record.ARRAY, 8)
    one.push(b"\xff" * 13)
    with pytest.raises(EngineError, match="broke its protocol"):
        other.header()


def test_the_pipe_ends_and_times_out() -> None:
    one, other, _ = pair(0.05)
    with pytest.raises(DeadlineError):
        other.header()
    one, other, _ = pair()
    one.push(b"123")
    one.close()
    with pytest.raises(EngineError, match="gone"):
        other.pull(4)


def test_a_key_does_not_print() -> None:
    setup = Setup(Job.DATA_OWNER, bytes(16), bytes(32), KEY, b"plan")
    assert KEY.reveal().hex() not in repr(setup)
    again = Setup.decode(setup.encode())
    assert (again.job, again.plan, again.key.reveal()) == (setup.job, b"plan", KEY.reveal())


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_leaving_a_worker_ends_it_whatever_it_does(crypten: None) -> None:
    with Worker(120.0) as worker:
        worker.wait_ready()
        pid = worker.pid
        assert alive(pid)
        # what it cannot understand it reports, and goes
        worker.start(Setup(Job.DATA_OWNER, bytes(16), bytes(32), KEY, b"no plan"), [])
        with pytest.raises(PlanError, match="not a plan"):
            worker.serve()
    assert not alive(pid)


def test_a_worker_that_dies_or_stops_is_noticed(crypten: None) -> None:
    with Worker(120.0) as worker:
        os.kill(worker.pid, signal.SIGKILL)
        with pytest.raises(EngineError, match=r"gone|broke"):
            worker.wait_ready()
    with Worker(1.0) as worker:
        os.kill(worker.pid, signal.SIGSTOP)
        with pytest.raises(DeadlineError):
            worker.wait_ready()
        pid = worker.pid
    assert not alive(pid)


def test_without_crypten_the_user_learns_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "crypten" else real(name)
    )
    with pytest.raises(ConfigError, match="pip install --no-deps crypten"):
        Worker(1.0)


def test_another_release_of_crypten_is_refused(
    crypten: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.metadata

    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.5.0")
    with pytest.raises(ConfigError, match=r"works with crypten 0.4.1, .* has 0.5.0"):
        Worker(1.0)


def test_a_worker_that_cannot_be_started(crypten: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    before = set(os.listdir("/proc/self/fd"))
    monkeypatch.setattr("subprocess.Popen", refuse)
    with pytest.raises(EngineError, match="cannot start a process for CrypTen: Cannot allocate"):
        Worker(1.0)
    assert set(os.listdir("/proc/self/fd")) <= before


@pytest.mark.parametrize("bits", [58, 60, 62])
@pytest.mark.parametrize("sign", [1, -1])
def test_truncating_share_by_share_fails_as_often_as_the_compiler_says(
    crypten: None, bits: int, sign: int
) -> None:
    """|v| / 2^64 of the values are off by 2^48, the others by a unit at most."""
    import torch

    count, value = 20_000, sign * (1 << bits)
    words = streams("both").words(0, "truncation", (count,), np.uint64)
    one = torch.from_numpy(words.view(np.int64))
    other = value - one
    quotient = one.div(1 << 16, rounding_mode="trunc") + other.div(1 << 16, rounding_mode="trunc")
    errors = (quotient - value // (1 << 16)).abs()
    gross = errors > 1
    assert (errors[gross] - (1 << 48)).abs().max() <= 1
    expected = abs(value) / 2.0**64
    assert abs(float(gross.float().mean()) - expected) < 6 * np.sqrt(expected / count)
