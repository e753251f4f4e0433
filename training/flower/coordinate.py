"""What the coordinator runs: the SuperLink, the rounds, and what becomes of their sums."""

from __future__ import annotations

import hashlib
import json
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from training.config import TrainingSettings
from training.data import CLASSES, DataError, index_folder
from training.errors import (
    CheckpointError,
    DivergedError,
    RefusedMessageError,
    SettingsError,
    TooFewSitesError,
)
from training.federated import (
    Outcome,
    build_network,
    first_progress,
    keeping,
    lead,
)
from training.files import write_atomically
from training.flower.figures import check_figures
from training.flower.keys import tls_files
from training.flower.members import Members, load_members, split_address
from training.flower.replies import END, REASONS, Status
from training.flower.settings import agreement, load_run, threshold_of
from training.flower.superlink import SuperLink
from training.intake import Cohort, Intake, read_images
from training.opening import Opening
from training.progress import Watch, unwatched
from training.rounds import Attendance, Questions, RoundResult, secure_round
from training.secagg import Context
from training.secagg.context import SESSION_BYTES, Kind
from training.site import Weights, applied, flatten, shared_names
from training.validator import Validator

Report = Callable[[str], None]

SESSION_FILE = "session.json"
_QUICK_SECONDS = 120.0
_END_SECONDS = 15.0
_LOOK_SECONDS = 0.2
_LONGEST_PAUSE = 30.0


@dataclass(frozen=True, slots=True)
class Request:
    """The options of the command. Times are in seconds."""

    run: Path
    members: Path
    keys: Path
    output: Path
    listen: str | None = None
    validation: Path | None = None
    resume: bool = False
    wait: float = 300.0
    step_seconds: float = 3600.0
    give_up: float | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """What came out, with the images it was validated on, if any."""

    settings: TrainingSettings
    outcome: Outcome
    validation: Cohort | None


def coordinate(request: Request, report: Report, watch: Watch = unwatched) -> Result:
    """Lead a run to its end; checkpoint and log are kept after every round.

    Raises:
        TrainingError: see the messages; rounds that are done are in the checkpoint.
    """
    members = load_members(request.members)
    settings = load_run(request.run, members)
    validation = _validation(request.validation, settings, report, watch)
    torch.set_num_threads(settings.threads)
    model = build_network(settings)
    agreed = agreement(members, settings)
    fingerprint = f"{hashlib.sha256(agreed).hexdigest()}/{_fingerprint(validation)}"
    progress = first_progress(model, request.output, fingerprint, request.resume)
    session = Session(request.output / SESSION_FILE, agreed, request.resume)
    validator = validation and Validator(validation, model, settings, watch)
    link = SuperLink(
        members.node_keys(),
        _listening(request.listen, members),
        tls_files(request.keys, members.coordinator.certificate),
    )
    report(
        f"{members.name}: {len(members.sites)} sites, at least {threshold_of(settings)} in a round"
    )
    report(f"fingerprint of the members: {members.fingerprint()}")
    report(f"run {hashlib.sha256(agreed).hexdigest()[:16]}")
    if request.resume:
        report(f"resumed after round {len(progress.records)}")
    link.start()
    try:
        report(f"listening as {members.coordinator.address}")
        rounds = Rounds(link, members, settings, agreed, session, model, request, report)
        names = tuple(sorted(members.sites))
        with keeping(settings, progress, request.output, fingerprint, report) as kept:
            outcome = lead(settings, progress, rounds.play, names, model, validator or None, kept)
        for _ in link.ask(dict.fromkeys(link.online(), END), 1, _END_SECONDS):
            pass
    finally:
        link.stop()
    return Result(settings, outcome, validation)


