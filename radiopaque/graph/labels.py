"""Label-only outputs: which classes apply, and no score, is all that leaves the sharing.

Multi-class: the class with the largest score. Scores settle to few fraction bits and are made
distinct, score times a power of two plus a rank, so that of equal ones the first wins; their
maximum M is found as in a max-pool; y - M is 0 for the winner and at most -1 for the others, in
stored units, so max(y - M + 1, 0) is 1 and 0. Multi-label: the classes whose score is above 0, by
min(max(x, 0), 1) = max(x, 0) - max(x - 1, 0) in units. All of it is exact but the settling, which
rounds by less than a unit: a label may differ from that of plain scores only where these are
closer than that.

It is made of gates that exist, so it reveals what they do: two bits of each class to the data
owner. Round trips: 1 for the settling, 2 for each halving of the classes, 2 for the labels; 3
altogether for multi-label.
"""

from __future__ import annotations

from radiopaque.errors import ManifestError, UnsupportedModelError
from radiopaque.graph.draft import Draft, Flag, Result, Units
from radiopaque.graph.lowering.pooling import halve
from radiopaque.graph.plan import Task


def label_only(draft: Draft, task: Task) -> Draft:
    """The draft with labels for its result. Raises ModelError where it has none to choose."""
    result = draft.ops[-1]
    if task == "raw":
        raise ManifestError(
            "label-only outputs need a classification task; state it in manifest.json, "
            "key 'task': multiclass or multilabel"
        )
    shape = result.shape
    if len(shape) < 2:
        raise UnsupportedModelError([f"an output of shape {list(shape)} has no row for each image"])
    rows = shape[0]
    columns = 1
    for size in shape[1:]:
        columns *= size
    if task == "multiclass" and columns < 2:
        raise UnsupportedModelError(
            [f"an output of shape {list(shape)} has no label to choose; compile it with scores"]
        )
    made = Draft(list(draft.ops[:-1]), result.origin)
    x = made.settle(made.reshape(result.inputs[0], (rows, columns)))
    flags = _largest(made, x) if task == "multiclass" else _positive(made, x)
    made.add(Result(), [made.reshape(made.add(Flag(), [flags], (rows, columns)), shape)], shape)
    return made


def _largest(draft: Draft, x: int) -> int:
    rows, columns = draft.shape(x)
    ranks = 1 << (columns - 1).bit_length()
    apart = _add(draft, draft.combine([x], [ranks]), tuple(reversed(range(columns))))
    most = draft.expand(halve(draft, apart, 1), (rows, columns))
    behind = draft.combine([apart, most], [1, -1])
    return draft.relu(_add(draft, behind, (1,) * columns), exact=True)


def _positive(draft: Draft, x: int) -> int:
    rows, columns = draft.shape(x)
    both = draft.concatenate([x, _add(draft, x, (-1,) * columns)], 0)
    above = draft.relu(both, exact=True)
    first = draft.slice_axis(above, 0, 0, rows)
    second = draft.slice_axis(above, 0, rows, rows)
    return draft.combine([first, second], [1, -1])


def _add(draft: Draft, x: int, values: tuple[int, ...]) -> int:
    return draft.add(Units(values), [x], draft.shape(x))
