"""From a picture to the network's input, exactly as the plan says.

The plan's :class:`radiopaque.graph.plan.Preprocessing` is what training did, so both sides mean
the same: pixels in 0..1, resized, then ``(pixel - mean) / std``. A picture that already has the
right size is not resampled: an 8-bit grey JPEG of that size becomes ``(value / 255 - mean) / std``.
"""

from __future__ import annotations

from io import BytesIO

import numpy as np
from numpy.typing import NDArray

from data_owner.images import GreyImage, check_size
from radiopaque.errors import PlanError, TensorError
from radiopaque.graph.plan import MAX_PIXELS, Preprocessing
from radiopaque.graph.preprocessing import check_extent, normalised

Box = tuple[float, float, float, float]
_INTERPOLATIONS = ("bilinear", "bicubic", "nearest")


def preprocess(image: GreyImage, spec: Preprocessing) -> NDArray[np.float32]:
    """The network's input, float32 [c, h, w], grey repeated over the channels.

    ``resize`` "stretch" ignores the aspect ratio; "fit" keeps it and fills the rest with black;
    "crop" keeps it and cuts the longer side to its centre. Resampling by Pillow in 32-bit floats,
    antialiased when it makes smaller; bicubic overshoot is clipped to 0..1.
    Raises ``PlanError`` for a specification that says something else, or an input, and
    ``ImageError`` for a picture, of more than ``plan.MAX_PIXELS`` or ``plan.MAX_SIDE``.
    """
    rows, columns = image.pixels.shape
    check_size(rows, columns, MAX_PIXELS)
    check_preprocessing(spec)
    return normalised(_resize(image.pixels, spec), spec)


def picture_png(tensor: NDArray[np.float32], spec: Preprocessing) -> bytes:
    """The first channel of a network input [c, h, w] as an 8-bit grey PNG, for reports.

    It undoes the normalisation only, so it shows what the network sees and holds nothing else.
    """
    from PIL import Image

    check_preprocessing(spec)
    expected = (spec.channels, spec.height, spec.width)
    if tensor.shape != expected:
        raise TensorError(f"the input is {list(tensor.shape)}, the plan says {list(expected)}")
    grey = np.clip(tensor[0] * np.float32(spec.std[0]) + np.float32(spec.mean[0]), 0.0, 1.0)
    stream = BytesIO()
    Image.fromarray(np.rint(grey * 255).astype(np.uint8)).save(stream, "PNG", optimize=True)
    return stream.getvalue()


def check_preprocessing(spec: Preprocessing) -> None:
    """Raise ``PlanError`` unless ``spec`` can be carried out."""
    if spec.resize not in ("stretch", "fit", "crop"):
        raise PlanError(f"resize is '{spec.resize}', not stretch, fit or crop; ask the vendor")
    if spec.interpolation not in _INTERPOLATIONS:
        raise PlanError(
            f"interpolation is '{spec.interpolation}', not one of {', '.join(_INTERPOLATIONS)}; "
            "ask the vendor"
        )
    check_extent(spec)
    if len(spec.mean) != spec.channels or len(spec.std) != spec.channels:
        raise PlanError(
            f"{len(spec.mean)} means and {len(spec.std)} standard deviations for {spec.channels} "
            "channel(s); ask the vendor"
        )
    if not np.isfinite((*spec.mean, *spec.std)).all() or min(spec.std) <= 0:
        raise PlanError("a mean or standard deviation is not finite and positive; ask the vendor")


def _resize(pixels: NDArray[np.float32], spec: Preprocessing) -> NDArray[np.float32]:
    rows, columns = pixels.shape
    if (rows, columns) == (spec.height, spec.width):
        return pixels
    if spec.resize == "crop":
        return _resample(pixels, spec, (spec.height, spec.width), _centre(rows, columns, spec))
    if spec.resize == "stretch":
        return _resample(pixels, spec, (spec.height, spec.width), (0, 0, columns, rows))
    factor = min(spec.height / rows, spec.width / columns)
    height = min(spec.height, max(1, round(rows * factor)))
    width = min(spec.width, max(1, round(columns * factor)))
    canvas = np.zeros((spec.height, spec.width), dtype=np.float32)
    top, left = (spec.height - height) // 2, (spec.width - width) // 2
    canvas[top : top + height, left : left + width] = _resample(
        pixels, spec, (height, width), (0, 0, columns, rows)
    )
    return canvas


def _centre(rows: int, columns: int, spec: Preprocessing) -> Box:
    """The largest centred part (left, top, right, bottom) with the aspect ratio of the input."""
    height = min(rows, columns * spec.height / spec.width)
    width = min(columns, rows * spec.width / spec.height)
    left, top = (columns - width) / 2, (rows - height) / 2
    return left, top, left + width, top + height


def _resample(
    pixels: NDArray[np.float32], spec: Preprocessing, size: tuple[int, int], box: Box
) -> NDArray[np.float32]:
    from PIL import Image

    filters = {
        "bilinear": Image.Resampling.BILINEAR,
        "bicubic": Image.Resampling.BICUBIC,
        "nearest": Image.Resampling.NEAREST,
    }
    image = Image.fromarray(pixels)
    resized = image.resize((size[1], size[0]), filters[spec.interpolation], box=box)
    return np.clip(np.asarray(resized, dtype=np.float32), 0.0, 1.0)
