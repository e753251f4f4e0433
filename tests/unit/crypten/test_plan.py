"""Plans for CrypTen: one encoding each, every rule checked, never taken for a plan of the gates."""

from __future__ import annotations

from dataclasses import replace

import pytest

from radiopaque.engine.crypten.encoding import decode_plan, encode_plan
from radiopaque.engine.crypten.plan import LEAST_ERRORS, CryptenPlan
from radiopaque.engine.crypten.program import Operation, Program
from radiopaque.engine.crypten.tuples import Request, TupleKind
from radiopaque.engine.plans import decode_any, is_crypten, load_any
from radiopaque.engine.warm_up import miniature
from radiopaque.errors import PlanDigestError, PlanError
from radiopaque.graph.plan import IntendedUse, Preprocessing, plan_digest
from radiopaque.wire import plans as gate_plans
from radiopaque.wire.plans import MAX_PLAN_BYTES
from radiopaque.wire.v1 import crypten_pb2 as pb

OPERATIONS = (
    Operation("input", (), (1, 1, 4, 4)),
    Operation("constant", (), (2, 1, 3, 3)),
    Operation("conv", (0, 1), (1, 2, 2, 2), (1, 1, 0, 0, 1, 1, 1)),
    Operation("clip", (2,), (1, 2, 2, 2), (), (0.0, 6.0)),
    Operation("reshape", (3,), (1, 8)),
)
REQUESTS = (
    Request(TupleKind.CONVOLUTION, (1, 1, 4, 4), (2, 1, 3, 3), (1, 1, 0, 0, 1, 1, 1)),
    Request(TupleKind.CONJUNCTION, (2, 8), (2, 8)),
    Request(TupleKind.BIT, (8,)),
)
PLAN = CryptenPlan(
    "model",
    "1.0",
    Program(OPERATIONS),
    REQUESTS,
    tuple("abcdefgh"),
    "multilabel",
    Preprocessing(1, 4, 4, "fit", "bilinear", (0.5,), (0.25,)),
    IntendedUse(("CR",), ("CHEST",), (), (1.0, 5.0), "Not for diagnosis."),
    0.001,
    3.5,
)


def test_a_plan_survives_its_encoding() -> None:
    data = encode_plan(PLAN)
    assert decode_plan(data) == PLAN
    assert decode_any(data) == PLAN
    assert load_any(data, plan_digest(data)) == PLAN
    bare = replace(PLAN, preprocessing=None, intended_use=None, classes=(), requests=())
    assert decode_plan(encode_plan(bare)) == bare


def test_the_two_kinds_of_plans_are_told_apart() -> None:
    gates = gate_plans.encode_plan(miniature(32, 18))
    own = encode_plan(PLAN)
    assert (is_crypten(own), is_crypten(gates)) == (True, False)
    assert decode_any(gates) == miniature(32, 18)
    with pytest.raises(PlanError, match="format 6 is not 5"):
        gate_plans.decode_plan(own)
    with pytest.raises(PlanError):
        decode_plan(gates)
    with pytest.raises(PlanDigestError):
        load_any(own, plan_digest(gates))


def test_the_cost_is_that_of_its_tuples() -> None:
    cost = PLAN.cost()
    opened = 8 * (16 + 18) + 8 * (16 + 16) + 8 * 8
    assert cost.round_trips == 4
    assert cost.to_model_owner_bytes == opened + 32
    assert cost.to_data_owner_bytes == opened + 8 * 8
    assert cost.correction_bytes == 8 * 8 + 8 * 16 + 8 * 8


def changed(number: int, **fields: object) -> CryptenPlan:
    """The plan with one operation changed."""
    operations = list(OPERATIONS)
    operations[number] = replace(operations[number], **fields)  # type: ignore[arg-type]
    return replace(PLAN, program=Program(tuple(operations)))


