"""Plans as bytes: every field survives, one encoding only, and bad bytes raise PlanError alone."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from radiopaque.errors import PlanDigestError, PlanError
from radiopaque.gates import plan_cost
from radiopaque.graph import plan as p
from radiopaque.graph.validate import MAX_STEPS
from radiopaque.wire import plans
from radiopaque.wire.plans import decode_plan, encode_plan, load_plan
from radiopaque.wire.v1 import plan_pb2 as pb
from tests.plans import PlanBuilder
from tests.reference.encoding import encode_plan as reference_encoding
from tests.vectors.forms import GATES, plan_to_json
from tests.vectors.plan_forms import full_plan, small_plan


def plan_of_every_gate() -> p.Plan:
    """Each gate once, no field at its default where the plan's rules let it differ."""
    build = PlanBuilder(64, (2, 4, 9, 8), 1 << 20, 7, "every-gate")
    conv = p.Convolution(6, (3, 2), (2, 1), (1, 0, 2, 1), (1, 2), 2)
    build.add(conv, 0, shape=(2, 6, 5, 7), limit=1 << 30, fraction_bits=12)
    build.add(p.AddConstant((6, 1, 7)), 1)
    build.add(p.Truncate(40, 9), 2, limit=1 << 22)
    build.add(p.WindowSum((2, 3), (2, 2), (0, 1, 1, 0), (1, 1)), 3, shape=(2, 6, 3, 3))
    build.add(p.Slice((0, 1, 0, 2), (1, 3, 2, 1)), 4, shape=(2, 2, 2, 1))
    build.add(p.Expand(), 5, shape=(2, 2, 2, 4))
    build.add(p.Transpose((3, 0, 2, 1)), 6, shape=(4, 2, 2, 2))
    build.add(p.Pad((0, 1, 0, 2), (1, 0, 0, 3), -(1 << 40)), 7, shape=(5, 3, 2, 7))
    build.add(p.Concatenate(2), 8, 8, shape=(5, 3, 4, 7))
    build.add(p.Combine((-(1 << 63), (1 << 63) - 1, 0)), 9, 9, 9, limit=1 << 30)
    build.add(p.Relu(41, 16), 10, limit=1 << 14)
    build.add(p.Reshape(), 11, shape=(5, 84))
    build.add(p.MatrixProduct(3), 12, shape=(5, 3))
    build.add(p.Remask(), 13)
    build.add(p.Multiply((5, 1)), 14, limit=1 << 38)
    return build.finish(20, 21)


def test_every_field_survives() -> None:
    for plan in (plan_of_every_gate(), full_plan(), small_plan()):
        assert decode_plan(encode_plan(plan)) == plan
        assert encode_plan(plan) == reference_encoding(plan_to_json(plan))
    assert {type(step.gate) for step in plan_of_every_gate().steps} == set(GATES.values())


def test_no_field_of_a_gate_is_left_out() -> None:
    """The message, the class and the table between them have the same fields in the same order."""
    assert set(plans._FIELDS) == set(GATES.values())
    for kind, fields in plans._FIELDS.items():
        assert fields == tuple(field.name for field in dataclasses.fields(kind))
        descriptor = pb.DESCRIPTOR.message_types_by_name[kind.__name__]
        assert fields == tuple(field.name for field in descriptor.fields)
    for kind in (p.Preprocessing, p.IntendedUse):
        descriptor = pb.DESCRIPTOR.message_types_by_name[kind.__name__]
        assert {f.name for f in dataclasses.fields(kind)} == {f.name for f in descriptor.fields}


def test_optional_parts() -> None:
    plan = small_plan()
    for task in ("raw", "multiclass", "multilabel"):
        for use in (None, p.IntendedUse(), p.IntendedUse(age_years=(0.0, 1.5), statement="x")):
            changed = dataclasses.replace(plan, task=task, intended_use=use)
            assert decode_plan(encode_plan(changed)) == changed


def test_digest_names_the_bytes() -> None:
    data = encode_plan(full_plan())
    digest = p.plan_digest(data)
    assert len(digest) == 32
    assert load_plan(data, digest) == full_plan()
    for other in (encode_plan(small_plan()), data[:-1], b""):
        with pytest.raises(PlanDigestError, match="check who serves it") as caught:
            load_plan(other, digest)
        assert digest.hex()[:16] in str(caught.value)


