"""Images to results, group by group: what is broken off is tried again, what is done is kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_owner.artefacts import LocalModel
from data_owner.journal import Image, Journal, Result
from data_owner.retry import CURABLE, Backoff
from data_owner.sessions import Sessions
from radiopaque.engine.plans import AnyPlan
from radiopaque.errors import ImageError, PlanError, RadiopaqueError
from radiopaque.graph.plan import IntendedUse, Preprocessing
from radiopaque.telemetry import get_logger

Progress = Callable[[str], None]
"""Told in one line what is being done."""

_GROUP = 8
"""Sessions that are reserved at a time for a list of images."""
_log = get_logger(__name__)


@dataclass(frozen=True)
class Picture:
    """An image file, preprocessed."""

    path: Path
    tensor: NDArray[np.float32] = field(repr=False)
    warnings: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.path.name


@dataclass(frozen=True)
class Done:
    """A picture and its result."""

    picture: Picture
    result: Result


@dataclass(frozen=True)
class Failure:
    """An image without a result or a report, and why."""

    image: Path
    error: RadiopaqueError


@dataclass(frozen=True)
class Wish:
    """How a submission is to be done.

    ``journal`` keeps results; what it has is not done again unless ``again``. Where ``lenient``, an
    image that cannot be used becomes a Failure; otherwise it ends the submission.
    """

    journal: Journal | None = None
    again: bool = False
    lenient: bool = False
    backoff: Backoff = field(default_factory=Backoff)
    progress: Progress = lambda _: None


class Submission:
    """One run over a list of image files. ``fetch`` gives the model."""

    def __init__(self, sessions: Sessions, fetch: Callable[[], LocalModel], wish: Wish) -> None:
        self._sessions = sessions
        self._fetch = fetch
        self._wish = wish
        self._paths: Sequence[Path] = ()
        self._images: dict[int, Image] = {}
        self._found: dict[int, Done | Failure] = {}

    def run(self, paths: Sequence[Path]) -> Iterator[tuple[LocalModel, list[Done | Failure]]]:
        """Outcomes in the order of ``paths``, a group at a time; then the error that ended it.

        Sessions are prepared before the pictures of a group are read: from then to its results the
        crypto provider is not contacted, and from its first inference to its last nothing else is
        done. What the caller does with outcomes passes before the next group begins; the vendor
        sees how long it takes (docs/protocol.md, section 10.6). An attempt that was broken off
        lets go of its pictures before fresh material is made.
        """
        fetched: list[LocalModel] = []
        self._insist(lambda: fetched.append(self._fetch()))
        (model,) = fetched
        # a model that takes no images is refused before there is a session
        preprocessing_of(model.offer.plan)
        self._paths = paths
        size = model.offer.plan.batch * _GROUP
        for start in range(0, len(paths), size):
            group = range(start, min(start + size, len(paths)))
            ended: RadiopaqueError | None = None
            try:
                self._look_up(model, group)
                self._insist(lambda group=group: self._attempt(model, group))  # type: ignore[misc]
            except RadiopaqueError as error:
                ended = error
            yield model, [self._found.pop(number) for number in group if number in self._found]
            if ended is not None:
                raise ended

    def _look_up(self, model: LocalModel, group: range) -> None:
        """What the journal has already."""
        journal, artefact = self._wish.journal, model.offer.id.artefact
        if journal is None:
            return
        known: dict[int, Result] = {}
        for number in group:
            path = self._paths[number]
            try:
                image = Image.of(path)
            except OSError:
                continue  # reading it will say what is wrong with it
            self._images[number] = image
            result = None if self._wish.again else journal.find(image, artefact)
            if result is not None:
                known[number] = result
        for number, picture in self._read(model, list(known)).items():
            self._found[number] = Done(picture, known[number])

    def _insist(self, attempt: Callable[[], None]) -> None:
        """An attempt, and others after a while where that may cure what it raises."""
        waits, known = self._wish.backoff.waits(), len(self._found)
        while True:
            try:
                return attempt()
            except CURABLE as error:
                if len(self._found) > known:
                    waits, known = self._wish.backoff.waits(), len(self._found)
                drawn = next(waits, None)
                wait = None if drawn is None else self._wish.backoff.wait(error, drawn)
                if wait is None:
                    raise
                kind = type(error).__name__
                _log.warning(f"submission broken off, again in {wait:.1f} s", error=kind)
                self._wish.progress(f"{kind}; trying again on fresh material in {wait:.1f} s")
            self._sessions.pause(wait)

    def _attempt(self, model: LocalModel, group: range) -> None:
        """What is missing of a group, until something breaks it off."""
        plan = model.offer.plan
        missing = [number for number in group if number not in self._found]
        count = -(-len(missing) // plan.batch)

        def preparing() -> None:
            self._wish.progress("preparing a session (no image needed for this part)")

        with self._sessions.reserve(model, count, preparing) as reserved:
            pictures = self._read(model, missing)
            usable = list(pictures)
            for start, item in zip(range(0, len(usable), plan.batch), reserved, strict=False):
                chosen = usable[start : start + plan.batch]
                names = ", ".join(pictures[number].name for number in chosen)
                self._wish.progress(f"secure inference of {names}")
                tensors = [pictures[number].tensor for number in chosen]
                answer = self._sessions.infer(model, item, _batch(tensors, plan.batch))
                created = datetime.now(UTC).isoformat(timespec="seconds")
                for index, number in enumerate(chosen):
                    self._keep(model, number, pictures[number], Result(answer, index, created))

    def _read(self, model: LocalModel, numbers: Sequence[int]) -> dict[int, Picture]:
        """The pictures that can be used."""
        plan = model.offer.plan
        spec = preprocessing_of(plan)
        pictures = {}
        for number in numbers:
            try:
                picture = read_picture(self._paths[number], spec, plan.intended_use)
                self._check_same(number)
            except ImageError as error:
                if not self._wish.lenient:
                    raise
                self._found[number] = Failure(self._paths[number], error)
            else:
                pictures[number] = picture
        return pictures

    def _check_same(self, number: int) -> None:
        """Raises ImageError where a file became another one after it was looked up."""
        path, image = self._paths[number], self._images.get(number)
        try:
            same = image is None or Image.of(path) == image
        except OSError:
            same = False
        if not same:
            raise ImageError(f"{path.name} was changed while it was being read; submit it again")

    def _keep(self, model: LocalModel, number: int, picture: Picture, result: Result) -> None:
        """The journal's line is on the disk before the next image is begun."""
        self._found[number] = Done(picture, result)
        if self._wish.journal is not None and number in self._images:
            self._wish.journal.add(self._images[number], model.offer.id.artefact, result)


def read_picture(path: Path, spec: Preprocessing, use: IntendedUse | None) -> Picture:
    """Raises ImageError."""
    from data_owner.images import read_image
    from data_owner.intended_use import check
    from data_owner.preprocess import preprocess

    image = read_image(path)
    warnings = tuple(check(image.meta, use)) if use else ()
    return Picture(path, preprocess(image, spec), warnings)


def preprocessing_of(plan: AnyPlan) -> Preprocessing:
    """The plan's preprocessing. Raises PlanError for a plan that does not take images."""
    if plan.preprocessing is None:
        raise PlanError(
            f"model {plan.name} states no preprocessing for images; "
            "the vendor must compile it with a manifest, or call infer_tensor"
        )
    return plan.preprocessing


def _batch(tensors: Sequence[NDArray[np.float32]], size: int) -> NDArray[np.float32]:
    """Network inputs [size, c, h, w], filled up with zeros."""
    batch = np.zeros((size, *tensors[0].shape), np.float32)
    np.stack(tensors, out=batch[: len(tensors)])
    return batch
