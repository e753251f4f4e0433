"""A bar on the terminal while something takes long.

Whatever takes long calls a `Watch` with what it does, how much is done and how much there is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

Watch = Callable[[str, int, int], None]


def unwatched(what: str, done: int, total: int) -> None:
    """The watch of those who do not look."""


class Bar:
    """A watch that draws one line on stderr, and takes it away when it is cleared.

    With `shown` false it does nothing. Clear it before anything else is printed.
    """

    def __init__(self, shown: bool) -> None:
        self._shown = shown
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._what = ""

    def __call__(self, what: str, done: int, total: int) -> None:
        """Show that `done` of `total` steps of `what` are taken."""
        if not self._shown:
            return
        if self._progress is None:
            self._progress = self._started()
        if self._task is None or what != self._what:
            if self._task is not None:
                self._progress.remove_task(self._task)
            self._task, self._what = self._progress.add_task(what, total=total), what
        self._progress.update(self._task, completed=done, total=total)

    def clear(self) -> None:
        """Take the line away; the next call draws a new one."""
        if self._progress is not None:
            self._progress.stop()
            self._progress, self._task = None, None

    def _started(self) -> Progress:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
        from rich.progress import TimeElapsedColumn as Elapsed

        progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            Elapsed(),
            console=Console(stderr=True),
            transient=True,
        )
        progress.start()
        return progress
