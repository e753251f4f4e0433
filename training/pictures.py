"""ROC curves, confusion matrices and reliability diagrams as PNG, one panel for each set of images.

Colours are those of Okabe and Ito, which people with colour blindness can tell apart.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from training.data import CLASSES
from training.evaluate import Evaluation
from training.metrics import CALIBRATION_BINS, confusion_matrix, mean_curve, reliability, roc_curve

ROC_FILE = "roc.png"
CONFUSION_FILE = "confusion.png"
CALIBRATION_FILE = "calibration.png"

_COLOURS = ("#0072B2", "#D55E00", "#009E73")
_GREY = "#777777"
_PANEL = 4.6
_DPI = 130

Draw = Callable[[Axes, Evaluation], None]


def pictures(evaluations: Mapping[str, Evaluation]) -> dict[str, bytes]:
    """PNG files by name; none if nothing was measured. `evaluations` are by the set's name."""
    if not evaluations:
        return {}
    draws: Mapping[str, Draw] = {
        ROC_FILE: _roc,
        CONFUSION_FILE: _confusion,
        CALIBRATION_FILE: _calibration,
    }
    return {name: _panels(evaluations, draw) for name, draw in draws.items()}


def _panels(evaluations: Mapping[str, Evaluation], draw: Draw) -> bytes:
    figure = Figure(figsize=(_PANEL * len(evaluations), _PANEL * 1.04), layout="constrained")
    FigureCanvasAgg(figure)
    every = figure.subplots(1, len(evaluations), squeeze=False)[0]
    for axes, (name, evaluation) in zip(every, evaluations.items(), strict=True):
        draw(axes, evaluation)
        axes.set_title(
            f"{name}: {evaluation.images} images, {evaluation.patients} patients", fontsize=10
        )
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=_DPI, metadata={"Software": None})
    return stream.getvalue()


def _roc(axes: Axes, evaluation: Evaluation) -> None:
    curves = []
    for label, (title, colour) in enumerate(zip(CLASSES, _COLOURS, strict=True)):
        positive = evaluation.labels == label
        area = evaluation.values["auc"][label]
        if np.isnan(area):
            axes.plot([], [], color=colour, label=f"{title}: undefined")
            continue
        curves.append(roc_curve(evaluation.probabilities[:, label], positive))
        interval = evaluation.intervals["auc"][:, label]
        axes.plot(*curves[-1], color=colour, linewidth=1.5, label=_area(title, area, interval))
    if len(curves) == len(CLASSES):
        area, interval = evaluation.values["macro_auc"][0], evaluation.intervals["macro_auc"][:, 0]
        axes.plot(
            *mean_curve(curves), color="black", linewidth=2.0, label=_area("macro", area, interval)
        )
    axes.plot([0, 1], [0, 1], color=_GREY, linewidth=1.0, linestyle=":", label="chance: AUC 0.500")
    axes.set(
        xlabel="false positive rate", ylabel="true positive rate", xlim=(-0.01, 1), ylim=(0, 1.01)
    )
    axes.set_aspect("equal")
    axes.grid(alpha=0.25)
    axes.legend(loc="lower right", fontsize=7.5, title="one versus rest, 95 %", title_fontsize=7.5)


def _area(title: str, area: float, interval: np.ndarray) -> str:
    return f"{title}: AUC {area:.3f} ({interval[0]:.3f} to {interval[1]:.3f})"


def _confusion(axes: Axes, evaluation: Evaluation) -> None:
    counts = confusion_matrix(evaluation.probabilities, evaluation.labels)
    totals = counts.sum(axis=1, keepdims=True)
    shares = counts / np.maximum(totals, 1)
    axes.imshow(shares, cmap="Blues", vmin=0.0, vmax=1.0)
    for (row, column), count in np.ndenumerate(counts):
        share = shares[row, column]
        axes.text(
            column,
            row,
            f"{count}\n{100 * share:.0f} %" if totals[row, 0] else "none",
            ha="center",
            va="center",
            color="white" if share > 0.55 else "black",
        )
    names = [title.replace(" ", "\n", 1) for title in CLASSES]
    axes.set_xticks(range(len(CLASSES)), names)
    axes.set_yticks(range(len(CLASSES)), names, rotation=90, va="center")
    axes.set(xlabel="top class", ylabel="truth (shares are of its row)")
    axes.set_xticks(np.arange(0.5, len(CLASSES) - 1), minor=True)
    axes.set_yticks(np.arange(0.5, len(CLASSES) - 1), minor=True)
    axes.grid(which="minor", color="white", linewidth=2)
    axes.tick_params(which="both", length=0)


def _calibration(axes: Axes, evaluation: Evaluation) -> None:
    found = reliability(evaluation.probabilities, evaluation.labels)
    filled = found.images > 0
    width = 1.0 / CALIBRATION_BINS
    centres = (np.arange(CALIBRATION_BINS)[filled] + 0.5) * width
    share = found.images[filled] / found.images.sum()
    accuracy, confidence = found.accuracy[filled], found.confidence[filled]
    axes.bar(centres, accuracy, width * 0.94, color=_COLOURS[0], alpha=0.55, label="accuracy")
    axes.bar(centres, share, width * 0.4, color=_COLOURS[1], label="share of the images")
    axes.plot([0, 1], [0, 1], color="black", linewidth=1.2, linestyle="--", label="calibrated")
    axes.plot(
        confidence, accuracy, "ko", markersize=4, label="accuracy at the bin's mean probability"
    )
    error, interval = evaluation.values["ece"][0], evaluation.intervals["ece"][:, 0]
    lowest = 1.0 / len(CLASSES)  # no top class has less
    axes.set(xlabel="probability of the top class", xlim=(lowest, 1.0), ylim=(0, 1.01))
    axes.grid(alpha=0.25)
    axes.set_axisbelow(True)
    axes.legend(
        loc="upper center",
        bbox_to_anchor=(0.5, -0.12),
        ncols=2,
        frameon=False,
        fontsize=7.5,
        title=f"expected calibration error {error:.3f} ({interval[0]:.3f} to {interval[1]:.3f})",
        title_fontsize=7.5,
    )
