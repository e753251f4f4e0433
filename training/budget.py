"""A site's privacy budget: what it allows, what is spent, in a file that outlives the process.

A step is entered before it is taken. A crash between the two wastes budget; the other order would
forget a step whose result has left the site. The file belongs to the images: whoever trains on the
same images with another file spends again, so one file has to serve all trainings on a data set.
"""

from __future__ import annotations

import fcntl
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from training.accounting import Accountant, Steps, epsilon_of, prv_epsilon, rdp_epsilon
from training.errors import BudgetSpentError, SettingsError

_VERSION = 1
_MODE = 0o600


@dataclass(frozen=True, slots=True)
class Allowance:
    """What a site allows: `epsilon` at `delta`, counted by `accountant`."""

    epsilon: float
    delta: float
    accountant: Accountant = "prv"

    def __post_init__(self) -> None:
        """Refuse an allowance that means nothing.

        Raises:
            SettingsError: epsilon is not positive, or delta not between 0 and 1.
        """
        if not self.epsilon > 0.0:
            raise SettingsError(f"the budget's epsilon is {self.epsilon}; it must be positive")
        if not 0.0 < self.delta < 1.0:
            raise SettingsError(f"the budget's delta is {self.delta}; it must lie in (0, 1)")


@dataclass(frozen=True, slots=True)
class Spent:
    """What steps have cost so far: epsilon by both accountants, at the allowance's delta."""

    steps: int
    epsilon_prv: float
    epsilon_rdp: float


class Budget:
    """The budget of one site, in memory if `path` is None (simulations only).

    Raises:
        SettingsError: the file cannot be read, or is that of another site or another allowance.
    """

    def __init__(self, site: str, allowance: Allowance, path: Path | None) -> None:
        self.site = site
        self.allowance = allowance
        self._path = path
        self._history: tuple[Steps, ...] = ()
        if path is not None and path.exists():
            self._history = self._read(path)

    @property
    def history(self) -> tuple[Steps, ...]:
        """All steps entered so far; equal neighbours are joined."""
        return self._history

    def spent(self) -> Spent:
        """What has been spent, by both accountants."""
        return Spent(
            sum(steps.count for steps in self._history),
            prv_epsilon(self._history, self.allowance.delta),
            rdp_epsilon(self._history, self.allowance.delta),
        )

    def affords(self, steps: Steps) -> bool:
        """Whether these steps fit into what is left."""
        return self._epsilon(_joined(self._history, steps)) <= self.allowance.epsilon

    def remaining(self, noise_multiplier: float, sample_rate: float, at_most: int) -> int:
        """How many steps of that kind still fit, up to `at_most`."""
        low, high = 0, at_most
        while low < high:
            middle = (low + high + 1) // 2
            if self.affords(Steps(noise_multiplier, sample_rate, middle)):
                low = middle
            else:
                high = middle - 1
        return low

    def charge(self, steps: Steps) -> Spent:
        """Enter steps, durably, before they are taken; return the total.

        Raises:
            BudgetSpentError: they do not fit; nothing is entered.
            SettingsError: the file cannot be read or written.
        """
        with self._locked():
            if self._path is not None and self._path.exists():
                # Another process may have trained on the same images meanwhile.
                self._history = self._read(self._path)
            proposed = _joined(self._history, steps)
            epsilon = self._epsilon(proposed)
            if epsilon > self.allowance.epsilon:
                spent = self._epsilon(self._history)
                raise BudgetSpentError(
                    f"site {self.site!r} has spent epsilon {spent:.3f} of "
                    f"{self.allowance.epsilon:g} (delta {self.allowance.delta:g}), and "
                    f"{steps.count} more steps would make it {epsilon:.3f}: it takes no more part. "
                    "Finish with the weights of the last round, or plan with more noise"
                )
            if self._path is not None:
                self._write(self._path, proposed)
            self._history = proposed
        return self.spent()

    def _epsilon(self, history: tuple[Steps, ...]) -> float:
        return epsilon_of(history, self.allowance.delta, self.allowance.accountant)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        if self._path is None:
            yield
            return
        lock = self._path.with_name(f"{self._path.name}.lock")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(lock, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, _MODE)
        except OSError as error:
            raise SettingsError(
                f"the budget's lock {lock} cannot be opened ({error.strerror}); "
                "training without a durable budget is not private, so it stops here"
            ) from error
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)

    def _write(self, path: Path, history: tuple[Steps, ...]) -> None:
        content = {
            "version": _VERSION,
            "site": self.site,
            "allowance": asdict(self.allowance),
            "steps": [asdict(steps) for steps in history],
        }
        temporary = ""
        try:
            handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
            with os.fdopen(handle, "w", encoding="utf-8") as stream:
                json.dump(content, stream, indent=1)
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(temporary, path)
            folder = os.open(path.parent, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError as error:
            if temporary:
                Path(temporary).unlink(missing_ok=True)
            raise SettingsError(
                f"the budget {path} cannot be written ({error.strerror}); "
                "training without a durable budget is not private, so it stops here"
            ) from error

    def _read(self, path: Path) -> tuple[Steps, ...]:
        try:
            content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            version, site = content["version"], content["site"]
            allowance = Allowance(**content["allowance"])
            history = tuple(Steps(**steps) for steps in content["steps"])
        except OSError as error:
            raise SettingsError(f"the budget {path} cannot be read ({error.strerror})") from error
        except (ValueError, TypeError, KeyError, SettingsError) as error:
            raise SettingsError(
                f"{path} is not a budget ({type(error).__name__}); restore it from a backup. "
                "Deleting it would spend what it stands for a second time"
            ) from error
        if version != _VERSION or site != self.site:
            raise SettingsError(
                f"{path} is the budget of site {site!r} (version {version}), not of "
                f"{self.site!r}; give each site its own file"
            )
        if allowance != self.allowance:
            raise SettingsError(
                f"{path} allows epsilon {allowance.epsilon:g} at delta {allowance.delta:g} by "
                f"{allowance.accountant}, the configuration says {self.allowance.epsilon:g} at "
                f"{self.allowance.delta:g} by {self.allowance.accountant}; configure what the file "
                "says, or have whoever is responsible for the images change the file"
            )
        return history


def _joined(history: tuple[Steps, ...], steps: Steps) -> tuple[Steps, ...]:
    """The history with `steps` added to those of the same kind: order does not matter."""
    if not steps.count:
        return history
    joined: list[Steps] = []
    left = steps.count
    for past in history:
        same = (past.noise_multiplier, past.sample_rate) == (
            steps.noise_multiplier,
            steps.sample_rate,
        )
        if same and left:
            joined.append(Steps(past.noise_multiplier, past.sample_rate, past.count + left))
            left = 0
        else:
            joined.append(past)
    if left:
        joined.append(steps)
    return tuple(joined)
