"""Originals and reconstructions side by side, as PNG."""

from __future__ import annotations

import io
from collections.abc import Mapping

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

SCALE = 2
GAP = 4
HEADER = 30


def side_by_side(columns: Mapping[str, Tensor], captions: Mapping[str, str]) -> bytes:
    """Return a PNG with one column per entry of `columns`, one row per image.

    Every entry is float [n, 1, h, w] from 0 to 1, all of one shape; `captions` holds a second
    line under the heading of a column.
    """
    count, _, height, width = next(iter(columns.values())).shape
    cell_h, cell_w = height * SCALE + GAP, width * SCALE + GAP
    canvas = Image.new("L", (cell_w * len(columns) + GAP, cell_h * count + HEADER + GAP), 255)
    pen = ImageDraw.Draw(canvas)
    for column, (heading, images) in enumerate(columns.items()):
        left = GAP + column * cell_w
        pen.text((left, 2), heading, fill=0)
        pen.text((left, 15), captions.get(heading, ""), fill=90)
        for row in range(count):
            levels = (images[row, 0].clamp(0.0, 1.0).numpy() * 255.0).round().astype(np.uint8)
            cell = Image.fromarray(levels).resize(
                (width * SCALE, height * SCALE), Image.Resampling.NEAREST
            )
            canvas.paste(cell, (left, HEADER + row * cell_h))
    stream = io.BytesIO()
    canvas.save(stream, format="PNG", optimize=True)
    return stream.getvalue()
