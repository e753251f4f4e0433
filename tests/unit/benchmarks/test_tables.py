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
    text = markdown(made)
    assert text.startswith(
        "Example 1, 2 cores, 16 GiB, Linux 6.1, load average 0.1 before; 2026-11-21."
    )
    row = next(line for line in text.splitlines() if "| compiled-32 " in line)
    for shown in ("0.125 s", "0.375 s", "0.7 s", "26.4", "215.0", "44", "800.0", "0.004"):
        assert f" {shown} |" in row
    assert "16.2 ms" in text
    assert text.count("- spu on loopback, cpu: not here") == 1


def test_ratios_within_a_run() -> None:
    """22.5 / 0.125; bytes 3960 / 26.4; 232 / 44; 232 / 88; 22.5 / 0.625; 42 / 0.7; 2 / 0.04."""
    text = markdown(report(result(), stock()))
    half = text[text.index("How many times less") :]
    assert cells(half, "resnet18@224")[3:] == [
        "180", "150", "5.27", "2.64", "36", "60", "50",
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
    assert "different machines" not in text
    after.machine = {**after.machine, "cores": 4}
    assert "different machines" in comparison(before, after)
    assert "nothing" in comparison(before, report(stock())) or "no configuration" in comparison(
        before, report(stock())
    )


def test_tables_are_aligned() -> None:
    lines = table(["a", "b", "c", "value"], [["x", "y", "z", 1], ["long name", "y", "z", 1000]])
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
