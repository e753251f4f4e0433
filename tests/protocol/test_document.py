"""docs/protocol.md states figures and examples; these are the code's."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import numpy as np
import pytest

from radiopaque.engine.artefact import ArtefactId, binding_digest
from radiopaque.gates import halves, sites
from radiopaque.graph import plan as p
from radiopaque.prg import SALT, SecretKey, Streams, stream_info
from radiopaque.wire import frames
from radiopaque.wire.frames import Frame, Kind

TEXT = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text()
SIZE = 1 << 20


def rows() -> list[list[str]]:
    """The cells of the table of section 13."""
    table = TEXT[TEXT.index("## 13.") :].split("\n\n")[2]
    lines = [line.strip("|").split("|") for line in table.splitlines()[2:]]
    return [[cell.strip() for cell in line] for line in lines]


def gate_of(name: str, opened_bits: str, shift: str) -> p.Gate:
    if name.startswith("Relu"):
        gate = p.Relu(int(opened_bits), int(shift))
        assert name == f"Relu, n = {gate.compared_bits}"
        return gate
    if name == "Truncate":
        return p.Truncate(int(opened_bits), int(shift))
    gates: dict[str, p.Gate] = {
        "Input": p.Input(),
        "linear": p.Multiply((1,)),
        "Remask": p.Remask(),
        "Output, b = 16": p.Output(16, 8),
    }
    return gates[name]


@pytest.mark.parametrize("row", rows(), ids=lambda row: f"{row[0]} {row[1]} {row[2]}")
def test_stated_costs_are_those_of_the_code(row: list[str]) -> None:
    name, ring_bits, opened_bits, shift, *stated = row
    shape = (1, SIZE)
    steps = (
        p.Step(p.Input(), (), shape, 8, limit=1),
        p.Step(gate_of(name, opened_bits, shift), (0,), shape, 8),
    )
    site = list(sites(p.Plan(int(ring_bits), "", "", steps)))[0 if name == "Input" else 1]
    cost = halves(site.step.gate).cost(site)
    sizes = (
        cost.correction_bytes,
        cost.offline_bytes,
        cost.to_model_owner_bytes,
        cost.to_data_owner_bytes,
    )
    assert [8 * size / SIZE for size in sizes] == [float(bits) for bits in stated[:4]]
    assert cost.round_trips == int(stated[4])


def test_the_table_has_every_gate_that_sends() -> None:
    assert len(rows()) == 16


def hexadecimal(after: str) -> bytes:
    """The first quoted bytes after a phrase."""
    found = re.search(r"`([0-9a-f ]+)`", TEXT[TEXT.index(after) :])
    assert found is not None
    return bytes.fromhex(found[1].replace(" ", ""))


def test_stated_examples_are_those_of_the_code() -> None:
    info = stream_info(bytes(32), bytes(16), "data-owner", 7, "mask").hex()
    assert info.replace("0020" + "00" * 32 + "0010" + "00" * 16, "*") in TEXT.replace(
        " ", ""
    ).replace("0020" + "00…00" + "0010" + "00…00", "*")
    assert SALT.decode() in TEXT
    streams = Streams(SecretKey(bytes(range(32))), bytes(32), bytes(16), "data-owner")
    words = streams.words(7, "mask", (4,), np.uint32)
    assert hexadecimal("the first four 32-bit words are") == words.tobytes()
    frame = frames.encode(Frame(bytes(16), 3, Kind.TOP_BIT, 0, b"\x05")).hex()
    assert frame.replace("0a10" + "00" * 16, "*") in TEXT.replace(" ", "").replace(
        "0a10" + "00…00", "*"
    )


def test_every_kind_is_listed_with_its_number() -> None:
    for kind in Kind:
        assert f"{kind.value} {kind.name}" in TEXT.replace("\n", " ")


def test_the_binding_is_the_stated_hash() -> None:
    fields = (b"radiopaque/1 binding", b"\1" * 32, b"\2" * 16, b"\3" * 32)
    expected = hashlib.sha256(b"".join(len(f).to_bytes(2, "big") + f for f in fields)).digest()
    assert binding_digest(ArtefactId(fields[1], fields[2]), fields[3]) == expected
    assert fields[0].decode() in TEXT


def test_the_tests_that_rules_name_exist() -> None:
    rules = TEXT[TEXT.index("## 9.") : TEXT.index("## 10.")]
    named = set(re.findall(r"`(test_\w+\.py)`", rules))
    assert len(named) == 3
    for name in named:
        assert (Path(__file__).parent / name).is_file()
