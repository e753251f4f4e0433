"""Checkpoints: everything a run needs to go on as if it had not been interrupted."""

from __future__ import annotations

import io
import pickle
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from training.errors import CheckpointError, SettingsError
from training.files import write_atomically

FILE = "checkpoint.pt"
_VERSION = 1


@dataclass(frozen=True, slots=True)
class RoundRecord:
    """Figures of one round. `loss` is the mean over sites that report one, else None.

    The validation figures are None where nobody has images to validate on.
    """

    number: int
    loss: float | None
    validation_loss: float | None
    validation_auc: float | None
    samples: int
    seconds: float
    sites: list[str]
    lost: list[str]
    spent: list[str]
    metrics: dict[str, dict[str, float]]


@dataclass(slots=True)
class Progress:
    """State after some rounds: current and best weights by name, and the record of each round."""

    weights: dict[str, Tensor]
    best: dict[str, Tensor]
    best_round: int = 0
    best_auc: float = float("-inf")
    records: list[RoundRecord] = field(default_factory=list)
    retired: list[str] = field(default_factory=list)


def save(folder: Path, progress: Progress, fingerprint: str) -> None:
    """Write the checkpoint of a run, all of it or nothing.

    `fingerprint` stands for configuration and data; `load` wants the same.
    """
    content = {
        "version": _VERSION,
        "fingerprint": fingerprint,
        "weights": progress.weights,
        "best": progress.best,
        "best_round": progress.best_round,
        "best_auc": progress.best_auc,
        "records": [asdict(record) for record in progress.records],
        "retired": progress.retired,
    }
    buffer = io.BytesIO()
    torch.save(content, buffer)
    try:
        write_atomically(folder / FILE, buffer.getvalue())
    except OSError as error:
        raise CheckpointError(
            f"the checkpoint {folder / FILE} cannot be written ({error.strerror}); free some space "
            "or fix the rights of the folder, then resume: the rounds before this one are kept"
        ) from error


def rounds_done(folder: Path, resume: bool) -> int:
    """Rounds that are done in the folder of a run that is to go on (`resume`) or to begin.

    Raises:
        CheckpointError: there is none to go on with, or it is broken.
        SettingsError: there is one already, or a model, where a run is to begin.
    """
    if resume:
        return len(_read(folder / FILE)[0].records)
    if (folder / FILE).exists():
        raise SettingsError(
            f"{folder / FILE} is there already; add --resume to go on with it, or choose another "
            "folder"
        )
    refuse_model(folder)
    return 0


def refuse_model(folder: Path) -> None:
    """Refuse to begin in a folder that holds a model, which would be written over in the end.

    Raises:
        SettingsError: it does.
    """
    for name in ("manifest.json", "model.onnx"):
        if (folder / name).exists():
            raise SettingsError(
                f"{folder / name} is there already: a model, which training would write over; "
                "choose another folder"
            )


def load(folder: Path, fingerprint: str) -> Progress:
    """Read the checkpoint of a run. Tensors and plain values only: a file cannot run code.

    Raises:
        CheckpointError: there is none, it is broken, or of another configuration or data.
    """
    progress, version, found = _read(folder / FILE)
    if version != _VERSION or found != fingerprint:
        raise CheckpointError(
            f"{folder / FILE} belongs to another configuration, other images or another version; "
            "resume with the files it was made with, or train anew in another folder"
        )
    return progress


def _read(path: Path) -> tuple[Progress, int, str]:
    try:
        content = torch.load(io.BytesIO(path.read_bytes()), map_location="cpu", weights_only=True)
        version, found = content.pop("version"), content.pop("fingerprint")
        records = [RoundRecord(**record) for record in content.pop("records")]
        return Progress(records=records, **content), version, found
    except FileNotFoundError as error:
        raise CheckpointError(f"there is no checkpoint {path}; start without --resume") from error
    except (
        OSError,
        RuntimeError,
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
        EOFError,
        pickle.UnpicklingError,
    ) as error:
        raise CheckpointError(
            f"{path} is not a checkpoint ({type(error).__name__}); restore it, or train anew in "
            "another folder"
        ) from error
