"""What a compressed frame says about itself, read before any decoder sees it.

A decoder allocates what the frame's own header asks for, which need not be what the DICOM header
declares, and may return half a picture for half a frame. These functions let the caller refuse
both. They read headers only and allocate nothing that depends on the contents.

Sources: ITU-T T.81 annex B (JPEG), T.87 annex C (JPEG-LS), T.800 annex A (JPEG 2000), DICOM PS3.5
annex G (RLE).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from itertools import pairwise

_START_OF_FRAME = frozenset(set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}) | {0xF7}
_STANDALONE = frozenset(range(0xD0, 0xD9)) | {0x01}
_J2K_START = b"\xff\x4f\xff\x51"
_J2K_BOXES = 1 << 16
_END = b"\xff\xd9"

RLE_HEADER_BYTES = 64
RLE_PADDING_BYTES = 256
"""Bytes after the last row that encoders are seen to add to a segment."""


class CodestreamError(Exception):
    """The frame's header cannot be read; private to ``data_owner``, which names it for the user."""


@dataclass(frozen=True)
class FrameHeader:
    """Size [rows, columns, components] and bits per sample as the frame declares them."""

    rows: int
    columns: int
    components: int
    precision: int


def jpeg_header(frame: bytes) -> FrameHeader:
    """Header of a JPEG, JPEG Lossless or JPEG-LS frame; raises :class:`CodestreamError`."""
    if frame[:2] != b"\xff\xd8":
        raise CodestreamError("it does not start as JPEG does")
    position = 2
    while position + 4 <= len(frame):
        if frame[position] != 0xFF:
            raise CodestreamError("a marker is missing")
        marker = frame[position + 1]
        if marker == 0xFF:
            position += 1
            continue
        if marker in _STANDALONE:
            position += 2
            continue
        if marker in _START_OF_FRAME:
            if position + 10 > len(frame):
                break
            precision, rows, columns, components = struct.unpack_from(">BHHB", frame, position + 4)
            return FrameHeader(rows, columns, components, precision)
        position += 2 + max(2, int.from_bytes(frame[position + 2 : position + 4], "big"))
    raise CodestreamError("it ends before the size of the picture")


def jpeg2000_header(frame: bytes) -> FrameHeader:
    """Header of a JPEG 2000 codestream, bare or in JP2 boxes; raises :class:`CodestreamError`."""
    start = frame.find(_J2K_START, 0, _J2K_BOXES)
    if start < 0 or start + 43 > len(frame):
        raise CodestreamError("it does not start as JPEG 2000 does")
    right, bottom, left, top = struct.unpack_from(">4I", frame, start + 8)
    components, depth = struct.unpack_from(">HB", frame, start + 40)
    if right <= left or bottom <= top:
        raise CodestreamError("its size is not positive")
    return FrameHeader(bottom - top, right - left, components, (depth & 0x7F) + 1)


def is_complete(frame: bytes) -> bool:
    """Whether a JPEG, JPEG-LS or JPEG 2000 frame has its end marker, padding bytes apart."""
    return _END in frame.rstrip(b"\0")[-4:]


def rle_segment_lengths(frame: bytes, limit: int) -> list[int]:
    """Decoded bytes of each RLE segment, counted without decoding; stops a segment past ``limit``.

    Raises :class:`CodestreamError` where the segment table is not in order.
    """
    if len(frame) < RLE_HEADER_BYTES:
        raise CodestreamError("it ends inside the segment table")
    count, *offsets = struct.unpack_from("<16I", frame)
    if not 1 <= count <= 15:
        raise CodestreamError(f"it has {count} segments, not 1 to 15")
    bounds = [*offsets[:count], len(frame)]
    if bounds[0] != RLE_HEADER_BYTES or any(a > b for a, b in pairwise(bounds)):
        raise CodestreamError("its segments are not in order")
    return [_packed_length(frame, a, b, limit) for a, b in pairwise(bounds)]


def _packed_length(frame: bytes, position: int, end: int, limit: int) -> int:
    length = 0
    while position < end and length <= limit:
        control = frame[position]
        if control < 128:
            length += min(control + 1, end - position - 1)
            position += control + 2
        else:
            if control > 128 and position + 1 < end:
                length += 257 - control
            position += 1 if control == 128 else 2
    return length