class Session:
    """What the coordinator must not forget: session, attempts, and the round it asked to open.

    A run that stopped before its first checkpoint goes on in the same session, too: the sites know
    no other.

    Raises:
        CheckpointError: the file is missing, damaged, or of another run.
    """

    def __init__(self, path: Path, agreed: bytes, resume: bool) -> None:
        self._path = path
        self._digest = hashlib.sha256(agreed).hexdigest()
        self.session = secrets.token_bytes(SESSION_BYTES)
        self.attempt = -1
        self.opening = -1
        if resume or path.exists():
            self._read()

    def begin(self) -> int:
        """Number the next attempt; it is on disk when this returns."""
        self.attempt += 1
        self._write()
        return self.attempt

    def open(self, number: int) -> None:
        """Enter that the sites are asked to open round `number`, from 0."""
        self.opening = number
        self._write()

    def _write(self) -> None:
        content = {
            "run": self._digest,
            "session": self.session.hex(),
            "attempt": self.attempt,
            "opening": self.opening,
        }
        try:
            write_atomically(self._path, (json.dumps(content) + "\n").encode())
        except OSError as error:
            raise CheckpointError(
                f"{self._path} cannot be written ({error.strerror}); free some space or fix the "
                "rights of the folder, then resume"
            ) from error

    def _read(self) -> None:
        try:
            content: dict[str, Any] = json.loads(self._path.read_text(encoding="utf-8"))
            known = content["run"] == self._digest
            self.session = bytes.fromhex(content["session"])
            self.attempt, self.opening = int(content["attempt"]), int(content["opening"])
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise CheckpointError(
                f"{self._path} is not a session ({type(error).__name__}); restore it, or start a "
                "new run, with another seed, in another folder"
            ) from error
        if not known:
            raise CheckpointError(
                f"{self._path} belongs to another run; resume with the files it was begun with"
            )


class Rounds:
    """Plays rounds with the sites behind a SuperLink, repeating those that fall through."""

    def __init__(
        self,
        link: SuperLink,
        members: Members,
        settings: TrainingSettings,
        agreed: bytes,
        session: Session,
        model: nn.Module,
        request: Request,
        report: Report,
    ) -> None:
        self._link = link
        self._pins = members.pins()
        self._threshold = threshold_of(settings)
        self._agreed = agreed
        self._session = session
        self._names = shared_names(model)
        self._request = request
        self._report = report
        self._patience = request.wait
        self._seen: frozenset[str] | None = None

    def play(self, number: int, names: Sequence[str], weights: Weights) -> RoundResult:
        """Play round `number`, from 0, with those of the sites `names` that are there.

        A round that too few finish is played again. One that was opened, and whose sum did not come
        out, is not: no site would open it twice. It counts, and the weights stay.

        Raises:
            TooFewSitesError: the sites that can still take part are too few, or too few came back
                for as long as was to be waited.
            DivergedError: too many sites report a loss or an update that is not a number.
        """
        began, pause, told = time.monotonic(), 1.0, ""
        active, spent = set(names), list[str]()
        while self._session.opening < number:
            present = self._wait(active, began)
            attendance = Attendance()
            try:
                return self._attempt(number, present, active, weights, attendance, spent)
            except TooFewSitesError:
                reason = attendance.reasons()
            except (RefusedMessageError, SettingsError) as error:
                reason = str(error)
            spent += attendance.spent
            active -= set(attendance.spent)
            if len(active) < self._threshold:
                raise TooFewSitesError(f"too few sites are left: {reason}", tuple(spent))
            diverged = [n for n, why in attendance.lost.items() if why == REASONS[Status.DIVERGED]]
            if len(active) - len(diverged) < self._threshold:
                raise DivergedError(
                    f"{', '.join(diverged)}: a loss or an update is not a number; lower "
                    "training.learning_rate, agree on the new run file, and train anew. The "
                    "checkpoint is that of the round before"
                )
            if reason != told:
                self._report(f"round {number + 1} fell through: {reason}; it is tried again")
            told = reason
            self._check_patience(began)
            time.sleep(pause)
            pause = min(2.0 * pause, _LONGEST_PAUSE)
        self._report(
            f"round {number + 1} was opened, but its sum did not come out; the run goes on from "
            "the weights before it"
        )
        return RoundResult(weights, 0, (), {}, tuple(sorted(active)), tuple(spent))

    def _attempt(
        self,
        number: int,
        present: set[str],
        active: set[str],
        weights: Weights,
        attendance: Attendance,
        spent: Sequence[str],
    ) -> RoundResult:
        flat = flatten(weights, self._names)
        attempt = self._session.begin()
        opening = Opening(self._session.session, attempt, number, self._agreed, flat)
        context = Context(
            opening.session,
            attempt,
            self._pins,
            self._threshold,
            len(flat),
            binding=opening.binding(),
        )
        for name in sorted(active - present):
            attendance.lost[name] = "was not connected"

        def exchange(questions: Questions, seen: Attendance) -> Iterator[tuple[str, bytes]]:
            if questions.kind == Kind.UNMASK:
                self._session.open(number)
            training = questions.kind == Kind.MASKED
            seconds = self._request.step_seconds if training else _QUICK_SECONDS
            asked = {name: body for name, body in questions.by_site.items() if name in present}
            for reply in self._link.ask(asked, 1 + questions.answer_bytes, seconds):
                payload = reply.payload
                if payload is None:
                    seen.lost[reply.name] = reply.reason
                elif payload[:1] == bytes([Status.ANSWER]):
                    yield reply.name, payload[1:]
                else:
                    _enter(reply.name, payload, seen)

        sums = secure_round(context, opening.encode(), exchange, attendance, check_figures)
        return RoundResult(
            applied(weights, sums.mean.astype(np.float32), self._names),
            sums.samples,
            sums.sites,
            attendance.metrics,
            tuple(attendance.lost),
            (*spent, *attendance.spent),
        )

    def _wait(self, active: set[str], began: float) -> set[str]:
        """Wait for the sites: for all of them at first, later for as many as are needed."""
        until = time.monotonic() + self._patience
        while True:
            online = frozenset(self._link.online() & active)
            enough = len(online) >= self._threshold
            if online == active or (enough and time.monotonic() >= until):
                self._patience = 0.0
                return set(online)
            if online != self._seen:
                self._seen = online
                missing = ", ".join(sorted(active - online))
                self._report(
                    f"{len(online)} of {len(active)} sites are connected, {self._threshold} are "
                    f"needed; waiting for {missing}"
                )
            self._check_patience(began)
            time.sleep(_LOOK_SECONDS)

    def _check_patience(self, began: float) -> None:
        limit = self._request.give_up
        if limit is not None and time.monotonic() - began > limit:
            raise TooFewSitesError(
                f"for {limit:.0f} s there were not enough sites for a round; bring them back and "
                "go on with --resume"
            )


