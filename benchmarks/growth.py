"""How cost grows with the number of comparisons: straight lines and how far off they are."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from benchmarks.record import Record

MEASURES = (
    "online_seconds_median",
    "online_bytes",
    "offline_seconds_median",
    "offline_bytes",
    "cpu_seconds",
    "peak_rss_bytes",
)
_FEWEST = 3
_MILLION = 1e6


def fits(results: Sequence[Record]) -> list[Record]:
    """Least-squares lines over the sizes of each network on one network and engine.

    ``per_million``: the slope, for 10^6 comparisons; ``constant``: the intercept;
    ``largest_residual``: the largest distance of a point from the line, as a part of its value.
    """
    groups: dict[tuple[str, str, str], list[Record]] = defaultdict(list)
    for record in results:
        alone = record["batch"] == record["concurrency"] == record["threads"] == 1
        if record["comparisons"] and alone:
            groups[record["model"], record["engine"], record["network"]].append(record)
    return [
        {"model": model, "engine": engine, "network": network, "measure": measure, **line}
        for (model, engine, network), records in groups.items()
        if len({record["image_size"] for record in records}) >= _FEWEST
        for measure in MEASURES
        if (line := fit([(r["comparisons"], r[measure]) for r in records]))
    ]


def fit(points: Sequence[tuple[float, float]]) -> Record:
    """The line through points (comparisons, value), weighted so that small sizes count as much.

    Each point's weight is one over its value: what is made small is the relative error.
    """
    x, y = np.array(points, np.float64).T
    x = x / _MILLION
    matrix = np.stack([x / y, 1 / y], axis=1)
    (slope, constant), *_ = np.linalg.lstsq(matrix, np.ones_like(y), rcond=None)
    line = slope * x + constant
    spread = ((y - y.mean()) ** 2).sum()
    return {
        "per_million": float(slope),
        "constant": float(constant),
        "r_squared": float(1 - ((y - line) ** 2).sum() / spread) if spread else 1.0,
        "largest_residual": float(np.abs((y - line) / y).max()),
        "points": len(y),
    }
