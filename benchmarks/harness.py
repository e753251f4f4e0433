"""Measures cases one after another and collects what comes out."""

from __future__ import annotations

import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from benchmarks.case import Case, Inputs, Tell
from benchmarks.engines import ENGINES
from benchmarks.errors import NotAvailableError
from benchmarks.models import Choice, obtain, sample_images
from benchmarks.record import Record, Report
from benchmarks.tables import FAILED
from benchmarks.trace import Timeline
from radiopaque.cli.fidelity import plaintext_session
from radiopaque.errors import RadiopaqueError


class Harness:
    """A report that grows, the timeline of its first inference that has one, and what failed."""

    def __init__(self, tell: Tell) -> None:
        self.report = Report.empty()
        self.timeline: Timeline | None = None
        self.failures = 0
        self._tell = tell
        self._inputs: dict[Choice, Inputs] = {}

    def measured(self, cases: Sequence[Case]) -> Iterator[Case]:
        """Measure all cases, yielding each when the report has it.

        What an engine does not take, and what failed, is in the report with the reason: a run of
        hours does not end with one case, whatever went wrong with it.
        """
        self.report.planned = len(cases)
        for number, case in enumerate(cases, start=1):
            self._tell(f"[{number}/{len(cases)}] {case}")
            try:
                self._measure(case, cases)
            except NotAvailableError as reason:
                self._skip(case, str(reason))
            except RadiopaqueError as error:
                self._fail(case, str(error))
            except Exception as error:
                self._tell("".join(traceback.format_exception(error)).rstrip())
                self._fail(case, f"{type(error).__name__}: {error}")
            yield case

    def _measure(self, case: Case, cases: Sequence[Case]) -> None:
        began = time.perf_counter()
        inputs = self._inputs.get(case.model)
        if inputs is None:
            inputs = _inputs(cases, case.model, self._say)
            self._inputs = {case.model: inputs}
        with tempfile.TemporaryDirectory(prefix="radiopaque-bench-") as folder:
            part = ENGINES[case.engine](case, inputs, Path(folder), self._say)
        self.report.add(part)
        relate(self.report.results)
        self.timeline = self.timeline or part.timeline
        seconds = time.perf_counter() - began
        self._say(f"{part.result['online_seconds_median']:.3g} s online; done in {seconds:.0f} s")

    def _fail(self, case: Case, reason: str) -> None:
        self.failures += 1
        self._skip(case, f"{FAILED}{reason}")

    def _skip(self, case: Case, reason: str) -> None:
        self._say(f"not measured: {reason}")
        self.report.skipped.append({**case.record(), "reason": reason})

    def _say(self, text: str) -> None:
        self._tell(f"    {text}")


def relate(results: Sequence[Record]) -> None:
    """Put ``online_over_plaintext`` where onnxruntime was measured on as many images and threads.

    Several inferences at once share a machine that one in the clear had for itself: they have none.
    """
    plain = {
        _work(one): one["online_seconds_median"]
        for one in results
        if one["engine"] == "onnxruntime"
    }
    for one in results:
        seconds = plain.get(_work(one))
        if seconds and one["engine"] != "onnxruntime" and one["concurrency"] == 1:
            one["online_over_plaintext"] = float(f"{one['online_seconds_median'] / seconds:.7g}")


def _work(result: Record) -> tuple[str, int, int, int]:
    return result["model"], result["image_size"], result["batch"], result["threads"]


def _inputs(cases: Sequence[Case], model: Choice, tell: Tell) -> Inputs:
    """Images enough that, as far as the samples go, no inference of any case has one twice."""
    source = obtain(model, tell)
    wanted = max(case.inferences * case.batch for case in cases if case.model == model)
    images = sample_images(source.preprocessing, wanted)
    plaintext = plaintext_session(source.onnx)
    reference = np.concatenate([plaintext(image[np.newaxis]) for image in images])
    return Inputs(source, images, reference.reshape(len(images), -1))