def _enter(name: str, payload: bytes, attendance: Attendance) -> None:
    """Enter why a site does not answer."""
    status = payload[0] if len(payload) == 1 else -1
    if status == Status.SPENT:
        attendance.spent.append(name)
    else:
        known = status in set(REASONS)
        attendance.lost[name] = REASONS[Status(status)] if known else "sent a malformed reply"


def _listening(listen: str | None, members: Members) -> tuple[str, int]:
    if listen is None:
        return "0.0.0.0", split_address(members.coordinator.address)[1]  # noqa: S104 (TLS, keys)
    try:
        return split_address(listen)
    except ValueError as error:
        raise SettingsError(f"--listen: {error}") from error


def _validation(
    folder: Path | None, settings: TrainingSettings, report: Report, watch: Watch
) -> Cohort | None:
    if folder is None:
        if settings.training.patience:
            raise SettingsError(
                "training.patience needs images to validate on; pass --validation, or agree on a "
                "run without it"
            )
        report("no images to validate on: the last round is kept")
        return None
    try:
        samples = index_folder(folder)
    except DataError as error:
        raise SettingsError(str(error)) from error
    cohort, skipped = read_images(samples, settings.data, watch)
    present = {sample.label for sample in cohort.samples}
    missing = [title for label, title in enumerate(CLASSES) if label not in present]
    if missing:
        raise SettingsError(
            f"{folder} has no readable image of {', '.join(missing)}; the macro AUC that chooses "
            f"the round needs all {len(CLASSES)} classes: add some, or do without --validation"
        )
    report(f"{len(cohort.samples)} images to validate on, {len(skipped)} unreadable ones skipped")
    return cohort


def _fingerprint(validation: Cohort | None) -> str:
    if validation is None:
        return "no validation"
    return Intake(validation, validation, ()).fingerprint()
