"""The order of the online phase: that of a second implementation, and nothing waits for itself."""

from __future__ import annotations

from collections import Counter
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from radiopaque.engine.local import LocalDeployment
from radiopaque.gates import halves
from radiopaque.gates.base import Site
from radiopaque.gates.local import LocalGate
from radiopaque.gates.schedule import (
    Event,
    Schedule,
    _Progress,
    computable_rows,
    operand_rows,
    replies,
    schedule,
)
from radiopaque.graph import plan as p
from radiopaque.graph.bands import row_count
from radiopaque.graph.weights import Weights
from radiopaque.ring import ring_dtype
from tests.plans import PlanBuilder
from tests.protocol import plain
from tests.protocol.network import small_plan
from tests.protocol.plain import infer_stored
from tests.protocol.test_gates import windows
from tests.reference.bands import messages
from tests.vectors.forms import plan_to_json

BLOCKS = (1 << 19, 6000, 1000, 100, 8)


def two_images(k: int = 32) -> p.Plan:
    """Every local gate that reads rows, strides and padding between comparisons; no rounding."""
    build = PlanBuilder(k, (2, 2, 9, 5), limit=1 << 10)
    conv = p.Convolution(4, (3, 2), (2, 1), (1, 0, 2, 1), (2, 1))
    build.add(conv, 0, shape=(2, 4, 4, 5), limit=1 << 17)
    first = build.add(p.Relu(19, 0), build.last)
    padded = build.add(p.Pad((0, 0, 3, 1), (0, 0, 1, 0), 5), first, shape=(2, 4, 8, 6))
    build.add(p.Slice((0, 1, 2, 0), (1, 1, 2, 1)), padded, shape=(2, 3, 3, 6))
    even = build.add(p.Relu(19, 0), build.last)
    build.add(p.Slice((0, 0, 1, 0), (1, 1, 2, 1)), padded, shape=(2, 3, 3, 6))
    build.add(p.Combine((1, -1)), even, build.last)
    odd = build.add(p.Relu(19, 0), build.last)
    build.add(p.Concatenate(1), odd, even, odd, shape=(2, 9, 3, 6))
    build.add(p.WindowSum((2, 3), (1, 2), (1, 0, 0, 1)), build.last, shape=(2, 9, 3, 3))
    build.add(p.Remask(), build.last)
    build.add(p.Multiply((1, 9, 3, 1)), build.last)
    build.add(p.AddConstant((2, 1, 3, 3)), build.last, limit=1 << 17)
    build.add(p.Relu(19, 0), build.last)
    build.add(p.Transpose((0, 2, 1, 3)), build.last, shape=(2, 3, 9, 3))
    build.add(p.Relu(19, 0), build.last)
    build.add(p.Expand(), build.last, shape=(2, 3, 9, 3))
    build.add(p.Remask(), build.last)
    build.add(p.MatrixProduct(2), build.last, shape=(2, 3, 9, 2), limit=1 << 17)
    build.add(p.Relu(19, 0), build.last)
    return build.finish(19)


def plans() -> list[p.Plan]:
    return [small_plan(32), small_plan(64), two_images(32), two_images(64)]


def made(plan: p.Plan, block_bytes: int) -> Schedule:
    with mock.patch("radiopaque.graph.bands.BLOCK_BYTES", block_bytes):
        return schedule(plan)


