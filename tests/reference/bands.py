"""The order of a layer's elements, and of the online messages, written down a second time.

Slow and plain: elements are listed one by one, and what can be computed is found by colouring rows.
"""

from __future__ import annotations

from typing import Any

Shape = tuple[int, ...]
Place = tuple[int, ...]


def order(shape: Shape, words: int) -> list[list[Place]]:
    """The places [n, c, h, w] of every band, in order; ``words`` fit into a message."""
    if len(shape) != 4:
        return [_places([range(extent) for extent in shape])]
    n, c, h, w = shape
    if n * c * h * w <= words:
        parts = [(range(n), range(h))]
    elif c * h * w <= words:
        step = words // (c * h * w)
        parts = [(range(i, min(i + step, n)), range(h)) for i in range(0, n, step)]
    else:
        most = max(1, words // (c * w))
        count = (h + most - 1) // most
        edges = [number * h // count for number in range(count + 1)]
        parts = [
            (range(i, i + 1), range(edges[k], edges[k + 1])) for i in range(n) for k in range(count)
        ]
    return [_places([images, range(c), rows, range(w)]) for images, rows in parts]


def _places(axes: list[range]) -> list[Place]:
    found: list[Place] = [()]
    for axis in axes:
        found = [(*place, i) for place in found for i in axis]
    return found


def messages(plan: dict[str, Any], word_bytes: int, block_bytes: int) -> list[tuple[str, int, int]]:
    """(direction, gate, band) of every online message but the results, in the order of the two
    parties' conversation: "up" from the model owner, "down" from the data owner, as the model owner
    sends and takes them.
    """
    steps = plan["steps"]
    words = block_bytes // word_bytes
    cut = {
        gate: order(tuple(step["shape"]), words)
        for gate, step in enumerate(steps)
        if step["gate"]["kind"] in _REPLIES
    }
    there: list[set[tuple[int, int]]] = [set() for _ in steps]
    waiting = {gate: 0 for gate in cut if gate}
    queue = [(0, band, 1) for band in range(len(cut[0]))]
    said: list[tuple[str, int, int]] = []
    while True:
        _spread(steps, there)
        for gate in sorted(waiting):
            band = waiting[gate]
            (source,) = steps[gate]["inputs"]
            if band < len(cut[gate]) and _rows(cut[gate][band]) <= there[source]:
                break
        else:
            if not queue:
                return said
            gate, band, stage = queue.pop(0)
            said.append(("down", gate, band))
            if stage < _REPLIES[steps[gate]["gate"]["kind"]]:
                said.append(("up", gate, band))
                queue.append((gate, band, stage + 1))
            else:
                there[gate] |= _rows(cut[gate][band])
            continue
        waiting[gate] += 1
        said.append(("up", gate, band))
        if _REPLIES[steps[gate]["gate"]["kind"]]:
            queue.append((gate, band, 1))


_REPLIES = {"input": 1, "truncate": 1, "relu": 2, "output": 0}
"""Messages of the data owner, a band."""


def _rows(places: list[Place]) -> set[tuple[int, int]]:
    """(image, row) of some places; values without rows have one."""
    return {(place[0], place[2]) if len(place) == 4 else (0, 0) for place in places}


def _all_rows(step: dict[str, Any]) -> set[tuple[int, int]]:
    shape = step["shape"]
    if len(shape) != 4:
        return {(0, 0)}
    return {(image, row) for image in range(shape[0]) for row in range(shape[2])}


def _spread(steps: list[dict[str, Any]], there: list[set[tuple[int, int]]]) -> None:
    """Colour the rows of local gates' values that can be computed, from the top of each image."""
    for number, step in enumerate(steps):
        gate = step["gate"]
        if gate["kind"] in _REPLIES:
            continue
        sources = [steps[i] for i in step["inputs"]]
        for row in sorted(_all_rows(step) - there[number]):
            needed = _needed(gate, step, sources, row)
            if not all(
                (_all_rows(source) if needed is None else needed) <= there[i]
                for i, source in zip(step["inputs"], sources, strict=True)
            ):
                break
            there[number].add(row)


def _needed(
    gate: dict[str, Any], step: dict[str, Any], sources: list[dict[str, Any]], row: tuple[int, int]
) -> set[tuple[int, int]] | None:
    """Rows of the sources that a row is made of, and those above; None: everything."""
    kind, (image, y) = gate["kind"], row
    same = {"matrix_product", "multiply", "add_constant", "combine", "remask"}
    if kind in same or (kind == "concatenate" and gate["axis"] == 1):
        return {row}
    shape = sources[0]["shape"]
    if len(shape) != 4 or shape[0] != step["shape"][0]:
        return None
    if kind in ("convolution", "window_sum"):
        last = y * gate["strides"][0] - gate["pads"][0]
        last += (gate["kernel"][0] - 1) * gate["dilations"][0]
    elif kind == "slice":
        last = gate["starts"][2] + y * gate["strides"][2]
    elif kind == "pad":
        last = y - gate["before"][2]
    else:
        return None
    above = {(i, r) for i in range(image) for r in range(shape[2])}
    here = {(image, r) for r in range(min(shape[2], max(0, last + 1)))}
    return above | here | {(0, 0)}
