"""The rules of masks and streams, each with a breach that its check notices.

Rules 1, 4, 5 and 6 of docs/protocol.md, section 9.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields as dataclass_fields
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto
from numpy.typing import DTypeLike, NDArray

from radiopaque.engine import artefact as artefacts
from radiopaque.engine import data_owner
from radiopaque.engine.weights_file import write_compiled
from radiopaque.graph import plan as p
from radiopaque.graph.weights import Weights
from radiopaque.kernels import comparison
from radiopaque.prg import SecretKey, Streams, stream_info
from radiopaque.wire.frames import Kind
from radiopaque.wire.plans import encode_plan
from radiopaque.wire.v1 import plan_pb2
from tests.protocol import chisquare, fields, sessions
from tests.protocol.network import images, small_plan, small_weights
from tests.protocol.sessions import Session, run_session, schedule

ROOT = Path(__file__).parents[2]
NOTICED = (AssertionError, pytest.fail.Exception)
PLAN = small_plan()
IMAGE = images()["noise"]


def run(again: Session | None = None) -> Session:
    return run_session(PLAN, small_weights(), IMAGE, again=again)


# --- openings: only the high bits go to the data owner -----------------------------------------


def rounding_plan() -> p.Plan:
    """A truncation and a ReLU on the input itself, so that a test knows what is opened."""
    shape = (1, 512)
    return p.Plan(
        32,
        "rounding",
        "1",
        (
            p.Step(p.Input(), (), shape, 12, limit=1 << 14),
            p.Step(p.Truncate(24, 5), (0,), shape, 7),
            p.Step(p.Relu(24, 5), (0,), shape, 7),
            p.Step(p.Combine((1, 1)), (1, 2), shape, 7, limit=1 << 12),
            p.Step(p.Output(16, 0), (3,), shape, 7),
        ),
    )


def check_low_bits_stay_with_the_model_owner() -> None:
    """Other low bits of r, on the same side of the carry, change no byte to the data owner."""
    plan, generator = rounding_plan(), np.random.default_rng()
    image = generator.uniform(-2, 2, (1, 512))
    base = run_session(plan, Weights({}, {}), image)
    rest = data_owner.encode_images(plan, image).reshape(-1) & np.uint32(31)
    changed = []

    def other_low_bits(
        self: Streams, original: Callable[..., NDArray[np.uint32]], *name: object
    ) -> NDArray[np.uint32] | None:
        if name[1] != "opening":
            return None
        own = original(self, *name)
        low = (own + original(base.data_owner_streams(), *name)) & np.uint32(31)
        room = np.uint32(32) - rest
        carrying = generator.integers(np.minimum(room, 31), 32)
        chosen = np.where(rest + low >= 32, carrying, generator.integers(0, room))
        changed.append(int((chosen != low).sum()))
        return own + chosen.astype(np.uint32) - low

    generator_state = generator.bit_generator.state
    with pytest.MonkeyPatch.context() as monkeypatch:

        def repeatable(*arguments: object) -> NDArray[np.uint32] | None:
            generator.bit_generator.state = generator_state  # dealer and owner draw alike
            return other_low_bits(*arguments)  # type: ignore[arg-type]

        sessions.substituted(monkeypatch, "model-owner", repeatable)
        other = run_session(plan, Weights({}, {}), image, again=base)
    assert min(changed) > 256
    assert other.to_data_owner == base.to_data_owner


def test_low_bits_stay_with_the_model_owner(monkeypatch: pytest.MonkeyPatch) -> None:
    check_low_bits_stay_with_the_model_owner()
    original = comparison.open_comparison

    def low_bit_too(h, offset, *rest):  # type: ignore[no-untyped-def]
        original(h, offset, *rest)
        first, message = rest[2], rest[6]
        block = slice(first, first + message.shape[1])
        message[0] ^= ((h[block] + offset[block]) & 1).astype(np.uint8)

    monkeypatch.setattr(comparison, "open_comparison", low_bit_too)
    with pytest.raises(NOTICED):
        check_low_bits_stay_with_the_model_owner()


def test_an_opening_has_room_for_its_high_bits_alone() -> None:
    session = run()
    sizes = {(f.gate, f.kind): 8 * len(f.payload) for f in session.to_data_owner}
    for number, step in enumerate(PLAN.steps):
        if isinstance(step.gate, p.Relu):
            high = step.gate.opened_bits - step.gate.shift
            assert sizes[number, Kind.OPENING] == step.size * (high + 2 * step.gate.chunks - 1)
        if isinstance(step.gate, p.Truncate):
            assert sizes[number, Kind.TOP_BIT] == step.size


# --- a fresh key_B for every artefact -----------------------------------------------------------


def check_artefacts_differ(directory: Path) -> None:
    plan, weights = PLAN, small_weights()
    words = []
    for name in "ab":
        compiled = write_compiled(directory / name, plan, weights)
        masked = artefacts.mask_weights(plan, weights, compiled.key)
        words.append(np.frombuffer(masked, np.uint32).astype(np.uint64))
    difference = fields.mod(words[0] - words[1], 32)
    assert min(chisquare.uniform(difference, 32)) > chisquare.THRESHOLD


def test_compiling_twice_gives_unrelated_masked_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_artefacts_differ(tmp_path / "fresh")
    fixed = artefacts.ArtefactKey.generate(p.plan_digest(encode_plan(PLAN)))
    monkeypatch.setattr(artefacts.ArtefactKey, "generate", lambda digest: fixed)
    with pytest.raises(NOTICED):
        check_artefacts_differ(tmp_path / "reused")


# --- one stream, one purpose; gate ids are positions --------------------------------------------


def check_streams() -> None:
    """Every keystream has one name, one shape, and as many bits as the messages need pads."""
    names: dict[tuple[bytes, bytes], set[tuple[object, ...]]] = {}
    pads: dict[tuple[int, str], int] = {}
    with pytest.MonkeyPatch.context() as monkeypatch:
        fill, words = Streams._fill, Streams.words
        current: list[tuple[object, ...]] = []

        def named(self: Streams, gate: int, quantity: str, shape, dtype, out=None):  # type: ignore[no-untyped-def]
            current.append((self._role, gate, quantity, tuple(shape), np.dtype(dtype)))
            if self._role == "data-owner":
                pads[gate, quantity] = int(np.prod(shape)) * pad_width(gate, quantity, dtype)
            return words(self, gate, quantity, shape, dtype, out)

        def keyed(self: Streams, gate: int, quantity: str, out: memoryview) -> None:
            probe = np.empty(32, np.uint8)
            fill(self, gate, quantity, probe.data)
            names.setdefault((self._key.reveal(), probe.tobytes()), set()).add(current[-1])
            fill(self, gate, quantity, out)

        monkeypatch.setattr(Streams, "words", named)
        monkeypatch.setattr(Streams, "_fill", keyed)
        run()
    keystreams = [keystream for _, keystream in names]
    assert len(set(keystreams)) == len(keystreams)
    for uses in names.values():
        assert len(uses) == 1, f"one keystream, several uses: {uses}"
    needed = sum(d.count * d.width for d in schedule(PLAN) if d.receiver == "model-owner")
    assert sum(pads.values()) == needed


def pad_width(gate: int, quantity: str, dtype: DTypeLike) -> int:
    """Bits of a stream's words that count."""
    step = PLAN.steps[gate].gate
    if quantity == "opening":
        assert isinstance(step, p.Truncate | p.Relu)
        return step.opened_bits
    if quantity == "selection":
        assert isinstance(step, p.Relu)
        return 2 * step.chunks - 1
    return 1 if quantity == "decision" else 8 * np.dtype(dtype).itemsize


