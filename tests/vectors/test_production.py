"""radiopaque reproduces every vector bit for bit, and refuses every bad one with its error."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from radiopaque import errors
from radiopaque.engine.local import Devices
from radiopaque.kernels.bits import pack, packed_size, unpack
from radiopaque.kernels.tensors.device import TensorDevice
from radiopaque.ring import ring_dtype
from radiopaque.wire import frames
from radiopaque.wire.frames import Frame, Kind
from radiopaque.wire.plans import decode_plan, encode_plan
from tests.vectors import basics, cases, messages, plan_forms
from tests.vectors.forms import GATES, load, plan_from_json
from tests.vectors.production import FixedSession, produce, stored_result

STREAMS = load("streams")
BITS = load("bits")
FRAMES = load("frames")
PLANS = load("plans")
MESSAGES = load("messages")
TENSORS = TensorDevice(torch.device("cpu"))
CASES = {case["name"]: case for file in cases.FILES for case in load(file)}


def named(entries: list[dict[str, Any]]) -> pytest.MarkDecorator:
    """Parametrised over entries, each a test of its name."""
    return pytest.mark.parametrize("entry", entries, ids=[entry["name"] for entry in entries])


def error_class(entry: dict[str, Any]) -> type[Exception]:
    """The expected error of a bad vector; it must be exactly this class."""
    found: type[Exception] = getattr(errors, entry["error"])
    return found


@named(STREAMS)
def test_stream(entry: dict[str, Any]) -> None:
    assert basics.stream_words(entry) == entry["words"]
    assert len(entry["words"]) == entry["count"]


def test_streams_of_other_names_share_no_word() -> None:
    """Every entry differs from the others in its name, key or gate: no words may repeat."""
    wide = [
        tuple(entry["words"])
        for entry in STREAMS
        if entry["word_bits"] >= 32 and entry["total"] == 5
    ]
    assert len({word for words in wide for word in words}) == sum(len(words) for words in wide)


@named(BITS["good"])
def test_bits(entry: dict[str, Any]) -> None:
    width, values, data = entry["width"], entry["values"], bytes.fromhex(entry["bytes"])
    assert len(data) == packed_size(len(values), width)
    for bits in (8, 16, 32, 64):
        word: np.dtype[np.unsignedinteger] = np.dtype(f"uint{bits}")
        if word.itemsize * 8 >= width:
            assert pack(np.array(values, word), width).tobytes() == data
            assert unpack(data, len(values), width, word).tolist() == values


@named(BITS["bad"])
def test_bad_bits(entry: dict[str, Any]) -> None:
    for bits in (16, 32, 64):
        word: np.dtype[np.unsignedinteger] = np.dtype(f"uint{bits}")
        with pytest.raises(errors.ProtocolError) as caught:
            unpack(bytes.fromhex(entry["bytes"]), entry["count"], entry["width"], word)
        assert type(caught.value) is error_class(entry)


@named(FRAMES["good"])
def test_frame(entry: dict[str, Any]) -> None:
    frame = Frame(
        bytes.fromhex(entry["session"]),
        entry["gate"],
        Kind[entry["kind"]],
        entry["block"],
        bytes.fromhex(entry["payload"]),
    )
    assert frames.encode(frame).hex() == entry["bytes"]
    assert frames.decode(bytes.fromhex(entry["bytes"])) == frame


@named(FRAMES["bad"])
def test_bad_frame(entry: dict[str, Any]) -> None:
    with pytest.raises(errors.ProtocolError) as caught:
        frames.decode(bytes.fromhex(entry["bytes"]))
    assert type(caught.value) is error_class(entry)


@named(PLANS["good"])
def test_plan(entry: dict[str, Any]) -> None:
    plan = plan_from_json(entry["plan"])
    assert encode_plan(plan).hex() == entry["bytes"]
    assert decode_plan(bytes.fromhex(entry["bytes"])) == plan


@named(PLANS["bad"])
def test_bad_plan(entry: dict[str, Any]) -> None:
    with pytest.raises(errors.PlanError) as caught:
        decode_plan(bytes.fromhex(entry["bytes"]))
    assert type(caught.value) is error_class(entry)
    assert entry["says"] in str(caught.value)


@named(list(CASES.values()))
def test_case(entry: dict[str, Any]) -> None:
    outputs = produce(entry["inputs"])
    for part, expected in entry["outputs"].items():
        assert outputs[part] == expected, part
    assert outputs.keys() == entry["outputs"].keys()


@pytest.mark.parametrize("party", ["crypto_provider", "model_owner", "data_owner", "all"])
@named(list(CASES.values()))
def test_case_on_tensors(entry: dict[str, Any], party: str) -> None:
    """The same messages and results to the bit, whichever party computes with torch."""
    devices = Devices.all(TENSORS) if party == "all" else Devices(**{party: TENSORS})
    outputs = produce(entry["inputs"], devices)
    for part, expected in entry["outputs"].items():
        assert outputs[part] == expected, part


@pytest.mark.parametrize("kind", messages.SHOWN_BY)
def test_messages_are_checked_on_tensors(kind: str) -> None:
    """A replay runs to its end unchanged; every change has its error, as without torch."""
    if kind in ("CORRECTION", "OFFLINE"):
        return
    case = CASES[messages.SHOWN_BY[kind][1]]
    _receive(case, Kind[kind], None, Devices.all(TENSORS))
    for entry in MESSAGES:
        if entry["kind"] == kind:
            with pytest.raises(errors.ProtocolError) as caught:
                _receive(CASES[entry["case"]], Kind[kind], entry["change"], Devices.all(TENSORS))
            assert type(caught.value) is error_class(entry)


def test_vectors_are_those_of_the_generator() -> None:
    """Nobody edits them by hand: inputs, names and bad vectors come from the generator."""
    assert basics.packings() == BITS
    assert basics.frames() == FRAMES
    assert plan_forms.plans() == PLANS
    assert messages.messages() == MESSAGES
    for file, make in cases.FILES.items():
        stored = [{"name": c["name"], "inputs": c["inputs"]} for c in load(file)]
        assert make() == stored


def test_every_gate_and_ring_has_a_vector() -> None:
    shown = {
        (case["inputs"]["plan"]["ring_bits"], step["gate"]["kind"])
        for case in CASES.values()
        for step in case["inputs"]["plan"]["steps"]
    }
    assert shown == {(k, kind) for k in (32, 64) for kind in GATES}


def _recorded(case: dict[str, Any], direction: str) -> list[Frame]:
    session = bytes.fromhex(case["inputs"]["keys"]["session"])
    return [
        Frame(session, m["gate"], Kind[m["kind"]], m["block"], bytes.fromhex(m["payload"]))
        for m in case["outputs"][direction]
    ]


def _receive(
    case: dict[str, Any], kind: Kind, change: str | None, devices: Devices | None = None
) -> list[Frame]:
    """Give the receiver of a kind its recorded messages, one changed; returns what it sent."""
    fixed = FixedSession(case["inputs"], devices)
    if kind in (Kind.CORRECTION, Kind.OFFLINE):
        offline = list(fixed.offline_message().frames())
        corrections = fixed.correction_frames()
        if change is not None and kind is Kind.OFFLINE:
            offline = messages.changed(offline, kind, change)
        elif change is not None:
            corrections = messages.changed(corrections, kind, change)
        fixed.serving(corrections, offline)
        return []
    to_model_owner = kind in (Kind.IMAGE, Kind.SELECTION, Kind.RERANDOMISED)
    direction = "data_owner_to_model_owner" if to_model_owner else "model_owner_to_data_owner"
    recorded = _recorded(case, direction)
    if change is not None:
        recorded = messages.changed(recorded, kind, change)
    channel = messages.Replay(recorded)
    if to_model_owner:
        fixed.serving().run(channel)
    else:
        assert stored_result(fixed.asking(), fixed.images, channel) == case["outputs"]["result"]
    assert channel.frames == []
    return channel.sent


@pytest.mark.parametrize("kind", messages.SHOWN_BY)
def test_unchanged_messages_are_accepted(kind: str) -> None:
    """The ground of the bad messages: the same replay without a change runs to its end."""
    case = CASES[messages.SHOWN_BY[kind][1]]
    sent = _receive(case, Kind[kind], None)
    if kind not in ("CORRECTION", "OFFLINE"):
        to_model_owner = kind in ("IMAGE", "SELECTION", "RERANDOMISED")
        other = "model_owner_to_data_owner" if to_model_owner else "data_owner_to_model_owner"
        assert sent == _recorded(case, other)


@named(MESSAGES)
def test_bad_message(entry: dict[str, Any]) -> None:
    with pytest.raises(errors.ProtocolError) as caught:
        _receive(CASES[entry["case"]], Kind[entry["kind"]], entry["change"])
    assert type(caught.value) is error_class(entry)


def test_ring_words_of_the_vectors_are_little_endian() -> None:
    """The first image word in the vectors is x - A mod 2**k, low byte first."""
    case = CASES["input_32"]
    payload = bytes.fromhex(case["outputs"]["data_owner_to_model_owner"][0]["payload"])
    fixed = FixedSession(case["inputs"])
    mask = fixed.own_key().streams().words(0, "mask", (15,), ring_dtype(32))
    expected = (case["inputs"]["image"][0] - int(mask[0])) % (1 << 32)
    assert int.from_bytes(payload[:4], "little") == expected
