"""Geometry of sliding windows: padding attributes, ceil_mode and the number of positions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from radiopaque.graph.ir import Node
from radiopaque.graph.lowering.context import NotLowered


@dataclass(frozen=True)
class Window:
    """Windows along one axis: ``count`` of them, ``begin``/``end`` padded positions."""

    size: int
    kernel: int
    stride: int
    dilation: int
    begin: int
    end: int
    count: int

    @property
    def span(self) -> int:
        """Positions from a window's first to its last element."""
        return (self.kernel - 1) * self.dilation + 1

    @property
    def reach(self) -> int:
        """Positions that the windows look at, from the first padded one."""
        return (self.count - 1) * self.stride + self.span

    def covering(self) -> Window:
        """The same windows, end padding as large as they reach (ceil_mode)."""
        return replace(self, end=max(0, self.reach - self.begin - self.size))


UNIT = Window(1, 1, 1, 1, 0, 0, 1)
"""The axis that turns one-dimensional data into two-dimensional."""


def windows(
    node: Node, size: Sequence[int], count: Sequence[int], kernel: Sequence[int]
) -> list[Window]:
    """Windows of a convolution or pool, one axis after the other. Raises NotLowered.

    ``size`` and ``count`` are the spatial extents of input and output.
    """
    rank = len(size)
    strides = node.integers("strides") or (1,) * rank
    dilations = node.integers("dilations") or (1,) * rank
    pads = _pads(node, size, kernel, strides, dilations)
    found = []
    for axis in range(rank):
        window = Window(
            size[axis],
            kernel[axis],
            strides[axis],
            dilations[axis],
            pads[axis],
            pads[axis + rank],
            count[axis],
        )
        room = window.size + window.begin + window.end - window.span
        positions = room // window.stride + 1
        if node.integer("ceil_mode", 0):
            if not positions <= window.count <= positions + 1:
                raise NotLowered(_mismatch(window, positions), "export the model again")
            if (window.count - 1) * window.stride >= window.size + window.begin:
                raise NotLowered(
                    "with ceil_mode the last window starts in the padding, which runtimes "
                    "disagree about",
                    "state larger pads and leave ceil_mode out",
                )
        elif positions != window.count or window.count < 1:
            raise NotLowered(_mismatch(window, positions), "export the model again")
        found.append(window)
    return found


def _mismatch(window: Window, positions: int) -> str:
    return f"{window.count} windows do not fit the {positions} positions of {window}"


def _pads(
    node: Node,
    size: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
) -> tuple[int, ...]:
    rank = len(size)
    mode = node.text("auto_pad", "NOTSET")
    if mode == "NOTSET":
        pads = node.integers("pads") or (0,) * (2 * rank)
        if min(pads) < 0:
            raise NotLowered(f"negative padding {list(pads)}", "crop with Slice instead")
        return pads
    if mode == "VALID":
        return (0,) * (2 * rank)
    if mode not in ("SAME_UPPER", "SAME_LOWER"):
        raise NotLowered(f"auto_pad {mode!r} is unknown", "state the pads")
    begins, ends = [], []
    for axis in range(rank):
        span = (kernel[axis] - 1) * dilations[axis] + 1
        count = -(-size[axis] // strides[axis])
        total = max(0, (count - 1) * strides[axis] + span - size[axis])
        smaller, larger = total // 2, total - total // 2
        begins.append(smaller if mode == "SAME_UPPER" else larger)
        ends.append(larger if mode == "SAME_UPPER" else smaller)
    return (*begins, *ends)
