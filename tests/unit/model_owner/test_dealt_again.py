"""Dealing a session again: the vectors pass, and a change of any part is noticed for what it is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from model_owner.dealer_audit import Opened, check
from model_owner.engines import CryptenHost, GateHost
from model_owner.hosting import HostedModel
from radiopaque.engine.artefact import ArtefactId, weights_digest
from radiopaque.engine.crypten.dealing import deal as deal_crypten
from radiopaque.engine.crypten.encoding import encode_plan
from radiopaque.engine.crypten.plan import CryptenPlan
from radiopaque.engine.crypten.program import Operation, Program
from radiopaque.engine.crypten.weights_file import StoredCrypten
from radiopaque.engine.material import RegionReader, regions
from radiopaque.engine.model_owner import Material, Model
from radiopaque.errors import DealerError, MessageValueError
from radiopaque.gates.base import Raw
from radiopaque.graph.plan import plan_digest
from radiopaque.prg import SecretKey
from radiopaque.wire.frames import Kind
from tests.unit.crypten.test_tuples import REQUESTS
from tests.vectors import cases
from tests.vectors.forms import load
from tests.vectors.production import FixedSession

CASES = {case["name"]: case for file in cases.FILES for case in load(file)}
Regions = dict[int, Raw]


def case_named(start: str) -> dict[str, Any]:
    return next(case for name, case in CASES.items() if name.startswith(start))


def opened_of(case: dict[str, Any]) -> Opened:
    """The session of a vector as the model owner has it when the clinic has opened it."""
    fixed = FixedSession(case["inputs"])
    masked = fixed.masked_weights()
    assert masked.hex() == case["outputs"]["masked_weights"]
    host = GateHost(Model(fixed.plan, fixed.weights), fixed.artefact)
    digest = weights_digest(masked)
    model = HostedModel("it", "1", fixed.plan_bytes, fixed.artefact_key, host, masked, digest)
    keys = (SecretKey(bytes.fromhex(case["inputs"]["keys"][name])) for name in ("key_d", "key_o"))
    return Opened(model, fixed.session, *keys)


def stored(case: dict[str, Any], part: str) -> Regions:
    """What the vector says of an offline message; not what this code makes."""
    return {
        int(gate): np.frombuffer(bytes.fromhex(data), np.uint8).copy()
        for gate, data in case["outputs"][part].items()
    }


def judge(opened: Opened, corrections: Regions, offline: Regions) -> None:
    check(opened, Material(corrections.items(), offline.items()))


@pytest.mark.parametrize("name", CASES)
def test_every_vector_is_right_and_a_change_in_any_gate_is_not(name: str) -> None:
    case = CASES[name]
    opened, corrections = opened_of(case), stored(case, "corrections")
    offline = stored(case, "offline")
    judge(opened, corrections, offline)
    for part, error in ((corrections, DealerError), (offline, MessageValueError)):
        for region in part.values():
            for place in {0, region.size // 2, region.size - 1}:
                region[place] ^= 1 << place % 8
                with pytest.raises(error):
                    judge(opened, corrections, offline)
                region[place] ^= 1 << place % 8
    judge(opened, corrections, offline)


@pytest.mark.parametrize("start", ["truncate_32", "matrix_product_32"])
def test_a_change_of_any_byte_is_noticed(start: str) -> None:
    case = case_named(start)
    opened, corrections = opened_of(case), stored(case, "corrections")
    offline = stored(case, "offline")
    changed = 0
    for region in corrections.values():
        for place in range(region.size):
            before = region[place]
            region[place] = before ^ (1 + place % 255)
            with pytest.raises(DealerError):
                judge(opened, corrections, offline)
            region[place] = before
            changed += 1
    assert changed == sum(region.size for region in corrections.values()) > 0


def test_corrections_for_another_key_or_artefact_are_wrong() -> None:
    """As if the crypto provider had dealt from another key_O, key_B or session."""
    case = case_named("network")
    opened = opened_of(case)
    parts = stored(case, "corrections"), stored(case, "offline")
    with pytest.raises(DealerError):
        judge(replace(opened, key_o=SecretKey(bytes(32))), *parts)
    key = replace(opened.model.key, key_b=SecretKey(bytes(32)))
    with pytest.raises(DealerError):
        judge(replace(opened, model=replace(opened.model, key=key)), *parts)


def test_a_key_that_is_not_the_sessions_accuses_nobody_of_dealing() -> None:
    case = case_named("network")
    opened = replace(opened_of(case), key_d=SecretKey(bytes(32)))
    with pytest.raises(MessageValueError, match="does not give the offline message"):
        judge(opened, stored(case, "corrections"), stored(case, "offline"))


def test_the_whole_session_is_compared_and_the_clinic_is_told_one_bit() -> None:
    """Wherever the difference lies: as much is read, and the text is the same."""
    case = case_named("network")
    opened, offline = opened_of(case), stored(case, "offline")
    said = set()
    gates = list(stored(case, "corrections"))
    assert len(gates) > 2
    for gate in gates:
        corrections = stored(case, "corrections")
        corrections[gate][0] ^= 1
        read: list[int] = []

        def counted(
            items: Iterable[tuple[int, Raw]], read: list[int] = read
        ) -> Iterator[tuple[int, Raw]]:
            for number, region in items:
                read.append(number)
                yield number, region

        with pytest.raises(DealerError) as caught:
            check(opened, Material(counted(corrections.items()), offline.items()))
        assert read == gates
        said.add(str(caught.value))
    assert len(said) == 1


def test_sessions_of_the_other_engine() -> None:
    program = Program((Operation("input", (), (1, 1)), Operation("relu", (0,), (1, 1))))
    plan = CryptenPlan("model", "1", program, tuple(REQUESTS.values()))
    encoded = encode_plan(plan)
    hosted = StoredCrypten(plan, encoded, (), ArtefactId(plan_digest(encoded), bytes(16)))
    model = HostedModel(
        "model", "1", encoded, hosted.key, CryptenHost(hosted), b"", weights_digest(b"")
    )
    session, keys = bytes(range(16)), (SecretKey(bytes([1]) * 32), SecretKey(bytes([2]) * 32))
    reader = RegionReader(plan, session, Kind.CORRECTION)
    frames = deal_crypten(plan, hosted.id, session, *keys)
    corrections = dict(regions(plan, Kind.CORRECTION, [reader.accept(frame) for frame in frames]))
    opened = Opened(model, session, *keys)
    judge(opened, corrections, {})
    for region in corrections.values():
        region[-1] ^= 128
        with pytest.raises(DealerError):
            judge(opened, corrections, {})
        region[-1] ^= 128


def test_keys_do_not_print() -> None:
    opened = opened_of(case_named("truncate_"))
    for key in (opened.key_d, opened.key_o):
        assert key.reveal().hex() not in repr(opened)
    assert "SecretKey" not in repr(opened)