BAD: dict[str, tuple[CryptenPlan, str]] = {
    "unknown operation": (changed(3, name="erase"), "not known"),
    "module of CrypTen's": (changed(3, name="Module"), "not known"),
    "reads itself": (changed(3, inputs=(3,)), "not before it"),
    "reads a later value": (changed(2, inputs=(0, 4)), "not before it"),
    "too few inputs": (changed(2, inputs=(0,)), "wrong number"),
    "too many parameters": (changed(2, integers=(1,) * 8), "wrong number"),
    "no bound": (changed(3, reals=(0.0,)), "wrong number"),
    "a bound that is no number": (changed(3, reals=(0.0, float("nan"))), "wrong number"),
    "second input": (changed(1, name="input"), "first operation"),
    "no input": (changed(0, name="constant"), "first operation"),
    "empty tensor": (changed(1, shape=(2, 0, 3, 3)), "no tensor's"),
    "a gigantic tensor": (changed(1, shape=(1 << 20, 1 << 20)), "elements"),
    "more than fits at one time": (
        replace(
            PLAN,
            program=Program(
                (
                    Operation("input", (), (1, 1, 4, 4)),
                    *(Operation("constant", (), (1 << 26,)) for _ in range(5)),
                    Operation("reshape", (0,), (1, 16)),
                )
            ),
            classes=(),
        ),
        "at one time",
    ),
    "many axes": (changed(1, shape=(1,) * 7), "no tensor's"),
    "one operation": (replace(PLAN, program=Program(OPERATIONS[:1])), "2 to"),
    "classes that do not match": (replace(PLAN, classes=("a", "b")), "2 classes"),
    "another image": (
        replace(PLAN, preprocessing=Preprocessing(1, 5, 5, "fit", "bilinear", (0.5,), (0.25,))),
        "preprocessing makes",
    ),
    "an image of other channels": (changed(0, shape=(1, 3, 4, 4)), "does not exist on"),
    "a shape that does not follow": (changed(4, shape=(1, 9)), "does not exist on"),
    "a name that steers a terminal": (replace(PLAN, name="\x1b[2J"), "control characters"),
    "negative errors": (replace(PLAN, gross_errors=-1.0), "positive"),
    "errors rarer than any": (replace(PLAN, gross_errors=5e-324), "no truncation gives"),
    "infinite output": (replace(PLAN, largest_output=float("inf")), "positive"),
    "a tuple that does not exist": (
        replace(PLAN, requests=(Request(TupleKind.PRODUCT, (3,), (4,)),)),
        "does not exist",
    ),
    "a scalar image": (
        replace(
            PLAN,
            program=Program((Operation("input", (), ()), Operation("relu", (0,), ()))),
            preprocessing=None,
            classes=(),
        ),
        "batch",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_plan_that_breaks_a_rule_is_refused(name: str) -> None:
    plan, reason = BAD[name]
    with pytest.raises(PlanError, match=reason):
        decode_plan(encode_plan(plan))


def message() -> pb.CryptenPlan:
    return pb.CryptenPlan.FromString(encode_plan(PLAN))


def test_only_one_encoding_is_accepted() -> None:
    data = encode_plan(PLAN)
    for other in (data + b"\x78\x01", data + data[:2], b"\x10\x02" + data, data[:-1], b""):
        with pytest.raises(PlanError):
            decode_plan(other)
    with pytest.raises(PlanError, match="over the limit"):
        decode_plan(bytes(MAX_PLAN_BYTES + 1))


def test_unknown_kinds_are_refused() -> None:
    other = message()
    other.requests[0].tuple = 9  # type: ignore[assignment]
    with pytest.raises(PlanError, match="does not know"):
        decode_plan(other.SerializeToString(deterministic=True))
    other = message()
    other.task = 9  # type: ignore[assignment]
    with pytest.raises(PlanError, match="no known task"):
        decode_plan(other.SerializeToString(deterministic=True))
    other = message()
    other.format = 5
    with pytest.raises(PlanError):
        decode_plan(other.SerializeToString(deterministic=True))


@pytest.mark.parametrize(
    ("expected", "rate"),
    [
        (0.0, "none"),
        (0.9, "most of them"),
        (0.25, "one in 4"),
        (9.138e-5, "one in 11,000"),
        (LEAST_ERRORS, "one in 18,000,000,000,000,000,000"),
    ],
)
def test_the_rate_of_gross_errors_in_words(expected: float, rate: str) -> None:
    assert replace(PLAN, gross_errors=expected).error_rate == rate


def test_damaged_bytes_are_refused_or_another_plan() -> None:
    """Every byte changed in several ways: PlanError, or a plan that has exactly these bytes."""
    data = encode_plan(PLAN)
    accepted = 0
    for at in range(len(data)):
        for change in (0x01, 0x10, 0x80, 0xFF):
            damaged = bytearray(data)
            damaged[at] ^= change
            try:
                found = decode_any(bytes(damaged))
            except PlanError:
                continue
            accepted += 1
            assert isinstance(found, CryptenPlan)
            assert encode_plan(found) == damaged
    assert accepted < 2 * len(data)  # of four times as many
