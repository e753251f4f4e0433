"""What a plan says about the memory that its model takes."""

from __future__ import annotations

import pytest

from radiopaque.config import MODEL_BYTES
from radiopaque.engine.crypten.plan import CryptenPlan
from radiopaque.engine.crypten.program import Operation, Program
from radiopaque.engine.crypten.tuples import Request, TupleKind
from radiopaque.engine.footprint import check_footprint, footprint, weights_bytes
from radiopaque.errors import PlanError
from radiopaque.graph import plan as p
from tests.plans import PlanBuilder, product_plan

MIB = 1 << 20


def values(count: int) -> p.Plan:
    """A mebibyte that is expanded so many times, and all of that added up."""
    builder = PlanBuilder(64, (1, MIB // 8))
    copies = [builder.add(p.Expand(), 0) for _ in range(count)]
    builder.add(p.Combine((1,) * count), *copies)
    return builder.finish()


def compared(elements: int) -> p.Plan:
    builder = PlanBuilder(64, (1, elements))
    builder.add(p.Relu(opened_bits=24, shift=4), 0)
    return builder.finish()


def test_weights_count_as_they_are_held_and_loaded() -> None:
    assert weights_bytes(product_plan(1 << 10, 1 << 10)) == 8 * MIB
    assert weights_bytes(product_plan(1 << 10, 1 << 10, 32)) == 4 * MIB
    assert footprint(product_plan(1 << 10, 1 << 10)) == 16 * MIB
    # panels of 128 bytes
    assert weights_bytes(product_plan(1, MIB)) == weights_bytes(product_plan(16, MIB)) == 128 * MIB
    assert weights_bytes(product_plan(1, MIB, 32)) == 128 * MIB


def test_values_that_exist_at_one_time_count() -> None:
    more = footprint(values(9)) - footprint(values(5))
    assert more == 4 * MIB
    assert footprint(values(5)) >= 6 * MIB


def test_the_work_on_the_largest_gate_counts() -> None:
    # 24 bytes of look-up tables of level 1, 4 of level 2, five ring words
    assert footprint(compared(MIB)) > 2 * (24 + 4 + 40) * MIB


def test_a_model_under_crypten() -> None:
    program = Program((Operation("input", (), (1, MIB)), Operation("relu", (0,), (1, MIB))))
    request = Request(TupleKind.PRODUCT, (1, MIB), (1, MIB))
    without = footprint(CryptenPlan("it", "1", program, ()))
    assert without == 2 * 8 * MIB
    assert footprint(CryptenPlan("it", "1", program, (request,))) == without + 5 * 8 * MIB


def test_what_is_over_the_limit_is_refused_by_its_name() -> None:
    plan = product_plan(1 << 10, 1 << 10)
    check_footprint(plan, 16 * MIB, "data owner")
    text = f"about {16 * MIB} bytes of memory at the data owner, over its limit model_bytes of"
    with pytest.raises(PlanError, match=text):
        check_footprint(plan, 16 * MIB - 1, "data owner")


def test_a_vgg_16_is_within_the_default() -> None:
    """Its largest comparison, its 138 million weights, most of them in one layer, as products."""
    builder = PlanBuilder(64, (1, 64 * 224 * 224))
    builder.add(p.Relu(opened_bits=24, shift=4), 0)
    builder.add(p.Slice((0, 0), (1, 1)), 1, shape=(1, 25_088))
    for columns in (4_096, 4_096, 3_592, 3):
        builder.add(p.MatrixProduct(columns), builder.last, shape=(1, columns))
    plan = builder.finish()
    assert weights_bytes(plan) > 8 * 134_000_000
    check_footprint(plan, MODEL_BYTES, "crypto provider")
