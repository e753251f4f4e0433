"""Tables, ratios and fits from made-up figures."""

from __future__ import annotations

import pytest

from benchmarks import growth
from benchmarks.tables import comparison, markdown, table
from tests.unit.benchmarks.reports import report, result, stock


def cells(text: str, start: str) -> list[str]:
    """The cells of the row that begins so."""
    (row,) = [line for line in text.splitlines() if line.startswith(f"| {start}")]
    return [cell.strip() for cell in row.strip("|").split("|")]


def test_the_report_for_people() -> None:
    made = report(result(), stock(), result(engine="onnxruntime", online_seconds_median=0.0162))
    made.skipped += 2 * [{**result(engine="spu"), "reason": "not here"}]
    made.skipped.append({**result(engine="crypten", model="vgg16"), "reason": "failed: too large"})
    text = markdown(made)
    assert text.startswith(
        "Example 1, 2 cores, 16 GiB, Linux 6.1, load average 0.1 before; 2026-11-21."
    )
    row = next(line for line in text.splitlines() if "| compiled-32 " in line)
    for shown in ("0.125 s", "0.375 s", "0.7 s", "26.4", "215.0", "44", "800.0", "0.004"):
        assert f" {shown} |" in row
    assert "16.2 ms" in text
    assert " 36,800 |" in markdown(report(result(images_per_second=36_789.0)))
    assert text.count("- spu on loopback, cpu: not here") == 1
    failed = text.index("**FAILED:**\n\n- vgg16@224, crypten on loopback, cpu: failed: too large")
    assert failed < text.index("| model")


def test_ratios_within_a_run() -> None:
    """22.5 / 0.125; 20 / 0.125; bytes 3960 / 26.4; 232 / 44; 232 / 88; 22.5 / 0.625; 42 / 0.7;
    2 / 0.04.
    """
    text = markdown(report(result(), stock()))
    half = text[text.index("How many times less") :]
    assert cells(half, "resnet18@224")[3:] == [
        "180", "160", "150", "5.27", "2.64", "36", "60", "50",
    ]  # fmt: skip
    # of another model, network or number of threads nothing is said
    for other in (stock(model="lenet"), stock(network="wan"), stock(threads=2)):
        assert "How many times less" not in markdown(report(result(), other))


def test_comparison_of_two_runs() -> None:
    before = report(result(), result(network="wan"))
    after = report(result(online_seconds_median=0.25, offline_seconds_median=None))
    text = comparison(before, after)
    row = cells(text, "resnet18@224")
    assert row[3:6] == ["2", "-", "1"]
    assert text.startswith("Second run divided by the first")
    assert "no configuration in common" in comparison(before, report(stock()))


def test_comparison_of_runs_that_cannot_be_compared() -> None:
    before, after = report(result()), report(result())
    after.machine = {**after.machine, "cores": 4, "load_average": 3.5}
    after.versions = {**after.versions, "numba": "0.66", "commit": "0123456789ab"}
    warnings = comparison(before, after).split("\n\n")[:3]
    assert warnings == [
        "WARNING: the two runs are of different machines: cores 2 and 4.",
        "WARNING: the two runs are of different versions: numba None and 0.66.",
        "WARNING: a machine was busy beforehand: load average 0.1 and 3.5.",
    ]


def test_floors_and_what_was_not_reached() -> None:
    made = report(result(online_over_floor=1.25, online_over_plaintext=4.5))
    parts = {"linear_seconds": 0.02, "transfer_seconds": 0.018, "floor_seconds": 0.058}
    for party in ("model_owner", "data_owner"):
        parts |= {
            f"{party}_comparison_seconds": 0.01,
            f"{party}_seconds_per_comparison": 3.4e-9,
        }
    rates = {"multiply_adds_per_second": 8.3e10, "bytes_per_second": 1.5e9}
    made.floors = [{"result": 0, **parts, **rates}]
    made.planned = 3
    text = markdown(made)
    assert "Broken off: 2 of 3 cases were not reached." in text
    rows = [line for line in text.splitlines() if line.startswith("| resnet18@224")]
    assert " 4.5 |" in rows[0]
    assert " 1.25 |" in rows[0]
    shown = ("20 ms", "18 ms", "58 ms", "83 G/s", "3.4 ns", "1,500 MB/s")
    assert all(f" {figure} |" in rows[1] for figure in shown)


def test_tables_are_aligned() -> None:
    lines = table(["a", "b", "c", "value"], [["x", "y", "z", "1"], ["long name", "y", "z", "1000"]])
    assert len({len(line) for line in lines.splitlines()}) == 1
    assert lines.splitlines()[1].endswith("-: |")


def test_a_straight_line_is_found() -> None:
    points = [(size * 1e6, 0.02 + 0.04 * size) for size in (0.2, 1.0, 3.0, 9.0)]
    found = growth.fit(points)
    assert found["per_million"] == pytest.approx(0.04)
    assert found["constant"] == pytest.approx(0.02)
    assert found["r_squared"] == pytest.approx(1.0)
    assert found["largest_residual"] == pytest.approx(0.0, abs=1e-9)
    assert found["points"] == 4


def test_a_curve_leaves_residuals() -> None:
    found = growth.fit([(size * 1e6, size**2) for size in (1.0, 2.0, 4.0, 8.0)])
    assert found["largest_residual"] > 0.2
    assert found["r_squared"] < 0.98


def test_fits_are_of_one_network_each_and_of_three_sizes_at_least() -> None:
    def grown(model: str, sizes: tuple[int, ...], **more: object) -> list[dict[str, object]]:
        return [
            result(
                model=model,
                image_size=size,
                comparisons=60 * size**2,
                online_seconds_median=1e-6 * size**2,
                **more,
            )
            for size in sizes
        ]

    results = [
        *grown("resnet18", (64, 128, 224)),
        *grown("resnet50", (64, 128)),
        *grown("vgg16", (64, 128, 224), concurrency=2),
        *grown("lenet", (64, 128, 224), engine="crypten-stock", network="loopback"),
    ]
    results[-1]["comparisons"] = None
    found = growth.fits(results)
    assert {fit["model"] for fit in found} == {"resnet18"}
    assert [fit["measure"] for fit in found] == list(growth.MEASURES)
    online = found[0]
    assert online["per_million"] == pytest.approx(1 / 60)
    text = markdown(report(*results).__class__(**{**vars(report(*results)), "fits": found}))
    assert "Growth with the number of comparisons" in text
