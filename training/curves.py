"""Curves of a training run as a picture."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from training.checkpoint import RoundRecord
from training.files import write_atomically


def draw(records: Sequence[RoundRecord], path: Path) -> None:
    """Write a PNG: losses, validation AUC, and each site's epsilon where it has one, by round."""
    private = sorted({name for r in records for name, m in r.metrics.items() if "epsilon_prv" in m})
    figure = Figure(figsize=(12.0 if private else 8.0, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 3 if private else 2)
    rounds = [record.number for record in records]
    # None, where nobody validates, leaves a gap.
    losses = np.array([record.validation_loss for record in records], dtype=np.float64)
    areas = np.array([record.validation_auc for record in records], dtype=np.float64)
    axes[0].plot(rounds, losses, label="validation")
    with_loss = [(record.number, record.loss) for record in records if record.loss is not None]
    if with_loss:
        axes[0].plot(*zip(*with_loss, strict=True), label="training (mean over sites)")
    axes[0].set(xlabel="round", ylabel="loss")
    axes[0].legend()
    axes[1].plot(rounds, areas)
    axes[1].set(xlabel="round", ylabel="macro AUC, validation")
    for name in private:
        points = [
            (record.number, record.metrics[name]["epsilon_prv"])
            for record in records
            if "epsilon_prv" in record.metrics.get(name, {})
        ]
        axes[2].plot(*zip(*points, strict=True), label=name)
    if private:
        axes[2].set(xlabel="round", ylabel="epsilon spent (PRV)")
        axes[2].legend()
    for axis in axes:
        axis.grid(alpha=0.3)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    write_atomically(path, buffer.getvalue())
