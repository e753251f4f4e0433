"""Spans into seconds, bytes and a trace: made-up ones first, then those of a real session."""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from benchmarks import breakdown
from benchmarks.errors import BenchmarkError
from benchmarks.spans import load_all, save
from benchmarks.trace import Timeline
from radiopaque.certificates import Role
from radiopaque.engine.local import LocalDeployment
from radiopaque.gates import GateCost, plan_cost
from radiopaque.graph import plan as p
from radiopaque.telemetry import Span, recorder
from tests.e2e.networks import lungs
from tests.e2e.parties import until

Session = tuple[p.Plan, dict[Role, list[Span]], list[int]]

MS = 1_000_000


def span(activity: str, gate: int, begin: int, end: int, kind: str = "", size: int = 0) -> Span:
    return Span(activity, gate, kind, size, begin * MS, end * MS, 1)  # type: ignore[arg-type]


def test_computing_is_what_is_left_of_a_gate() -> None:
    spans = {
        Role.MODEL_OWNER: [
            span("load", 2, 0, 3),
            span("evaluate", 1, 10, 30),
            span("evaluate", 2, 30, 100),
            span("send", 2, 35, 40, "OPENING", 4),
            span("wait", 2, 45, 85, "SELECTION", 5),
            span("wait", 0, 1, 2, "START"),
        ],
        Role.DATA_OWNER: [span("prepare", 2, 0, 8), span("answer", 2, 0, 6)],
        Role.CRYPTO_PROVIDER: [span("deal", 2, 0, 5)],
    }
    found = {
        (record["party"], record["phase"], record["gate"]): (
            record["compute_seconds"],
            record["wait_seconds"],
            record["serialise_seconds"],
        )
        for record in breakdown.gates(["Input", "MatrixProduct", "Relu"], spans, inferences=2)
    }
    expected = {
        ("model_owner", "load", "Relu"): (0.0015, 0.0, 0.0),
        ("model_owner", "online", "MatrixProduct"): (0.010, 0.0, 0.0),
        ("model_owner", "online", "Relu"): (0.0125, 0.020, 0.0025),
        ("data_owner", "offline", "Relu"): (0.004, 0.0, 0.0),
        ("data_owner", "online", "Relu"): (0.003, 0.0, 0.0),
        ("crypto_provider", "offline", "Relu"): (0.0025, 0.0, 0.0),
    }
    assert set(found) == set(expected)
    for key, values in expected.items():
        assert found[key] == pytest.approx(values)


def test_windows() -> None:
    spans = {role: [span("deal", 1, 5, 9), span("deal", 2, 15, 30)] for role in Role}
    found = breakdown.in_window(spans, 10 * MS, 20 * MS)
    assert all([one.gate for one in own] == [2] for own in found.values())


@pytest.fixture
def session(tmp_path: Path) -> Session:
    """A real session's plan, its spans by party as their files have them, and when it began."""
    network = lungs()
    plan = network.plan
    spans = recorder.start()
    began = _now(spans)
    result = LocalDeployment(plan, network.weights).infer(network.images())
    last = len(plan.steps) - 1
    until(lambda: any((one.activity, one.gate) == ("evaluate", last) for one in spans))
    recorder.stop()
    serving = next(one.thread for one in spans if one.activity == "evaluate")
    owner = [s for s in spans if s.thread == serving or s.activity == "accept"]
    provider = [s for s in spans if s.activity == "deal"]
    by_party = {
        Role.MODEL_OWNER: owner,
        Role.CRYPTO_PROVIDER: provider,
        Role.DATA_OWNER: [s for s in spans if s not in owner and s not in provider],
    }
    for role, own in by_party.items():
        save(tmp_path / f"{role}.spans", own)
    first = min(one.begin for one in spans)
    online = min(one.begin for one in spans if one.activity == "answer")
    last = max(one.end for one in spans)
    assert result.counters.round_trips == plan_cost(plan).round_trips
    assert began <= first
    return plan, load_all(tmp_path), [first, online, last]


def names(plan: p.Plan) -> list[str]:
    return [type(step.gate).__name__ for step in plan.steps]


def _now(spans: list[Span]) -> int:
    with recorder.span("deal", 0):
        pass
    return spans.pop().begin


def test_a_real_session_adds_up(session: Session) -> None:
    plan, spans, _ = session
    records = breakdown.gates(names(plan), spans, 1)
    assert {record["gate"] for record in records} <= {type(s.gate).__name__ for s in plan.steps}
    for record in records:
        assert record["compute_seconds"] >= 0
        assert record["phase"] == "online" or record["wait_seconds"] == 0
    vendor = [r for r in records if (r["party"], r["phase"]) == ("model_owner", "online")]
    whole = sum(s.end - s.begin for s in spans[Role.MODEL_OWNER] if s.activity == "evaluate")
    parts = ("compute_seconds", "wait_seconds", "serialise_seconds")
    assert sum(r[part] for r in vendor for part in parts) == pytest.approx(whole / 1e9)


