"""Which cases an engine takes, and how a peer's figures become ours."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from benchmarks import models
from benchmarks.case import Case, Inputs, spread
from benchmarks.engines import ENGINES, crypten_stock, plaintext, spu
from benchmarks.errors import BenchmarkError, NotAvailableError
from benchmarks.family import Watched
from benchmarks.harness import Harness, relate
from benchmarks.models import MADE, choose, obtain, shipped
from benchmarks.network import LOOPBACK, PROFILES
from benchmarks.peers import crypten_stock as stock_peer
from benchmarks.record import RESULT_KEYS, Part
from radiopaque.cli.models import ModelSource
from tests.unit.benchmarks.reports import result

CASE = Case(choose("lenet"), "compiled-32", LOOPBACK, inferences=2)


def inputs() -> Inputs:
    images = np.arange(12, dtype=np.float32).reshape(3, 1, 2, 2)
    reference = np.array([[0.0, 1.0], [2.0, 1.0], [0.0, 5.0]])
    return Inputs(ModelSource(Path("model.onnx"), None, Path("manifest.json")), images, reference)


def nothing(_: str) -> None:
    pass


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "device": ({"device": "cuda"}, "GPU|CPU"),
    "network": ({"network": PROFILES["lan"]}, "network|relay"),
    "concurrency": ({"concurrency": 2}, "one by one"),
}
TAKEN = {
    "compiled-32": {"network", "concurrency"},
    "compiled-64": {"network", "concurrency"},
    "onnxruntime": set(),
    "crypten-stock": set(),
    "crypten": {"network", "concurrency"},
    "spu": set(),
}


@pytest.mark.parametrize(
    ("engine", "what"),
    [(engine, what) for engine in ENGINES for what in REFUSED if what not in TAKEN[engine]],
)
def test_cases_that_are_not_for_an_engine(
    engine: str, what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each refuses what it cannot do, with the reason, and starts nothing; no GPU is here."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    change, reason = REFUSED[what]
    with pytest.raises(NotAvailableError, match=reason):
        ENGINES[engine](replace(CASE, engine=engine, **change), inputs(), tmp_path, nothing)
    assert list(tmp_path.iterdir()) == []


def test_errors_are_against_the_image_that_was_used() -> None:
    found = inputs().fidelity([(0, [0.5, 1.0]), (2, [0.0, 4.0]), (1, [0.0, 1.0])])
    assert found["max_abs_logit_error"] == 2.0
    assert found["mean_abs_logit_error"] == pytest.approx(3.5 / 6)
    assert found["argmax_agreement"] == pytest.approx(2 / 3)
    assert found["images"] == 3


def test_spread() -> None:
    assert spread("s", [3.0, 1.0, 2.0]) == {"s_min": 1.0, "s_median": 2.0, "s_max": 3.0}


def printing(monkeypatch: pytest.MonkeyPatch, module: Any, report: dict[str, Any]) -> list[str]:
    """The peer prints this report; returns the command that it is run with."""
    command: list[str] = []

    def run(words: Sequence[str]) -> Watched:
        command.extend(words)
        return Watched(json.dumps(report), 123_000_000, 234_000_000)

    monkeypatch.setattr(module, "run_watched", run)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.setattr("importlib.metadata.version", lambda name: "0.4.1")
    return command


def test_figures_of_crypten(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The first run warms up; its rounds are one delay each, its dealing is in the online time."""

    def run(seconds: float, logits: list[float]) -> dict[str, Any]:
        return {
            "online_seconds": seconds,
            "dealing_seconds": seconds / 4,
            "cpu_seconds": 2 * seconds,
            "bytes": 1000,
            "rounds": 232,
            "logits": logits,
        }

    report = {
        "setup_seconds": 3.5,
        "runs": [run(9.0, [0.0, 1.0]), run(2.0, [0.0, 1.25]), run(4.0, [2.0, 0.5])],
    }
    command = printing(monkeypatch, crypten_stock, report)
    case = replace(CASE, engine="crypten-stock", threads=2)
    part = crypten_stock.measure(case, inputs(), tmp_path, nothing)
    assert command[command.index("--threads") + 1] == "2"
    assert np.load(tmp_path / "images.npy").shape == (3, 1, 2, 2)
    expected = {
        "engine": "crypten-stock",
        "cold_start_seconds": 3.5,
        "cold_online_seconds": 9.0,
        "online_seconds_min": 2.0,
        "online_seconds_median": 3.0,
        "online_seconds_max": 4.0,
        "offline_seconds_median": 0.0,
        "dealing_seconds_median": 0.75,
        "call_seconds_median": 3.0,
        "online_bytes": 1000,
        "offline_bytes": 0,
        "round_trips": 232,
        "one_way_delays": 232,
        "cpu_seconds": 6.0,
        "peak_rss_bytes": 123_000_000,
        "resident_bytes": 234_000_000,
        "images_per_second": pytest.approx(1 / 3),
        "max_abs_logit_error": 0.5,
        "argmax_agreement": 1.0,
    }
    assert {key: part.result[key] for key in expected} == expected
    assert set(part.result) <= set(RESULT_KEYS)


