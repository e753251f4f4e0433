"""The slow second implementation re-derives every vector, and means the right mathematics."""

from __future__ import annotations

import ast
import hashlib
import sys
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from tests.reference import ciphers, encoding
from tests.reference.linear import SECRET_WEIGHTS, apply_weights, linear_part
from tests.reference.session import Session
from tests.reference.streams import Streams
from tests.reference.tensors import Tensor, expand
from tests.reference.walk import derive, walk
from tests.vectors.forms import FOLDER, load

GATE_FILES = sorted(path.stem for path in FOLDER.glob("gate_*.json"))
PUBLIC = (
    "combine",
    "reshape",
    "transpose",
    "slice",
    "pad",
    "concatenate",
    "expand",
    "window_sum",
)
CASES = [case for file in (*GATE_FILES, "network") for case in load(file)]


def named(entries: list[dict[str, Any]]) -> pytest.MarkDecorator:
    """Parametrised over entries, each a test of its name."""
    return pytest.mark.parametrize("entry", entries, ids=[entry["name"] for entry in entries])


def test_reference_stands_on_its_own() -> None:
    """It agrees with radiopaque because both are right, not because they share code.

    Of all modules that the walk reaches: nothing but the standard library.
    """
    folder = Path(encoding.__file__).parent
    due, seen = ["walk"], set()
    while due:
        name = due.pop()
        seen.add(name)
        for node in ast.walk(ast.parse((folder / f"{name}.py").read_text())):
            modules = []
            if isinstance(node, ast.ImportFrom):
                modules = [f"{node.module}.{alias.name}" for alias in node.names]
            elif isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            for module in modules:
                top, *rest = module.split(".")
                if top == "tests":
                    assert rest[0] == "reference", f"{name} imports {module}"
                    due += {rest[1]} - seen
                else:
                    assert top in sys.stdlib_module_names, f"{name} imports {module}"
    assert {"walk", "ciphers", "streams", "comparison", "linear", "tensors", "encoding"} <= seen


def test_chacha20_block_of_rfc_8439() -> None:
    """Section 2.3.2."""
    block = ciphers.chacha20_block(bytes(range(32)), 1, bytes.fromhex("000000090000004a00000000"))
    assert block.hex() == (
        "10f1e7e4d13b5915500fdd1fa32071c4c7d1f4c733c068030422aa9ac3d46c4e"
        "d2826446079faa0914c2d705d98b02a2b5129cd1de164eb9cbd083e8a2503c4e"
    )


def test_keystream_is_the_blocks_from_counter_zero() -> None:
    """RFC 8439, appendix A.1, test vector 1, and reading from any position."""
    stream = ciphers.keystream(bytes(32), 0, 150)
    assert stream[:64].hex() == (
        "76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc8b770dc7"
        "da41597c5157488d7724e03fb8d84a376a43b8f41518a11cc387b669b2ee6586"
    )
    for start, length in product((0, 1, 63, 64, 65), (0, 1, 64, 85)):
        assert ciphers.keystream(bytes(32), start, length) == stream[start : start + length]


def test_hkdf_of_rfc_5869() -> None:
    """Appendix A, test cases 1 and 3."""
    first = ciphers.hkdf_sha256(bytes([0x0B] * 22), bytes(range(13)), bytes(range(0xF0, 0xFA)), 42)
    assert first.hex() == (
        "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865"
    )
    third = ciphers.hkdf_sha256(bytes([0x0B] * 22), b"", b"", 42)
    assert third.hex() == (
        "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8"
    )


@named(load("streams"))
def test_stream(entry: dict[str, Any]) -> None:
    streams = Streams(
        bytes.fromhex(entry["key"]),
        bytes.fromhex(entry["plan_digest"]),
        bytes.fromhex(entry["context"]),
        entry["role"],
    )
    words = streams.words(
        entry["gate"], entry["quantity"], entry["count"], entry["word_bits"], entry["start"]
    )
    assert words == entry["words"]


