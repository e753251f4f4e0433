"""The command's options, its refusals, and what it does without measuring."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from itertools import groupby
from pathlib import Path

import pytest

from benchmarks import presets
from benchmarks.case import Case
from benchmarks.command import main
from benchmarks.models import MADE, shipped, usual
from benchmarks.plots import draw
from benchmarks.record import Part
from tests.conftest import Command
from tests.unit.benchmarks.reports import gate, report, result, stock, traffic

Bench = Callable[..., tuple[int, str, str]]


@pytest.fixture
def bench(capsys: pytest.CaptureFixture[str]) -> Bench:
    """Arguments to exit code, standard output and standard error."""

    def run(*words: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main([str(word) for word in words])
        printed = capsys.readouterr()
        return int(ended.value.code or 0), printed.out, printed.err

    return run


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model", "resnet19"], "no model 'resnet19'"),
        (["--engine", "mp-spdz"], "no engine 'mp-spdz'; choose of compiled-32"),
        (["--network", "moon"], "no network 'moon'"),
        (["--device", "tpu"], "no device 'tpu'"),
        (["--quick", "--full"], "leave out other presets"),
        (["--growth", "--model", "lenet"], "leave out"),
        (["--show", "missing.json"], "missing.json"),
        (["--compare", "missing.json", "missing.json"], "missing.json"),
    ],
)
def test_wrong_options(bench: Bench, words: list[str], message: str) -> None:
    code, out, err = bench(*words)
    assert (code, out) == (2, "")
    assert err.startswith("BenchmarkError: ")
    assert message in err


@pytest.mark.parametrize("words", [["--threads", "0"], ["--inferences", "0"], ["--nonsense"]])
def test_usage(bench: Bench, words: list[str]) -> None:
    assert bench(*words)[0] == 2


def test_the_product_starts_the_harness_of_its_checkout(tmp_path: Path) -> None:
    """`radiopaque bench` becomes the harness, whatever package of its name the folder here has."""
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "__init__.py").write_text("raise SystemExit('the wrong one')")
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-m", "radiopaque", "bench", "--device", "tpu"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    assert done.returncode == 2
    assert done.stderr == "BenchmarkError: there is no device 'tpu'; choose cpu or cuda\n"


def test_without_a_checkout(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("radiopaque.__file__", "/nowhere/radiopaque/__init__.py")
    code, error = command("bench")
    assert (code, error["error"]) == (2, "ConfigError")
    assert "run this from a checkout" in error["message"]


def test_compare_and_show(bench: Bench, tmp_path: Path) -> None:
    report(result()).save(tmp_path / "a.json")
    report(result(online_seconds_median=0.25)).save(tmp_path / "b.json")
    code, out, _ = bench("--compare", tmp_path / "a.json", tmp_path / "b.json")
    assert code == 0
    assert "resnet18@224" in out
    written = tmp_path / "new" / "table.md"
    code, out, _ = bench("--show", tmp_path / "a.json", "--markdown", written)
    assert code == 0
    assert "0.125 s" in out
    assert written.read_text() == out


def test_estimate(bench: Bench, model_cache: None) -> None:
    code, out, _ = bench(
        "--estimate", "--model", "lenet", "--network", "wan", "--network", "loopback"
    )
    assert code == 0
    assert out.count("lenet@32") == 4
    assert "6.51e-03 M" in out or "0.00651 M" in out
    assert "minutes in all" in out


def test_presets_hold_what_is_promised() -> None:
    full = presets.full()
    assert len(full) == len(set(full))

    def has(model: str, engine: str, network: str = "loopback", size: int | None = None) -> bool:
        return any(
            (case.model.name, case.engine, case.network.name) == (model, engine, network)
            and (size is None or case.model.size == size)
            for case in full
        )

    for name in (*MADE, *shipped()):
        for network in ("loopback", "lan", "metro", "wan"):
            assert has(name, "compiled-32", network)
        assert has(name, "compiled-64")
        assert has(name, "onnxruntime")
    for name in ("resnet18", "resnet18-average", "lenet"):
        assert has(name, "crypten-stock")
        assert has(name, "spu")
    for name in ("resnet18", "resnet50"):
        assert all(has(name, "compiled-32", size=size) for size in (64, 128, 224, 320, 448))
    assert {case.concurrency for case in full} >= {1, 2, 4}
    assert {case.batch for case in full} >= {1, 4}
    for engine in ("crypten", "crypten-stock"):
        assert all(has(name, engine) for name in shipped())
    plain = [case for case in full if case.engine == "onnxruntime"]
    assert {(case.batch, case.threads) for case in plain if case.model.name == "resnet18"} == {
        *((1, 1), (1, 2), (2, 1), (4, 1), (8, 1)),
    }
    quick = presets.quick()
    assert {case.model.name for case in quick} == {usual()}
    assert {case.engine for case in quick} >= {"compiled-32", "onnxruntime", "crypten-stock"}
    speed = presets.speed()
    assert {case.model.name for case in speed} == {"resnet18", *presets.SPEED_MODELS}
    both = [{c for c in speed if c.engine == name} for name in ("onnxruntime", "compiled-32")]
    for measure in ("model", "threads", "batch"):
        assert len({frozenset(getattr(c, measure) for c in cases) for cases in both}) == 1
    assert {case.network.name for case in speed} == {"loopback", "lan", "wan"}


def test_the_full_run_computes_before_it_waits() -> None:
    """Loopback before relays, by model and by network; medians of three or more."""
    full = presets.full()
    relayed = [case.network.relayed for case in full]
    assert relayed == sorted(relayed)
    models = [case.model for case in full if not case.network.relayed]
    assert len([model for model, _ in groupby(models)]) == len(set(models))
    networks = [case.network.name for case in full if case.network.relayed]
    assert [name for name, _ in groupby(networks)] == ["lan", "metro", "wan"]
    for case in full:
        least = (
            3 if case.network.relayed or case.engine in ("crypten", "crypten-stock", "spu") else 7
        )
        assert case.inferences >= least, case
    # every floor and every ratio to plaintext has its plaintext before it
    seen = set()
    for case in full:
        if case.engine == "onnxruntime":
            seen.add((case.model, case.batch, case.threads))
        elif case.concurrency == 1 and case.model.size in (32, 112, 224):
            assert (case.model, case.batch, case.threads) in seen, case


def test_cases_name_themselves() -> None:
    case: Case = presets.quick()[1]
    assert str(case) == f"{usual()}@224 compiled-32 on loopback"


def test_plots(tmp_path: Path) -> None:
    made = report(
        result(image_size=64, comparisons=237_568, online_seconds_median=0.02),
        result(network="wan", rtt_ms=40.0, online_seconds_median=2.0),
        result(concurrency=4, images_per_second=3.0),
        stock(),
    )
    made.add(
        Part(
            result(floor_seconds=0.06),
            traffic=[
                traffic("online", "data_owner_to_model_owner", 10_000_000),
                traffic("offline", "crypto_provider_to_model_owner", 200_000_000),
            ],
            gates=[
                gate("model_owner", "Convolution", 0.03, 0.01),
                gate("model_owner", "Relu", 0.03),
                gate("data_owner", "Relu", 0.03),
            ],
        )
    )
    made.fits = [
        {
            **{key: result()[key] for key in ("model", "engine", "network")},
            "measure": "online_seconds_median",
            "per_million": 0.04,
            "constant": 0.01,
        }
    ]
    written = draw(made, tmp_path / "new")
    assert [path.stem for path in written] == [
        "latency",
        "traffic",
        "round-trip-time",
        "scaling",
        "throughput",
    ]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in written)
    first = {path.name: path.read_bytes() for path in written}
    assert {path.name: path.read_bytes() for path in draw(made, tmp_path / "again")} == first
    assert draw(report(stock()), tmp_path / "none") == []