def test_without_crypten(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(NotAvailableError, match=r"--no-deps crypten==0\.4\.1"):
        crypten_stock.measure(CASE, inputs(), tmp_path, nothing)


@pytest.mark.parametrize("engine", ["crypten", "crypten-stock"])
def test_another_release_of_crypten_is_not_measured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, engine: str
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.setattr("importlib.metadata.version", lambda name: "0.5.0")
    with pytest.raises(NotAvailableError, match=r"works with crypten 0\.4\.1, .* has 0\.5\.0"):
        ENGINES[engine](replace(CASE, engine=engine), inputs(), tmp_path, nothing)


def test_the_parties_of_crypten_are_joined() -> None:
    """Seconds are the reader's, bytes what both sent, dealing the longer of the two."""

    def rank(seconds: float, dealing: float) -> dict[str, Any]:
        run = {
            "online_seconds": seconds,
            "dealing_seconds": dealing,
            "cpu_seconds": 2.0,
            "bytes": 1000,
            "rounds": 7,
            "logits": [seconds],
        }
        usual = {"input_shape": [], "versions": {}, "setup_seconds": 1.0, "peak_rss_bytes": 1}
        return {**usual, "runs": [run]}

    joined = stock_peer._joined([rank(5.0, 1.5), rank(4.0, 1.0)], Path("m.onnx"), 1, "radiopaque")
    assert joined["runs"] == [
        {
            "online_seconds": 4.0,
            "dealing_seconds": 1.5,
            "bytes": 1000,
            "rounds": 7,
            "cpu_seconds": 4.0,
            "logits": [4.0],
        }
    ]


def test_figures_of_onnxruntime(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    runs = [
        {"seconds": s, "cpu_seconds": s, "images": [i], "logits": [[0.0, 1.0]]}
        for i, s in enumerate((0.01, 0.03))
    ]
    report = {"load_seconds": 0.5, "cold_seconds": 0.1, "runs": runs}
    printing(monkeypatch, plaintext, report)
    part = plaintext.measure(replace(CASE, engine="onnxruntime"), inputs(), tmp_path, nothing)
    assert part.result["online_seconds_median"] == 0.02
    assert part.result["images_per_second"] == 50
    assert part.result["online_bytes"] == part.result["round_trips"] == 0
    assert part.result["argmax_agreement"] == 0.5


def test_the_harness_goes_on_after_what_is_not_available_and_what_fails(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def unavailable(*_: object) -> Part:
        raise NotAvailableError("not on this machine")

    def broken(*_: object) -> Part:
        raise BenchmarkError("it broke")

    def works(case: Case, given: Inputs, folder: Path, tell: object) -> Part:
        assert folder.is_dir()
        return Part({**case.record(), "online_seconds_median": 0.5})

    def unexpected(*_: object) -> Part:
        raise KeyError("logits")

    engines = {"a": unavailable, "b": broken, "c": works, "d": unexpected}
    monkeypatch.setattr("benchmarks.harness.ENGINES", engines)
    monkeypatch.setattr("benchmarks.harness._inputs", lambda *_: inputs())
    told: list[str] = []
    harness = Harness(told.append)
    cases = [replace(CASE, engine=engine) for engine in "abdc"]
    assert list(harness.measured(cases)) == cases
    assert [record["engine"] for record in harness.report.results] == ["c"]
    assert [record["reason"] for record in harness.report.skipped] == [
        "not on this machine",
        "failed: it broke",
        "failed: KeyError: 'logits'",
    ]
    assert harness.failures == 2
    assert harness.report.planned == 4
    assert told[0] == "[1/4] lenet@32 a on loopback"
    assert any("Traceback" in text for text in told)


def test_online_time_by_that_in_the_clear() -> None:
    """Of as many images, threads and pixels; not where inferences share the machine."""
    plain = {"engine": "onnxruntime", "online_seconds_median": 0.025}
    results = [
        result(**plain),
        result(),
        result(network="wan", online_seconds_median=2.5),
        result(batch=2),
        result(threads=2),
        result(image_size=64),
        result(concurrency=2),
    ]
    relate(results)
    found = [one["online_over_plaintext"] for one in results]
    assert found == [None, 5.0, 100.0, None, None, None, None]
    results.append(result(**plain, batch=2))
    relate(results)
    assert results[3]["online_over_plaintext"] == 5.0


@pytest.mark.parametrize("name", [*(f"{name}@32" for name in MADE), *shipped()])
def test_every_model_is_translated_for_spu(model_cache: None, name: str) -> None:
    """Each operation reads the image, a weight or what came before; no weight is left over."""
    source = obtain(choose(name))
    program, weights = spu.translate(source.onnx)
    known = {program["input"], *weights}
    used = set()
    for node in program["nodes"]:
        assert set(node["inputs"]) <= known
        used.update(node["inputs"])
        known.add(node["output"])
    assert program["output"] in known
    assert set(weights) <= used
    assert all(np.isfinite(array).all() for array in weights.values())
    json.dumps(program)


def test_what_is_not_translated_for_spu(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("Sigmoid", ["x"], ["y"]), helper.make_node("Neg", ["y"], ["z"])],
        "odd",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, 4, 4])],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, [1, 1, 4, 4])],
    )
    path = tmp_path / "odd.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), path)
    with pytest.raises(NotAvailableError, match="Sigmoid is not translated for SPU"):
        spu.translate(path)


def test_spu_that_cannot_be_installed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, model_cache: None
) -> None:
    """The reason is pip's own, nothing is left behind, and the next run tries again."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    given = replace(inputs(), source=obtain(choose("pneumonia-resnet18")))
    monkeypatch.setattr(spu, "_PACKAGES", ("--no-index", "spu==0.9.5"))
    with pytest.raises(NotAvailableError, match="No matching distribution found for spu"):
        spu.measure(replace(CASE, engine="spu"), given, tmp_path, nothing)
    assert list(models.cache_folder().iterdir()) == []