def test_every_stream_serves_one_purpose(monkeypatch: pytest.MonkeyPatch) -> None:
    check_streams()

    words = Streams.words

    def renamed(was: str, to: str):  # type: ignore[no-untyped-def]
        def streams(self, gate, quantity, *more):  # type: ignore[no-untyped-def]
            return words(self, gate, to if quantity == was else quantity, *more)

        return streams

    def without_gate(digest, context, role, gate, quantity):  # type: ignore[no-untyped-def]
        return stream_info(digest, context, role, 0, quantity)

    def without_role(digest, context, role, gate, quantity):  # type: ignore[no-untyped-def]
        return stream_info(digest, context, "data-owner", gate, quantity)

    breaches = (
        ("radiopaque.prg.Streams.words", renamed("level2", "level1")),
        ("radiopaque.prg.Streams.words", renamed("products", "mask")),
        ("radiopaque.prg.stream_info", without_gate),
    )
    for target, breach in breaches:
        with monkeypatch.context() as patch:
            patch.setattr(target, breach)
            with pytest.raises(NOTICED):
                check_streams()


def check_no_name_in_a_plan(file: FileDescriptorProto) -> None:
    """Nothing in a step but its position can tell it from another."""
    messages = {message.name: message for message in file.message_type}
    reached, waiting = set(), ["Step"]
    while waiting:
        name = waiting.pop()
        if name not in reached:
            reached.add(name)
            waiting += [f.type_name.split(".")[-1] for f in messages[name].field if f.type_name]
    text = (FieldDescriptorProto.TYPE_STRING, FieldDescriptorProto.TYPE_BYTES)
    named = [f.name for name in reached for f in messages[name].field if f.type in text]
    assert not named
    plain = {f.name for f in messages["Step"].field if not f.HasField("oneof_index")}
    assert plain == {"inputs", "shape", "fraction_bits", "divisor", "limit"}