def test_traffic_of_a_real_session_is_the_predicted_one(session: Session) -> None:
    plan, spans, _ = session
    run = {
        "online_bytes": {"data_owner_to_model_owner": 1, "model_owner_to_data_owner": 2},
        "offline": {
            "bytes": {
                "crypto_provider_to_model_owner": 3,
                "data_owner_to_model_owner": 4,
                "data_owner_to_crypto_provider": 104,
            }
        },
    }
    records = breakdown.traffic(plan_cost(plan), spans, [run])
    assert [record["bytes"] for record in records] == [1, 2, 3, 4, 104]
    for record in records:
        assert record["payload_bytes"] == record["predicted_payload_bytes"]
        assert isinstance(record["payload_bytes"], int)
    assert sum(record["payload_bytes"] > 0 for record in records) == 4
    cost = plan_cost(plan)
    assert records[0]["payload_bytes"] == cost.to_model_owner_bytes


def counted(**changes: Any) -> tuple[GateCost, list[dict[str, Any]], list[dict[str, Any]]]:
    """Figures of two inferences that fit."""
    record = {
        "phase": "online",
        "link": "data_owner_to_model_owner",
        "bytes": 1_040,
        "messages": 2,
        "payload_bytes": 1_000,
        "predicted_payload_bytes": 1_000,
        **changes,
    }
    run = {
        "round_trips": 44,
        "broken": 0,
        "online_bytes": {"data_owner_to_model_owner": 1_040},
        "offline": {"bytes": {"data_owner_to_model_owner": 0}},
    }
    return GateCost(round_trips=44), [record], [dict(run), dict(run)]


def test_figures_that_fit_are_taken() -> None:
    breakdown.check(*counted())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"payload_bytes": 999}, "online, data_owner_to_model_owner: 999 bytes .* not 1000"),
        ({"predicted_payload_bytes": 1_001}, "1000 bytes of payload were counted, not 1001"),
        ({"bytes": 999}, "-1 bytes are neither payload nor headers"),
        ({"bytes": 10_000}, "9000 bytes are neither"),
    ],
)
def test_figures_that_do_not_fit_fail(changes: dict[str, Any], message: str) -> None:
    predicted, records, runs = counted(**changes)
    with pytest.raises(BenchmarkError, match=message):
        breakdown.check(predicted, records, runs)
    # a broken inference had sent something before
    runs[1]["broken"] = 1
    breakdown.check(predicted, records, runs)


def test_inferences_that_differ_fail() -> None:
    predicted, records, runs = counted()
    runs[1]["online_bytes"] = {"data_owner_to_model_owner": 1_041}
    with pytest.raises(BenchmarkError, match="inferences differ in their bytes"):
        breakdown.check(predicted, records, runs)
    predicted, records, runs = counted()
    runs[1]["round_trips"] = 45
    runs[0]["broken"] = 1
    with pytest.raises(BenchmarkError, match="inference 1 took 45 round trips, not 44"):
        breakdown.check(predicted, records, runs)


def test_the_trace_of_a_real_session(session: Session, tmp_path: Path) -> None:
    plan, spans, times = session
    path = tmp_path / "new" / "trace.json"
    Timeline(names(plan), spans, times).save(path)
    events = json.loads(path.read_text())["traceEvents"]
    kinds = Counter(event["ph"] for event in events)
    assert kinds["X"] == sum(map(len, spans.values())) + 2
    processes = {e["args"]["name"] for e in events if e["name"] == "process_name"}
    assert processes == {"data-owner", "model-owner", "crypto-provider"}
    # every message is an arrow from within its sending to within its waiting
    assert (
        kinds["s"]
        == kinds["f"]
        == sum(s.activity == "send" for s in spans[Role.DATA_OWNER])
        + (sum(s.activity == "send" for s in spans[Role.MODEL_OWNER]))
    )
    slices = [e for e in events if e["ph"] == "X"]
    for event in events:
        if event["ph"] in "sf":
            assert any(
                (s["pid"], s["tid"]) == (event["pid"], event["tid"])
                and s["cat"] == ("send" if event["ph"] == "s" else "wait")
                and s["ts"] <= event["ts"] <= s["ts"] + s["dur"]
                for s in slices
            )
    # slices of a thread nest or follow each other, as the viewers demand
    for place in {(s["pid"], s["tid"]) for s in slices}:
        own = [s for s in slices if (s["pid"], s["tid"]) == place]
        own.sort(key=lambda s: (s["ts"], -s["dur"]))
        for before, after in pairwise(own):
            ends = before["ts"] + before["dur"]
            assert after["ts"] >= ends - 0.01 or after["ts"] + after["dur"] <= ends + 0.01
    assert all(e["ts"] >= 0 for e in events if "ts" in e)
