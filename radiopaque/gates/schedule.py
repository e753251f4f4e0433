"""In which order the two parties compute and send the bands of a plan's layers online.

The model owner opens a band as soon as all rows that it is made of are there, an earlier layer
before a later one; only when there is none to open does it take the next reply of the data owner,
who answers in the order in which it is asked. So convolutions, comparisons and the wire overlap,
within a layer and across layers, and nobody waits but where the network leaves nothing else to do.

The order follows from the plan alone: every message is due at exactly one point, as if there were
no bands.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

from radiopaque.gates import halves
from radiopaque.gates.base import Gate, Reach, Site, sites
from radiopaque.graph import bands
from radiopaque.graph.bands import Band, row_count
from radiopaque.graph.plan import Plan


class Event(NamedTuple):
    """One party's turn at a band; at the model owner stage 0 opens it, later ones take replies."""

    site: Site
    band: Band
    stage: int
    more: bool = False
    """Does a message come after the one that is received here, whatever this party sends then?"""

    @property
    def last_opening(self) -> bool:
        """At the model owner: is the gate's input not needed any more?"""
        return self.stage == 0 and self.band.end == row_count(self.site.step.shape)

    @property
    def last(self) -> bool:
        """At the model owner: is the gate over?"""
        return self.stage == replies(self.site) and self.band.end == row_count(self.site.step.shape)

    @property
    def last_answer(self) -> bool:
        """At the data owner: is the gate over?"""
        stages = max(1, replies(self.site))
        return self.stage == stages - 1 and self.band.end == row_count(self.site.step.shape)


@dataclass(frozen=True)
class Schedule:
    """Both parties' events in order."""

    model_owner: tuple[Event, ...] = field(repr=False)
    data_owner: tuple[Event, ...] = field(repr=False)


def replies(site: Site) -> int:
    """Messages of the data owner about a band of a gate that communicates."""
    count = halves(site.step.gate).replies
    if count is None:
        raise TypeError(f"gate {site.number} does not communicate")
    return count


def schedule(plan: Plan) -> Schedule:
    """The order of a plan's online phase."""
    return _schedule(plan, bands.BLOCK_BYTES)


@lru_cache(maxsize=16)
def _schedule(plan: Plan, block_bytes: int) -> Schedule:
    """Bands, and so the order, depend on the size of blocks."""
    every = tuple(sites(plan))
    progress = _Progress(every)
    ready: list[tuple[int, int]] = []
    asked: deque[Event] = deque(Event(every[0], band, 1) for band in every[0].bands)
    answers = [Event(every[0], band, 0) for band in every[0].bands]
    answered_before: list[int] = []
    events: list[Event] = []
    taken = 0
    while ready or asked:
        if ready:
            gate, band = heapq.heappop(ready)
            event = Event(every[gate], every[gate].bands[band], 0)
        else:
            event = asked.popleft()
            event = event._replace(more=bool(asked))
            taken += 1
        events.append(event)
        if event.stage < replies(event.site):
            asked.append(event._replace(stage=event.stage + 1))
        elif event.stage:
            for found in progress.advance(event.site.number, event.band.end):
                heapq.heappush(ready, found)
        if event.stage < max(1, replies(event.site)):
            # the question is sent as soon as so many replies have been taken
            answered_before.append(taken)
            answers.append(event)
    return Schedule(tuple(events), tuple(_followed(answers, len(every[0].bands), answered_before)))


def _followed(answers: list[Event], first: int, taken: list[int]) -> Iterator[Event]:
    """The data owner's events; ``taken`` has the replies that each one's question waits for.

    ``first`` bands of the image go out before the first question.
    """
    yield from answers[:first]
    replied = first
    for number, event in enumerate(answers[first:]):
        following = taken[number + 1] if number + 1 < len(taken) else None
        yield event._replace(more=following is not None and following <= replied)
        replied += bool(replies(event.site))


class _Progress:
    """How many rows of every value can be computed by now."""

    def __init__(self, every: Sequence[Site]) -> None:
        self._sites = every
        self._halves: list[Gate] = [halves(site.step.gate) for site in every]
        self._reaches = [half.reach(site) for half, site in zip(self._halves, every, strict=True)]
        self._whole = [row_count(site.step.shape) for site in every]
        self._rows = [0] * len(every)
        self._opened = [0] * len(every)
        self._readers: list[list[int]] = [[] for _ in every]
        for site in every:
            for value in dict.fromkeys(site.step.inputs):
                self._readers[value].append(site.number)

    def advance(self, gate: int, rows: int) -> list[tuple[int, int]]:
        """A value has that many rows; (gate, band) of what can be opened now."""
        found: list[tuple[int, int]] = []
        self._rows[gate] = rows
        # in the order of the plan, so that each gate is looked at once
        waiting = list(self._readers[gate])
        while waiting:
            reader = heapq.heappop(waiting)
            while waiting and waiting[0] == reader:
                heapq.heappop(waiting)
            site = self._sites[reader]
            if self._halves[reader].replies is None:
                computable = self._computable(site)
                if computable > self._rows[reader]:
                    self._rows[reader] = computable
                    for following in self._readers[reader]:
                        heapq.heappush(waiting, following)
                continue
            cut, there = site.bands, self._rows[site.step.inputs[0]]
            while self._opened[reader] < len(cut) and cut[self._opened[reader]].end <= there:
                found.append((reader, self._opened[reader]))
                self._opened[reader] += 1
        return found

    def _computable(self, site: Site) -> int:
        """Rows of a local gate's output."""
        number, inputs = site.number, site.step.inputs
        reach = self._reaches[number]
        if reach is Reach.ROWS:
            return min(self._rows[i] for i in inputs)
        if reach is Reach.WINDOWS and len(site.step.shape) == 4:
            return computable_rows(self._halves[number], site, self._rows[inputs[0]])
        whole = all(self._rows[i] == self._whole[i] for i in inputs)
        return self._whole[number] if whole else 0


def operand_rows(half: Gate, site: Site, rows: int) -> int:
    """Rows of the operand that the first ``rows`` rows of a gate with windows wait for.

    At least one, also where the windows lie in the padding, so that the operand exists.
    """
    if len(site.step.shape) != 4:
        return row_count(site.operands[0].shape)
    image, last = divmod(rows - 1, site.step.shape[2])
    height = site.operands[0].shape[2]
    return max(1, image * height + min(height, max(0, half.rows_needed(site, last + 1))))


def computable_rows(half: Gate, site: Site, there: int) -> int:
    """The inverse, of values with rows: how many rows wait for no more than ``there``."""
    if not there:
        return 0
    height, own = site.operands[0].shape[2], site.step.shape[2]
    images, inside = divmod(there, height)
    first = half.rows_needed(site, 1)
    further = half.rows_needed(site, 2) - first
    begun = (inside - first) // further + 1
    return min(row_count(site.step.shape), images * own + min(own, max(0, begun)))