@pytest.mark.parametrize("block_bytes", BLOCKS[1:])
@pytest.mark.parametrize("number", range(4))
def test_the_order_is_that_of_the_second_implementation(number: int, block_bytes: int) -> None:
    plan = plans()[number]
    said = []
    for site, band, stage, _ in made(plan, block_bytes).model_owner:
        if stage:
            said.append(("down", site.number, band.number))
        if stage < max(1, replies(site)):
            said.append(("up", site.number, band.number))
    assert said == messages(plan_to_json(plan), plan.ring_bits // 8, block_bytes)


def place(event: Event, ago: int = 0) -> tuple[int, int, int]:
    return event.site.number, event.band.number, event.stage + ago


def answered(questions: list[tuple[int, int, int]], order: Schedule) -> bool:
    """Is any of these one that the data owner replies to?"""
    silent = {e.site.number for e in order.data_owner if not replies(e.site)}
    return any(gate not in silent for gate, _, _ in questions)


@pytest.mark.parametrize("block_bytes", BLOCKS)
@pytest.mark.parametrize("number", range(4))
def test_what_is_said_to_follow_follows_whatever_is_sent(number: int, block_bytes: int) -> None:
    """Both parties' turns acted out: messages on their way, at each one that is taken."""
    order = made(plans()[number], block_bytes)
    owner, clinic = list(order.model_owner), list(order.data_owner)
    up: list[tuple[int, int, int]] = []
    down = [place(e) for e in clinic if e.site.number == 0]
    clinic = clinic[len(down) :]
    waited = {True: 0, False: 0}
    while owner or clinic:
        # everything that the model owner can do before the data owner answers again
        while owner and (owner[0].stage == 0 or down):
            event = owner.pop(0)
            if event.stage:
                assert place(event, -1) == down.pop(0)
                # at the latest when the data owner has answered what it was asked
                assert event.more == bool(down or answered(up, order))
            if event.stage < max(1, replies(event.site)):
                up.append(place(event))
        event = clinic.pop(0)
        assert place(event) == up.pop(0)
        assert event.more == bool(up)
        waited[event.more] += 1
        if replies(event.site):
            down.append(place(event))
    assert waited[False]
    assert waited[True] or block_bytes > 100


@pytest.mark.parametrize("block_bytes", BLOCKS)
@pytest.mark.parametrize("number", range(4))
def test_every_message_once_and_answers_in_the_order_of_questions(
    number: int, block_bytes: int
) -> None:
    plan = plans()[number]
    order = made(plan, block_bytes)
    turns = Counter(place(e) for e in order.model_owner)
    assert set(turns.values()) == {1}
    questions = [place(e) for e in order.model_owner if e.stage < max(1, replies(e.site))]
    first = [place(e) for e in order.data_owner if e.site.number == 0]
    assert [place(e) for e in order.data_owner] == [*first, *questions]
    answered = [place(e) for e in order.data_owner if replies(e.site)]
    taken = [place(e, -1) for e in order.model_owner if e.stage]
    assert answered == taken
    for party in (order.model_owner, order.data_owner):
        places = [(e.site.number, e.stage, e.band.number) for e in party]
        for gate, stage, _ in set(places):
            bands = [band for g, s, band in places if (g, s) == (gate, stage)]
            assert bands == list(range(len(bands)))


def test_the_last_events_of_gates() -> None:
    order = made(two_images(), 100)
    gates = {event.site.number for event in order.model_owner}
    assert sorted(e.site.number for e in order.model_owner if e.last) == sorted(gates)
    assert sorted(e.site.number for e in order.data_owner if e.last_answer) == sorted(gates)
    openings = [e.site.number for e in order.model_owner if e.last_opening]
    assert sorted(openings) == sorted(gates - {0})


@pytest.mark.parametrize("k", [32, 64])
def test_bands_change_no_result(k: int) -> None:
    plan = two_images(k)
    generator = np.random.default_rng(k)
    word = ring_dtype(k)

    def draw(shape: p.Shape) -> np.ndarray:  # type: ignore[type-arg]
        return generator.integers(-3, 4, shape).astype(np.int64).astype(word)

    weights = Weights(
        {gate: draw(shape) for gate, shape in plan.weight_shapes()},
        {gate: draw(shape) for gate, shape in plan.constant_shapes()},
    )
    image = generator.integers(-8, 9, plan.input_step.shape).astype(np.float64)
    results = []
    for block_bytes in BLOCKS:
        with mock.patch("radiopaque.graph.bands.BLOCK_BYTES", block_bytes):
            results.append(infer_stored(LocalDeployment(plan, weights), image)[0])
    assert results[0].any()
    assert all((result == results[0]).all() for result in results)


def test_a_value_of_very_many_rows_costs_no_more_than_its_bands() -> None:
    """A plan comes from outside: rows are not counted one by one."""
    shape = (1, 1, 1 << 24, 1)
    build = PlanBuilder(32, shape)
    for _ in range(40):
        build.add(p.WindowSum((1, 1)), build.last, shape=shape)
    asked: list[int] = []
    rows_needed = LocalGate.rows_needed

    def counted(self: LocalGate, site: Site, bottom: int) -> int:
        asked.append(bottom)
        return rows_needed(self, site, bottom)

    with mock.patch.object(LocalGate, "rows_needed", counted):
        order = made(build.finish(), 1 << 19)
    bands = len(order.data_owner) // 2
    assert bands == 1 << 7
    assert len(asked) <= 40 * bands * 2


@settings(max_examples=300, deadline=None)
@given(windows(), st.integers(1, 3))
def test_rows_that_can_be_computed_are_those_whose_operand_is_there(
    window: tuple[dict[str, tuple[int, ...]], tuple[int, int]], images: int
) -> None:
    parameters, size = window
    gate = p.WindowSum(**parameters)  # type: ignore[arg-type]
    image = p.Step(p.Input(), (), (images, 1, *size), 0)
    out = plain.window_sum(np.zeros(image.shape, object), gate)
    site = Site(1, p.Step(gate, (0,), out.shape, 0), (image,), 32)
    half = halves(gate)
    needed = [operand_rows(half, site, rows) for rows in range(1, row_count(out.shape) + 1)]
    assert needed == sorted(needed)
    for there in range(row_count(image.shape) + 1):
        assert computable_rows(half, site, there) == sum(one <= there for one in needed)


def test_a_gate_with_very_many_operands_is_looked_at_once_a_band() -> None:
    """A plan comes from outside: looking once for each operand that moves took hours."""
    build = PlanBuilder(32, (1, 1, 1 << 10, 1), 1)
    ends = [build.add(p.Combine((1,)), 0) for _ in range(500)]
    build.add(p.Combine((1,) * len(ends)), *ends, limit=1 << 10)
    looked: list[int] = []
    computable = _Progress._computable

    def counted(self: _Progress, site: Site) -> int:
        looked.append(site.number)
        return computable(self, site)

    with mock.patch.object(_Progress, "_computable", counted):
        order = made(build.finish(), 1 << 8)
    bands = len(order.data_owner) // 2
    assert bands == 1 << 4
    assert Counter(looked) == dict.fromkeys([*ends, build.last - 1], bands)
