"""Reading an image file as the grey picture that a radiologist would see.

:func:`read_image` looks at the contents, not at the file name: DICOM (see :mod:`.dicom`), PNG
with 8 or 16 bits, JPEG. Sizes are checked on the declared size before anything is decoded.

Nothing here keeps a patient's name, number or dates: :class:`ImageMeta` has the five facts that the
model card speaks about and no others.
"""

from __future__ import annotations

import os
import stat
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import blake2b
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from data_owner.codestream import CodestreamError, jpeg_header, jpeg_with_more
from radiopaque.errors import ImageError, NotAnImageError, NotDicomError
from radiopaque.graph.plan import MAX_PIXELS, MAX_SIDE

if TYPE_CHECKING:
    from PIL import Image

MAX_FILE_BYTES = 256 * 1024 * 1024
"""Largest file that is read; two bytes for each pixel of the largest scan of a film are 240 MB."""

Source = Literal["dicom", "png", "jpeg"]

_PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
_JPEG_MAGIC = b"\xff\xd8\xff"
_LUMA_MODES = frozenset({"1", "L", "P", "RGB"})
_ALPHA_MODES = frozenset({"LA", "PA", "RGBA"})


@dataclass(frozen=True)
class ImageMeta:
    """What the file says about the picture; ``None`` where it says nothing (or nothing usable).

    ``age_years`` is the patient's age in years, in completed years from 2 on. ``grey_scale`` tells
    how stored values became grey: "window", "VOI LUT", "full range", "minimum to maximum".
    """

    source: Source
    modality: str | None = None
    body_part: str | None = None
    view: str | None = None
    age_years: float | None = field(default=None, repr=False)
    photometric: str | None = None
    grey_scale: str = "full range"


@dataclass(frozen=True, eq=False)
class GreyImage:
    """A picture: float32 [h, w] in 0..1, 0 black (air), 1 white (bone); read-only."""

    pixels: NDArray[np.float32] = field(repr=False)
    meta: ImageMeta = field(repr=False)

    def __post_init__(self) -> None:
        if self.pixels.ndim != 2 or self.pixels.dtype != np.float32 or self.pixels.size == 0:
            raise ImageError(
                f"a picture is float32 [h, w], not {self.pixels.dtype} {list(self.pixels.shape)}; "
                "use data_owner.images.read_image"
            )
        if not (self.pixels.min() >= 0.0 and self.pixels.max() <= 1.0):
            raise ImageError(
                "the grey of the picture is not everywhere a number in 0..1; "
                "export the image again, with the grey scale of the archive"
            )
        self.pixels.setflags(write=False)

    def __repr__(self) -> str:
        height, width = self.pixels.shape
        return f"GreyImage([{height}, {width}])"


def read_image(
    path: str | Path, *, max_bytes: int = MAX_FILE_BYTES, max_pixels: int = MAX_PIXELS
) -> GreyImage:
    """Read a DICOM, PNG or JPEG file.

    Grey is what a viewer would show: for DICOM after the modality and VOI look-ups, for colour JPEG
    and PNG the luma of ITU-R BT.601. EXIF orientation is obeyed.

    Raises a :class:`radiopaque.errors.ImageError`: ``NotAnImageError`` for other formats,
    ``DicomError`` and its children for a DICOM file that cannot be used. Messages name the file
    without its folder and nothing of what is inside a patient field.
    """
    file = Path(path)
    try:
        return _decode(_load(file, max_bytes), file.suffix.lower() == ".dcm", max_pixels)
    except ImageError as error:
        raise type(error)(f"{file.name}: {error}") from None


def check_size(rows: int, columns: int, max_pixels: int) -> None:
    """Refuse an empty picture, or one with more than ``max_pixels`` or ``plan.MAX_SIDE``.

    Before it is decoded, and before it is resampled.
    """
    if rows < 1 or columns < 1:
        raise ImageError(f"the picture is declared as {rows} x {columns}; it has no pixels")
    if rows * columns > max_pixels:
        raise ImageError(
            f"the picture is declared as {rows} x {columns}, more than the limit of {max_pixels} "
            "pixels; send a single radiograph"
        )
    if max(rows, columns) > MAX_SIDE:
        raise ImageError(
            f"the picture is declared as {rows} x {columns}, more than the limit of {MAX_SIDE} "
            "pixels a side; send a single radiograph"
        )