def test_gates_are_named_by_their_position() -> None:
    assert {f.name for f in dataclass_fields(p.Step)} == {
        *("gate", "inputs", "shape", "fraction_bits", "divisor", "limit")
    }
    file = FileDescriptorProto.FromString(plan_pb2.DESCRIPTOR.serialized_pb)
    check_no_name_in_a_plan(file)
    for kind in (FieldDescriptorProto.TYPE_STRING, FieldDescriptorProto.TYPE_UINT32):
        changed = FileDescriptorProto.FromString(plan_pb2.DESCRIPTOR.serialized_pb)
        step = next(m for m in changed.message_type if m.name == "Step")
        step.field.add(name="id", number=90, type=kind)
        with pytest.raises(NOTICED):
            check_no_name_in_a_plan(changed)

    drawn: set[tuple[int, str]] = set()
    with pytest.MonkeyPatch.context() as monkeypatch:
        sessions.watched(monkeypatch, "data-owner", lambda gate, name: drawn.add((gate, name)))
        run()
    fresh = {i for i, step in enumerate(PLAN.steps) if isinstance(step.gate, p.FRESH_GATES)}
    assert {gate for gate, name in drawn if name == "mask"} == fresh


def test_swapping_two_steps_changes_every_stream() -> None:
    plan = rounding_plan()
    one, two = plan.steps[1:3]
    swapped = replace(plan, steps=(plan.steps[0], two, one, *plan.steps[3:]))
    digests = [p.plan_digest(encode_plan(plan)), p.plan_digest(encode_plan(swapped))]
    assert digests[0] != digests[1]
    key = SecretKey.generate()
    words = [
        Streams(key, digest, bytes(16), "data-owner").words(gate, "mask", (8,), np.uint32).tobytes()
        for digest in digests
        for gate in range(len(plan.steps))
    ]
    assert len(set(words)) == len(words)


# --- masks are uniform over exactly the ring in which a value is sent ---------------------------

RELU, TRUNCATION, REMASK, LINEAR = 15, 2, 23, 14
V = {RELU: 3, TRUNCATION: 1}
"""Column of v among the arithmetic shares."""


def shift_of(number: int) -> int:
    gate = PLAN.steps[number].gate
    assert isinstance(gate, p.Truncate | p.Relu)
    return gate.shift


def compared_bits_of(number: int) -> int:
    gate = PLAN.steps[number].gate
    assert isinstance(gate, p.Relu)
    return gate.compared_bits


N = compared_bits_of(RELU)