def test_size_is_checked_before_parsing() -> None:
    data = b"\xff" * (plans.MAX_PLAN_BYTES + 1)
    with pytest.raises(PlanError, match="over the limit"):
        decode_plan(data)
    with pytest.raises(PlanError, match="not a plan"):
        decode_plan(data[:-1])


def test_number_of_steps_is_checked_before_they_are_read() -> None:
    data = encode_plan(small_plan()) + bytes.fromhex("2a03820100") * MAX_STEPS
    with pytest.raises(PlanError, match="at most 20000 steps, this one 20004"):
        decode_plan(data)


def test_the_longest_plan_fits_the_message() -> None:
    build = PlanBuilder(32, (1, 3, 224, 224), 1 << 20)
    for _ in range(3000):
        build.add(p.Combine((1, -(1 << 40))), build.last, build.last)
    data = encode_plan(build.finish())
    assert len(data) < plans.MAX_PLAN_BYTES
    assert len(decode_plan(data).steps) == 3002


ENCODED = [encode_plan(plan) for plan in (small_plan(), full_plan(), plan_of_every_gate())]


def _only_plan_errors(data: bytes) -> None:
    try:
        plan = decode_plan(data)
    except PlanError:
        return
    assert encode_plan(plan) == data
    assert plan_cost(plan).round_trips >= 1  # and what is accepted can be planned with
    assert plan.batch >= 1


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(ENCODED), st.data())
def test_mutated_bytes(data: bytes, draw: st.DataObject) -> None:
    """Set, cut, repeated and inserted bytes: a PlanError, or a plan with exactly these bytes."""
    mutated = bytearray(data)
    for _ in range(draw.draw(st.integers(1, 4))):
        position = draw.draw(st.integers(0, len(mutated)))
        end = min(len(mutated), position + draw.draw(st.integers(0, 12)))
        kind = draw.draw(st.sampled_from(("set", "cut", "repeat", "insert")))
        if kind == "set" and position < len(mutated):
            mutated[position] = draw.draw(st.integers(0, 255))
        elif kind == "cut":
            del mutated[position:end]
        elif kind == "repeat":
            mutated[position:position] = mutated[position:end]
        else:
            mutated[position:position] = draw.draw(st.binary(max_size=8))
    _only_plan_errors(bytes(mutated))


numbers = st.one_of(
    st.integers(0, 9),
    st.sampled_from((31, 32, 33, 63, 64, 1 << 24, (1 << 28) + 1, (1 << 31) - 1, (1 << 32) - 1)),
)


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(ENCODED), st.data())
def test_mutated_fields(data: bytes, draw: st.DataObject) -> None:
    """Well-formed plans with other numbers, counts of numbers, inputs, and gates."""
    message = pb.Plan.FromString(data)
    for _ in range(draw.draw(st.integers(1, 4))):
        step = message.steps[draw.draw(st.integers(0, len(message.steps) - 1))]
        gate = getattr(step, step.WhichOneof("gate"))
        target = draw.draw(st.sampled_from((step, gate)))
        fields = [f for f in target.DESCRIPTOR.fields if f.number < 16]
        if not fields:
            continue
        field = draw.draw(st.sampled_from(fields))
        value = getattr(target, field.name)
        if isinstance(value, int):
            setattr(target, field.name, draw.draw(numbers))
        else:
            changed = list(value)
            where = draw.draw(st.integers(0, len(changed)))
            changed[where : where + draw.draw(st.integers(0, 1))] = draw.draw(
                st.lists(numbers, max_size=2)
            )
            target.ClearField(field.name)
            getattr(target, field.name).extend(changed)
        if draw.draw(st.integers(0, 9)) == 0:
            kind = draw.draw(st.sampled_from([f for f in step.DESCRIPTOR.fields if f.number > 15]))
            getattr(step, kind.name).SetInParent()
    _only_plan_errors(message.SerializeToString(deterministic=True))


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200))
def test_arbitrary_bytes(data: bytes) -> None:
    _only_plan_errors(data)
    _only_plan_errors(ENCODED[0] + data)


def test_every_single_byte_of_a_plan_counts() -> None:
    """No byte can be changed without the plan being refused or another one."""
    data = ENCODED[0]
    for position in range(len(data)):
        for change in (1, 0x80):
            mutated = bytearray(data)
            mutated[position] ^= change
            _only_plan_errors(bytes(mutated))