def _load(file: Path, max_bytes: int) -> bytes:
    try:
        if not stat.S_ISREG(file.stat().st_mode):
            raise ImageError("not a regular file; give the path of one image")
        with file.open("rb") as stream:
            # a buffer of the limit's size would be taken for every small file, too
            data = stream.read(min(os.fstat(stream.fileno()).st_size, max_bytes) + 1)
    except OSError as error:
        raise ImageError(f"cannot be read: {error.strerror or 'unknown reason'}") from None
    if len(data) > max_bytes:
        raise ImageError(f"larger than the limit of {max_bytes} bytes; send a single radiograph")
    return data


def _decode(data: bytes, expect_dicom: bool, max_pixels: int) -> GreyImage:
    if data.startswith(_PNG_MAGIC):
        return _read_png(data, max_pixels)
    if data.startswith(_JPEG_MAGIC):
        return _read_jpeg(data, max_pixels)
    # pydicom takes a quarter of a second to import and is not needed for the other formats.
    from data_owner.dicom import looks_like_dicom, read_dicom

    if looks_like_dicom(data):
        return read_dicom(data, max_pixels=max_pixels)
    if expect_dicom:
        raise NotDicomError(
            "not a DICOM file in spite of its name: neither the DICM mark nor a DICOM element was "
            "found; export the image again"
        )
    raise NotAnImageError("neither DICOM, PNG nor JPEG by its contents; convert it to one of these")


def _read_png(data: bytes, max_pixels: int) -> GreyImage:
    if len(data) < 24:
        raise ImageError("the PNG file is cut short; export the image again")
    columns, rows = struct.unpack_from(">II", data, 16)
    check_size(rows, columns, max_pixels)
    return _read_with_pillow(data, "PNG", max_pixels)


def _read_jpeg(data: bytes, max_pixels: int) -> GreyImage:
    with _refusing("JPEG"):
        header = jpeg_header(data)
    check_size(header.rows, header.columns, max_pixels)
    with _refusing("JPEG"):
        if ends_early(data):
            raise ImageError("the JPEG file ends before its last pixel; export the image again")
    return _read_with_pillow(data, "JPEG", max_pixels)


def ends_early(frame: bytes) -> bool:
    """Whether a JPEG has an end mark before its last pixel; its decoder makes up the rest.

    Raises CodestreamError, before anything is decoded, where scans are missing or too many, and
    whatever Pillow does.
    """
    more = jpeg_with_more(frame)
    return _digest_of_pixels(frame) != _digest_of_pixels(more)


def _digest_of_pixels(frame: bytes) -> bytes:
    with _opened(frame, "JPEG") as image:
        return blake2b(image.tobytes()).digest()


def _read_with_pillow(data: bytes, kind: Literal["PNG", "JPEG"], max_pixels: int) -> GreyImage:
    from PIL import ImageOps

    with _refusing(kind), _opened(data, kind) as opened:
        check_size(opened.height, opened.width, max_pixels)
        if kind == "PNG" and getattr(opened, "n_frames", 1) > 1:
            raise ImageError("an animated PNG; send one picture")
        image = ImageOps.exif_transpose(opened)
        pixels = _grey(image)
    return GreyImage(pixels, ImageMeta(source="png" if kind == "PNG" else "jpeg"))


def _opened(data: bytes, kind: Literal["PNG", "JPEG"]) -> Image.Image:
    from PIL import Image

    # Pillow warns from 89 million pixels on; how many are too many is said by check_size
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)
    return Image.open(BytesIO(data), formats=[kind])


@contextmanager
def _refusing(kind: str) -> Iterator[None]:
    """Turn what a damaged file makes of its readers into an ``ImageError``."""
    try:
        yield
    except ImageError:
        raise
    except CodestreamError as error:
        raise ImageError(f"the {kind} file is damaged, {error}; export the image again") from None
    except Exception as error:  # Pillow raises almost any type on damaged files
        raise ImageError(
            f"the {kind} file is damaged ({type(error).__name__}); export the image again"
        ) from None


def _grey(image: Image.Image) -> NDArray[np.float32]:
    mode = image.mode
    if mode.startswith("I;16") and "transparency" not in image.info:
        return np.asarray(image).astype(np.float32) / np.float32(65535)
    if mode in _ALPHA_MODES or (mode in _LUMA_MODES and "transparency" in image.info):
        image = image.convert("RGBA")
        if image.getchannel("A").getextrema() != (255, 255):
            raise ImageError("has transparent pixels, whose grey is undefined; flatten it first")
        image = image.convert("RGB")
    elif mode not in _LUMA_MODES:
        raise ImageError(f"stored as {mode}, not as grey or RGB; convert it to grey")
    return np.asarray(image.convert("L"), dtype=np.float32) / np.float32(255)
