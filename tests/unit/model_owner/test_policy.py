"""The vendor's rules: quotas over time and restarts, the list of clinics, revealing plans."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from model_owner.policy import Policy, Rules
from radiopaque.certificates import PeerIdentity, Role
from radiopaque.errors import AccessError, ConfigError, ResourceError
from radiopaque.graph.plan import Output, Plan
from radiopaque.ledger import MODEL_OWNER, Ledger, State, quotas
from radiopaque.prg import new_id
from radiopaque.transport.grpc_server import Handler
from tests.e2e.networks import lungs

HOUR = 3600.0


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


class Store:
    """A policy, and the ledger that counts."""

    def __init__(self, policy: Policy, ledger: Ledger) -> None:
        self.policy = policy
        self.ledger = ledger

    def prepare(self, clinic: str) -> bytes:
        session = new_id()
        self.ledger.create(session, artefact=bytes(16), peer=clinic, secret=b"keys")
        self.ledger.advance(session, State.PREPARING, State.READY)
        return session

    def start(self, clinic: str, images: int, prepared: bytes | None = None) -> None:
        """Start a session, if what it costs allows that."""
        session = prepared or self.prepare(clinic)
        charge = self.policy.charge(images)
        try:
            self.ledger.advance(session, State.READY, State.STARTED, charge=charge)
        except ResourceError:
            assert self.ledger.get(session).state is State.READY
            raise


@pytest.fixture
def opened(tmp_path: Path, clock: Clock) -> Iterator[Callable[..., Store]]:
    """Opens the policy of one store; opening it again is a new process."""
    tmp_path.chmod(0o700)
    ledgers: list[Ledger] = []

    def open_policy(**rules: Any) -> Store:
        for ledger in ledgers:
            ledger.close()
        ledgers.append(Ledger(tmp_path / "sessions.sqlite", MODEL_OWNER))
        return Store(Policy(Rules(**rules), clock), ledgers[-1])

    yield open_policy
    for ledger in ledgers:
        ledger.close()


def charge(store: Store, times: int, clinic: str = "a", images: int = 1) -> None:
    for _ in range(times):
        store.start(clinic, images)


def test_a_quota_is_used_up_and_says_when_to_come_back(
    opened: Callable[..., Store], clock: Clock
) -> None:
    store = opened(images=3, period_seconds=HOUR)
    charge(store, 2)
    clock.now += 600
    charge(store, 1)
    clock.now += 100
    with pytest.raises(ResourceError, match=r"3 images in 1 hour, is used up; try again in 2900 s"):
        charge(store, 1)
    with pytest.raises(ResourceError, match="try again in 3500 s"):
        store.start("a", 3)
    clock.now += 2899
    with pytest.raises(ResourceError, match="try again in 1 s"):
        charge(store, 1)
    clock.now += 1
    charge(store, 2)
    with pytest.raises(ResourceError, match="try again in 600 s"):
        charge(store, 1)


def test_quotas_are_of_each_clinic(opened: Callable[..., Store]) -> None:
    store = opened(images=2)
    charge(store, 2, "a")
    charge(store, 2, "b")
    for clinic in "ab":
        with pytest.raises(ResourceError):
            charge(store, 1, clinic)


def test_images_count_and_not_inferences(opened: Callable[..., Store]) -> None:
    store = opened(images=10)
    charge(store, 2, images=4)
    with pytest.raises(ResourceError, match="used up"):
        store.start("a", 4)
    store.start("a", 2)
    with pytest.raises(ResourceError, match="11 images is over the quota of 10"):
        store.start("b", 11)


def test_quotas_outlive_the_process(opened: Callable[..., Store], clock: Clock) -> None:
    store = opened(images=2)
    charge(store, 2)
    again = opened(images=2)
    with pytest.raises(ResourceError):
        charge(again, 1)
    clock.now += 24 * HOUR
    charge(again, 2)


def test_a_clock_that_is_set_back_gives_nothing(opened: Callable[..., Store], clock: Clock) -> None:
    store = opened(images=1)
    charge(store, 1)
    clock.now -= 48 * HOUR
    with pytest.raises(ResourceError):
        charge(store, 1)


def test_of_many_at_once_as_many_as_the_quota_get_through(opened: Callable[..., Store]) -> None:
    store = opened(images=7)
    outcomes: list[type[Exception] | None] = []

    def work() -> None:
        for _ in range(4):
            try:
                store.start("a", 1)
            except Exception as error:
                outcomes.append(type(error))
            else:
                outcomes.append(None)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes.count(None) == 7
    assert outcomes.count(ResourceError) == 25


def test_one_thread_counts_at_a_time(opened: Callable[..., Store], clock: Clock) -> None:
    """What another is about to add is waited for: both would have seen room for one."""
    store = opened(images=1)
    outcomes: list[Exception] = []
    session = store.prepare("a")

    def work() -> None:
        try:
            store.start("a", 1, session)
        except Exception as error:
            outcomes.append(error)

    other = threading.Thread(target=work)
    with store.ledger._database.transaction() as connection:
        quotas.count(connection, "", "a", quotas.Charge(1, 1, HOUR, clock.now))
        other.start()
        other.join(0.5)
    other.join()
    assert [type(error) for error in outcomes] == [ResourceError]


def test_without_a_quota_nothing_is_counted(opened: Callable[..., Store]) -> None:
    charge(opened(), 100)
    charge(opened(images=1), 1)


def test_only_clinics_on_the_list_are_admitted(opened: Callable[..., Store]) -> None:
    handler = Handler(lambda request, call: request, frozenset({Role.DATA_OWNER}))
    guarded = opened(clinics=("a", "b")).policy.guarded({"Infer": handler})["Infer"]
    assert replace(guarded, admit=None) == handler
    assert guarded.admit is not None
    guarded.admit(PeerIdentity(Role.DATA_OWNER, "b"))
    stranger = PeerIdentity(Role.DATA_OWNER, "c")
    with pytest.raises(AccessError, match="'c' is not on this model owner's list"):
        guarded.admit(stranger)
    opened().policy.admit(stranger)


def hosted(plan: Any) -> Any:
    return [SimpleNamespace(name="lungs", version="2", host=SimpleNamespace(plan=plan))]


def revealing(bits: int, position: int = 0) -> Plan:
    plan = lungs().plan
    last = replace(plan.output_step, gate=Output(bits, position))
    return replace(plan, steps=(*plan.steps[:-1], last))


def test_plans_that_reveal_more_bits_are_not_hosted() -> None:
    rules = Rules(output_bits=8)
    rules.check_outputs(hosted(revealing(8)))
    with pytest.raises(ConfigError, match=r"lungs 2 reveals 9 bits.*allows 8.*--output-bits 8"):
        rules.check_outputs(hosted(revealing(9)))
    Rules().check_outputs(hosted(revealing(48)))


def test_plans_that_reveal_scores_are_not_hosted() -> None:
    rules = Rules(labels_only=True)
    with pytest.raises(ConfigError, match="labels alone"):
        rules.check_outputs(hosted(revealing(2)))
    plan = revealing(2)
    flags = replace(plan.output_step, fraction_bits=0, divisor=1)
    rules.check_outputs(hosted(replace(plan, steps=(*plan.steps[:-1], flags))))


@pytest.mark.parametrize("rules", [{"output_bits": 63}, {"labels_only": True}])
def test_the_other_engine_reveals_too_much(rules: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="CrypTen engine, which reveals whole outputs"):
        Rules(**rules).check_outputs(hosted(object()))
