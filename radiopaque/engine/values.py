"""The model owner's shares of a plan's values, as far as they are there: rows computed on demand.

What gates that communicate bring in is put here band by band. Values of local gates are computed
from them when rows of them are asked for: those that are read once straight into the reader's
hands, others into memory, each row once. Values are freed when all of their readers are complete.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any

from radiopaque.gates import halves
from radiopaque.gates.base import Evaluating, Gate, Reach, Site, sites
from radiopaque.gates.schedule import operand_rows
from radiopaque.graph.bands import Band, Rows, row_count, rows_between
from radiopaque.graph.plan import Plan
from radiopaque.kernels.device import Array
from radiopaque.telemetry import recorder

_Task = Generator[Any, Any, Any]


@dataclass(frozen=True, slots=True)
class _Node:
    """What is known of a step before anything runs."""

    site: Site
    half: Gate
    reach: Reach
    rows: int
    """Of its value."""
    readers: int
    passing: bool
    """Is each row of the value asked for exactly once, so that none is kept?"""

    def end(self, rows: Rows | None) -> int:
        """Rows of the value up to the last of these; None: all of them."""
        if rows is None:
            return self.rows
        return (rows.last - 1) * self.site.step.shape[2] + rows.bottom


class Wiring:
    """Who reads whose rows in a plan."""

    def __init__(self, plan: Plan) -> None:
        every = tuple(sites(plan))
        readers: list[list[int]] = [[] for _ in every]
        for site in every:
            for value in site.step.inputs:
                readers[value].append(site.number)
        gates = [halves(site.step.gate) for site in every]
        reaches = [half.reach(site) for half, site in zip(gates, every, strict=True)]
        self.nodes = tuple(
            _node(site, half, reach, [(gates[i], reaches[i]) for i in readers[site.number]])
            for site, half, reach in zip(every, gates, reaches, strict=True)
        )


def _node(site: Site, half: Gate, reach: Reach, readers: Sequence[tuple[Gate, Reach]]) -> _Node:
    passing = half.replies is None and len(readers) == 1 and reach is not Reach.WHOLE
    if passing:
        ((reader, asked),) = readers
        passing = reader.replies is not None or asked is not Reach.WINDOWS
    return _Node(site, half, reach, row_count(site.step.shape), len(readers), passing)


class Values:
    """The values of one session. ``state`` finds what was loaded for a gate, ``free`` ends it."""

    def __init__(
        self,
        wiring: Wiring,
        context: Evaluating,
        state: Callable[[int], Any],
        free: Callable[[int], None],
    ) -> None:
        self._context = context
        self._state = state
        self._free = free
        self._nodes = wiring.nodes
        self._done = [0] * len(self._nodes)
        self._unread = [node.readers for node in self._nodes]
        self._arrays: dict[int, Array] = {}

    def put(self, site: Site, band: Band, words: Array) -> None:
        """A band of the output of a gate that communicates, [band.size]."""
        shape = site.step.shape
        self._done[site.number] = band.end
        # the last rows of a value may be there when its readers are complete without them
        if self._unread[site.number]:
            part = words.reshape(shape if band.rows is None else band.rows.shape(shape))
            self._store(site, band.rows, part)

    def rows(self, number: int, rows: Rows | None) -> Array:
        """Some rows of a value, all of whose operands' rows are there; None: all of it."""
        value: Array = _outcome(self._rows(number, rows))
        return value

    def read(self, reader: Site) -> None:
        """A gate needs its inputs no more."""
        complete = [reader]
        while complete:
            for value in complete.pop().step.inputs:
                self._unread[value] -= 1
                if self._unread[value]:
                    continue
                self._arrays.pop(value, None)
                node = self._nodes[value]
                if node.half.replies is None and self._done[value] < node.rows:
                    # nobody asks for the rows that are left
                    self._done[value] = node.rows
                    self._free(value)
                    complete.append(node.site)

    def _rows(self, number: int, rows: Rows | None) -> _Task:
        node = self._nodes[number]
        if node.passing:
            return (yield self._compute(node, rows))
        yield self._complete(node, node.end(rows))
        value = self._arrays[number]
        return value if rows is None else value[rows.where]

    def _complete(self, node: _Node, stop: int) -> _Task:
        """Compute rows of a value that is kept, up to ``stop``."""
        done = self._done[node.site.number]
        if done >= stop:
            return
        if node.reach is Reach.WHOLE:
            self._store(node.site, None, (yield self._compute(node, None)))
            return
        for rows in rows_between(node.site.step.shape, done, stop):
            self._store(node.site, rows, (yield self._compute(node, rows)))

    def _compute(self, node: _Node, rows: Rows | None) -> _Task:
        site, inputs = node.site, node.site.step.inputs
        values: list[Array] = []
        if node.reach is Reach.WINDOWS:
            needed = operand_rows(node.half, site, node.end(rows))
            yield self._complete(self._nodes[inputs[0]], needed)
            values.append(self._arrays[inputs[0]])
        else:
            part = rows if node.reach is Reach.ROWS else None
            for value in inputs:
                values.append((yield self._rows(value, part)))
        state = self._state(site.number)
        with recorder.span("evaluate", site.number):
            out = node.half.evaluate(self._context, site, state, values, rows)
        del state, values
        self._done[site.number] += node.rows if rows is None else rows.height
        if self._done[site.number] == node.rows:
            self._free(site.number)
            self.read(site)
        return out

    def _store(self, site: Site, rows: Rows | None, part: Array) -> None:
        """Keep some rows of a value."""
        device, number = self._context.device, site.number
        if rows is None or tuple(part.shape) == site.step.shape:
            self._arrays[number] = device.contiguous(part)
            return
        if number not in self._arrays:
            self._arrays[number] = device.empty(site.step.shape, site.dtype)
        self._arrays[number][rows.where] = part


def _outcome(task: _Task) -> Any:
    """Run a task and those that it waits for: a chain of gates may be longer than Python's stack.

    A task yields another one, and is sent what that returned.
    """
    waiting = [task]
    outcome = None
    while waiting:
        try:
            following = waiting[-1].send(outcome)
        except StopIteration as end:
            waiting.pop()
            outcome = end.value
        else:
            waiting.append(following)
            outcome = None
    return outcome