@named(load("bits")["good"])
def test_bits(entry: dict[str, Any]) -> None:
    data = encoding.pack(entry["values"], entry["width"])
    assert data.hex() == entry["bytes"]
    assert encoding.unpack(data, len(entry["values"]), entry["width"]) == entry["values"]


@named(load("bits")["bad"])
def test_bad_bits(entry: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"length|after the last"):
        encoding.unpack(bytes.fromhex(entry["bytes"]), entry["count"], entry["width"])


@named(load("frames")["good"])
def test_frame(entry: dict[str, Any]) -> None:
    data = encoding.encode_frame(
        bytes.fromhex(entry["session"]),
        entry["gate"],
        entry["kind"],
        entry["block"],
        bytes.fromhex(entry["payload"]),
    )
    assert data.hex() == entry["bytes"]


@named(load("plans")["good"])
def test_plan(entry: dict[str, Any]) -> None:
    assert encoding.encode_plan(entry["plan"]).hex() == entry["bytes"]


@named(CASES)
def test_case(entry: dict[str, Any]) -> None:
    outputs = derive(entry["inputs"])
    for part, expected in entry["outputs"].items():
        assert outputs[part] == expected, part
    assert outputs.keys() == entry["outputs"].keys()


@named(CASES)
def test_case_computes_the_plain_function(entry: dict[str, Any]) -> None:
    """h + m, which no party ever holds, is the gate's plain function of its inputs' h + m."""
    run = walk(entry["inputs"])
    for gate, step in enumerate(run.plan["steps"]):
        _check_gate(run, gate, step)


def _check_gate(run: Session, gate: int, step: dict[str, Any]) -> None:
    kind, value = step["gate"]["kind"], run.true_value(gate)
    known = run.known[gate]
    if known is not None:
        assert known == run.m[gate], "the crypto provider's mask is the data owner's"
    if kind == "input":
        assert value == run.image
        return
    sources = [run.true_value(i) for i in step["inputs"]]
    if kind in ("remask", "output", "reshape"):
        assert value.values == sources[0].values
    if kind == "output":
        _check_result(run, step, sources[0])
    if kind in ("truncate", "relu"):
        for y, z in zip(_signed(sources[0]), _signed(value), strict=True):
            y = max(y, 0) if kind == "relu" else y
            floor, rest = divmod(y, 1 << step["gate"]["shift"])
            assert z in ((floor, floor + 1) if rest else (floor,))
    if kind in SECRET_WEIGHTS:
        assert run.known[gate] is None
        assert value == apply_weights(step, run.weights[gate], sources[0])
    elif kind == "add_constant":
        assert value == sources[0] + expand(run.constants[gate], value.shape)
    elif kind in PUBLIC:
        assert value == linear_part(step, sources, step["gate"].get("value", 0))


def _check_result(run: Session, step: dict[str, Any], source: Tensor) -> None:
    """The result is the value, at most half a unit of its lowest bit off."""
    top = step["gate"]["bits"] + step["gate"]["position"]
    half_unit = 1 << step["gate"]["position"] >> 1
    for stored, value in zip(run.result, source.values, strict=True):
        difference = (stored - value + (1 << (top - 1))) % (1 << top) - (1 << (top - 1))
        assert -half_unit <= difference <= half_unit


def _signed(x: Tensor) -> list[int]:
    half = 1 << (x.bits - 1)
    return [(v + half) % (2 * half) - half for v in x.values]


def test_frames_digest_covers_whole_frames() -> None:
    """The digests in the vectors are over encoded frames, so headers are pinned too."""
    case = next(c for c in CASES if c["name"] == "input_32")
    (message,) = case["outputs"]["data_owner_to_model_owner"]
    frame = encoding.encode_frame(
        bytes.fromhex(case["inputs"]["keys"]["session"]),
        message["gate"],
        message["kind"],
        message["block"],
        bytes.fromhex(message["payload"]),
    )
    assert hashlib.sha256(frame).hexdigest() == case["outputs"]["data_owner_frames_sha256"]
