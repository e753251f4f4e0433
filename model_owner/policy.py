"""What a vendor grants: who may use its models, how often, and how much each result reveals.

Against the extraction of a model by its clinics (docs/protocol.md, section 1, the row of a
deviating data owner): every result is a value of the function, and errors that a clinic injects
steer it. The model owner never sees a result, only which bits of a masked value it sends; so what
a result reveals is fixed by the plan's output, and a policy refuses to host plans that reveal more.

Images are counted before the first message of an inference leaves, durably, and whatever becomes of
it: an interrupted one may have revealed its result, and what was counted must not depend on that.
"""

from __future__ import annotations

import math
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

from model_owner.hosting import HostedModel
from radiopaque.errors import AccessError, ConfigError, ResourceError, StoreError
from radiopaque.files import PRIVATE_FILE_MODE, make_private_directory
from radiopaque.graph.plan import Output, Plan
from radiopaque.transport.grpc_server import Call, Handler

_SCHEMA = """
CREATE TABLE IF NOT EXISTS used (
    clinic TEXT NOT NULL,
    at     REAL NOT NULL,
    images INTEGER NOT NULL
) STRICT;
CREATE INDEX IF NOT EXISTS used_by_clinic ON used (clinic, at);
"""


@dataclass(frozen=True)
class Rules:
    """One vendor's policy; None: no bound.

    ``clinics`` are the names in the certificates of those that may call; ``images`` may be
    classified for each of them in any ``period_seconds``; ``output_bits`` of each output may be
    revealed at most, and with ``labels_only`` no score at all.
    """

    clinics: Collection[str] | None = None
    images: int | None = None
    period_seconds: float = 86_400.0
    output_bits: int | None = None
    labels_only: bool = False

    def check_outputs(self, models: Iterable[HostedModel]) -> None:
        """Raises ConfigError for the first model that reveals more than these rules allow."""
        for model in models:
            problem = self._revealing(model)
            if problem is not None:
                raise ConfigError(
                    f"model {model.name} {model.version} {problem}; compile it again, or change "
                    "the policy in the configuration"
                )

    def _revealing(self, model: HostedModel) -> str | None:
        plan = model.host.plan
        if not self.labels_only and self.output_bits is None:
            return None
        if not isinstance(plan, Plan):
            return "is for the CrypTen engine, which reveals whole outputs"
        gate = plan.output_step.gate
        if self.labels_only and not plan.labels_only:
            return "reveals scores, the policy allows labels alone (compile --labels-only)"
        most = self.output_bits
        if most is not None and isinstance(gate, Output) and gate.bits > most:
            return (
                f"reveals {gate.bits} bits of each output, the policy allows {most} "
                f"(compile --output-bits {most})"
            )
        return None


class Policy:
    """The rules of one model owner, and what each clinic has used, in a file of its store."""

    def __init__(self, rules: Rules, store: Path, clock: Callable[[], float] = time.time) -> None:
        make_private_directory(store)
        self._rules = rules
        self._clock = clock
        self._path = store / "quota.sqlite"
        self._lock = threading.Lock()
        try:
            os.close(os.open(self._path, os.O_RDWR | os.O_CREAT, PRIVATE_FILE_MODE))
            self._connection = sqlite3.connect(
                self._path, isolation_level=None, check_same_thread=False
            )
            self._connection.execute("PRAGMA journal_mode = TRUNCATE")
            self._connection.execute("PRAGMA synchronous = FULL")
            self._connection.executescript(_SCHEMA)
        except (OSError, sqlite3.Error) as error:
            raise self._unusable(error) from error

    def close(self) -> None:
        """Let go of the file."""
        with self._lock:
            self._connection.close()

    def guarded(self, handlers: Mapping[str, Handler]) -> dict[str, Handler]:
        """A service's table, for the admitted clinics alone."""

        def for_admitted(function: Callable[..., Any]) -> Callable[..., Any]:
            def guarded(messages: Any, call: Call) -> Any:
                self.admit(call.peer.name)
                return function(messages, call)

            return guarded

        return {
            name: replace(handler, function=for_admitted(handler.function))
            for name, handler in handlers.items()
        }

    def admit(self, clinic: str) -> None:
        """Raises AccessError for a clinic that is not on the list."""
        if self._rules.clinics is not None and clinic not in self._rules.clinics:
            raise AccessError(
                f"the clinic {clinic!r} is not on this model owner's list; ask the vendor to admit "
                "it by the name in its certificate"
            )

    def charge(self, clinic: str, images: int) -> None:
        """Count an inference on so many images, durably. Call it before it starts.

        Raises ResourceError beyond the quota, with the time after which to try again; nothing is
        counted then.
        """
        if self._rules.images is None:
            return
        quota, period = self._rules.images, self._rules.period_seconds
        if images > quota:
            raise ResourceError(
                f"an inference on {images} images is over the quota of {quota} in "
                f"{_duration(period)}; use a plan with a smaller batch, or ask the vendor"
            )
        now = self._clock()
        with self._lock:
            try:
                self._connection.execute("BEGIN IMMEDIATE")
                try:
                    wait = self._wait(clinic, images, now)
                    if wait is None:
                        self._connection.execute(
                            "INSERT INTO used VALUES (?, ?, ?)", (clinic, now, images)
                        )
                    self._connection.execute("COMMIT")
                except BaseException:
                    if self._connection.in_transaction:
                        self._connection.execute("ROLLBACK")
                    raise
            except sqlite3.Error as error:
                raise self._unusable(error) from error
        if wait is not None:
            raise ResourceError(
                f"the quota of this clinic, {quota} images in {_duration(period)}, is used up; "
                f"try again in {math.ceil(wait)} s",
                retry_seconds=wait,
            )

    def _wait(self, clinic: str, images: int, now: float) -> float | None:
        """Seconds until so many images fit into the quota; None if they do now."""
        quota, period = self._rules.images or 0, self._rules.period_seconds
        self._connection.execute("DELETE FROM used WHERE at <= ?", (now - period,))
        rows = self._connection.execute(
            "SELECT at, images FROM used WHERE clinic = ? ORDER BY at", (clinic,)
        ).fetchall()
        excess = sum(row[1] for row in rows) + images - quota
        if excess <= 0:
            return None
        freed = accumulate(count for _, count in rows)
        at = next(at for (at, _), images in zip(rows, freed, strict=True) if images >= excess)
        return float(at + period - now)

    def _unusable(self, error: Exception) -> StoreError:
        return StoreError(f"{self._path} cannot be used: {error}; check the disk")


def _duration(seconds: float) -> str:
    hours = seconds / 3600
    return f"{hours:g} hour{'s' if hours != 1 else ''}"