# role, quantity, gate, field of the message, bits of the field that the pad covers, how the message
# moves when the pad moves
PADS: list[tuple[str, str, int, str, tuple[int, int], str]] = [
    ("data-owner", "mask", 0, "image less mask", (0, 32), "-"),
    ("data-owner", "mask", RELU, "re-randomised share", (0, 32), "-"),
    ("data-owner", "mask", TRUNCATION, "re-randomised share", (0, 32), "-"),
    ("data-owner", "mask", REMASK, "re-mask", (0, 32), "-"),
    ("data-owner", "opening", RELU, "delta", (0, 27), "+"),
    ("data-owner", "opening", TRUNCATION, "delta", (0, 24), "+"),
    ("data-owner", "selection", RELU, "selection", (0, 5), "^"),
    ("data-owner", "level1", RELU, "level 1", (0, 64), "^"),
    ("data-owner", "level2", RELU, "level 2", (0, 32), "^"),
    ("data-owner", "products", RELU, "correction v", (0, 32), "-"),
    ("data-owner", "products", TRUNCATION, "truncation correction v", (0, 32), "-"),
    ("data-owner", "product", LINEAR, "product", (0, 32), "-"),
    ("model-owner", "opening", RELU, "opening", (0, N + 1), "+"),
    ("model-owner", "selection", RELU, "opening", (N + 1, N + 6), "^"),
    ("model-owner", "decision", RELU, "decision bit", (0, 1), "^"),
    ("artefact", "weights", LINEAR, "masked weights", (0, 32), "-"),
]


def check_pad_covers_its_message(
    role: str, quantity: str, gate: int, name: str, bits: tuple[int, int], how: str
) -> None:
    """Moving the pad by any amount moves the message by as much, in the message's own group."""
    moves: list[NDArray[np.uint64]] = []

    def moved(
        self: Streams, original: Callable[..., NDArray[np.unsignedinteger]], *what: object
    ) -> NDArray[np.unsignedinteger] | None:
        if what[:2] != (gate, quantity):
            return None
        words = original(self, *what)
        if not moves:
            top = np.iinfo(words.dtype).max
            drawn = np.random.default_rng().integers(0, top, words.shape, np.uint64, endpoint=True)
            if quantity == "products":
                drawn[np.arange(len(drawn)) != V[gate]] = 0
            if (role, quantity) == ("model-owner", "opening"):
                drawn = drawn & ~np.uint64((1 << shift_of(gate)) - 1)
            moves.append(drawn)
        move = moves[0].astype(words.dtype)
        return words ^ move if how == "^" else words + move

    def read(session: Session) -> NDArray[np.uint64]:
        view = fields.model_owner_fields if role == "data-owner" else fields.data_owner_fields
        values = next(f.values for f in view(session) if (f.name, f.gate) == (name, gate))
        return fields.mod(values >> np.uint64(bits[0]), bits[1] - bits[0])

    base = run()
    with pytest.MonkeyPatch.context() as monkeypatch:
        sessions.substituted(monkeypatch, role, moved)
        other = run(again=base)
    move = (moves[0][V[gate]] if quantity == "products" else moves[0]).reshape(-1)
    if (role, quantity) == ("model-owner", "opening"):
        move = move >> np.uint64(shift_of(gate))
    before, after = read(base), read(other)
    expected = {"+": before + move, "-": before - move, "^": before ^ move}[how]
    assert np.array_equal(after, fields.mod(expected, bits[1] - bits[0]))


@pytest.mark.parametrize("pad", PADS, ids=lambda pad: f"{pad[0]} {pad[1]} {pad[2]}")
def test_masks_are_uniform_over_the_ring_of_their_message(
    pad: tuple[str, str, int, str, tuple[int, int], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    check_pad_covers_its_message(*pad)
    role, quantity, gate, _, bits, _ = pad
    lost = 1 << bits[1] - bits[0] - 1
    if (role, quantity) == ("model-owner", "opening"):
        lost <<= shift_of(gate)
    words = Streams.words

    def too_small(self, number, name, shape, dtype, out=None):  # type: ignore[no-untyped-def]
        found = words(self, number, name, shape, dtype, out)
        if (self._role, name) == (role, quantity):
            found &= ~found.dtype.type(lost)
        return found

    original = sessions.substituted

    def substituted(patch, changed_role, stand_in):  # type: ignore[no-untyped-def]
        """The mask loses its top bit after the move, wherever it is used."""

        def smaller(*arguments):  # type: ignore[no-untyped-def]
            found = stand_in(*arguments)
            return found if found is None else found & ~found.dtype.type(lost)

        original(patch, changed_role, smaller)

    monkeypatch.setattr(Streams, "words", too_small)
    monkeypatch.setattr(sessions, "substituted", substituted)
    with pytest.raises(NOTICED):
        check_pad_covers_its_message(*pad)
