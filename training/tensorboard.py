"""Figures of rounds for TensorBoard, written by tensorboardX (MIT), which needs no TensorBoard."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from training.checkpoint import RoundRecord
from training.errors import SettingsError

FOLDER = "tensorboard"
_PACKAGE = "tensorboardX"


def require_package() -> None:
    """Refuse to go on without the package that writes the files.

    Raises:
        SettingsError: it is not installed.
    """
    if importlib.util.find_spec(_PACKAGE) is None:
        raise SettingsError(
            f"output.tensorboard needs {_PACKAGE}; install it with: "
            "pip install 'radiopaque[tensorboard]', or take the key out"
        )


class EventLog:
    """An event file below `folder`/tensorboard; a context manager that closes it.

    Tags are `loss/training`, `loss/validation`, `auc/validation`, `seconds/round`, and what each
    site reports: `loss/SITE`, `learning_rate/SITE`, `epsilon_prv/SITE` and so on. The step is the
    number of the round, from 1. `records` are those of rounds that are done: they are written
    again, and what a run that was interrupted wrote is void.

    Raises:
        SettingsError: the package is not installed.
    """

    def __init__(self, folder: Path, records: Sequence[RoundRecord] = ()) -> None:
        require_package()
        from tensorboardX import SummaryWriter  # type: ignore[import-untyped]

        # Files are named after the second they are made in; the suffix keeps two of one apart.
        self._writer = SummaryWriter(
            str(folder / FOLDER), purge_step=1, filename_suffix=f".{len(records):06d}"
        )
        for record in records:
            self.add(record)

    def __enter__(self) -> EventLog:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._writer.close()

    def add(self, record: RoundRecord) -> None:
        """Write the figures of a round; they are on disk when this returns."""
        figures = {
            "loss/training": record.loss,
            "loss/validation": record.validation_loss,
            "auc/validation": record.validation_auc,
            "seconds/round": record.seconds,
        }
        for site, metrics in record.metrics.items():
            figures |= {f"{name}/{site}": value for name, value in metrics.items()}
        for tag, value in figures.items():
            if value is not None:
                self._writer.add_scalar(tag, value, record.number)
        self._writer.flush()
