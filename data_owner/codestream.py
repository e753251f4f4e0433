"""What a compressed frame says about itself, read before any decoder sees it.

A decoder allocates what the frame's own header asks for, which need not be what the DICOM header
declares, and may return half a picture for half a frame. These functions let the caller refuse
both. They read headers only, those that the decoder reads, and allocate no more than the frame has.

Sources: ITU-T T.81 annex B (JPEG), T.87 annex C (JPEG-LS), T.800 annexes A and I (JPEG 2000, JP2),
DICOM PS3.5 annex G (RLE).
"""

from __future__ import annotations

import re
import struct
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

_START_OF_FRAME = frozenset(set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}) | {0xF7}
_STANDALONE = frozenset(range(0xD0, 0xDA)) | {0x01}
_END_OF_IMAGE, _START_OF_SCAN = 0xD9, 0xDA
_HUFFMAN_DCT = frozenset({0xC0, 0xC1, 0xC2})
_END_OF_SCAN = re.compile(rb"\xff[^\0\xd0-\xd7\xff]")
_RESTARTS = [bytes([0xFF, marker]) for marker in range(0xD0, 0xD8)]
_FILLER = bytes((167 * i + 181) % 255 for i in range(64))
_J2K_START = b"\xff\x4f\xff\x51"
_JP2_START = b"\0\0\0\x0cjP  \r\n\x87\n"
_MOST_BOXES = 32
_MOST_TILES = 65_535
_START_OF_TILE = b"\xff\x90\0\x0a"
_TILE_HEADER_BYTES = 14
_END = b"\xff\xd9"

MOST_SCANS = 100
"""Of a JPEG; encoders make ten, and a decoder goes over the whole picture for each."""

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
    for marker, position in _jpeg_markers(frame):
        if marker in _START_OF_FRAME:
            return _jpeg_size(frame, position)
    raise CodestreamError("it ends before the size of the picture")


def jpeg_with_more(frame: bytes) -> bytes:
    """The JPEG with further data behind each scan, for which a whole scan has no use.

    Where a scan ends early a decoder makes up the rest and says nothing; it makes up something else
    with this. Raises :class:`CodestreamError` where scans are missing, or are over ``MOST_SCANS``,
    and for other codes than Huffman's of DCT coefficients.
    """
    components: list[int] = []
    missing: set[tuple[int, int]] = set()
    parts, taken, scans = [], 0, 0
    for marker, position in _jpeg_markers(frame):
        if marker in _START_OF_FRAME:
            if marker not in _HUFFMAN_DCT:
                raise CodestreamError("it is neither baseline nor progressive with Huffman codes")
            count = _jpeg_size(frame, position).components
            components = list(frame[position + 10 : position + 10 + 3 * count : 3])
            missing = {(one, k) for one in components for k in range(64)}
        elif marker == _START_OF_SCAN:
            scans += 1
            if scans > MOST_SCANS:
                raise CodestreamError(f"it has over {MOST_SCANS} scans")
            missing -= _last_bits(frame, position)
            end = _end_of_scan(frame, position)
            parts += [frame[taken:end], _FILLER, _next_restart(frame, position, end), _FILLER]
            taken = end
    if missing or not components:
        raise CodestreamError("scans are missing")
    return b"".join([*parts, frame[taken:]])


def _jpeg_markers(frame: bytes) -> Iterator[tuple[int, int]]:
    """Each marker up to the end mark, and where it stands; the data of scans are passed over."""
    if frame[:2] != b"\xff\xd8":
        raise CodestreamError("it does not start as JPEG does")
    position = 2
    while position + 4 <= len(frame):
        marker = frame[position + 1]
        if frame[position] != 0xFF or marker == 0:
            raise CodestreamError("a marker is missing")
        if marker == 0xFF:
            position += 1
            continue
        yield marker, position
        if marker == _START_OF_SCAN:
            position = _end_of_scan(frame, position)
        elif marker == _END_OF_IMAGE:
            return
        elif marker in _STANDALONE:
            position += 2
        else:
            position += 2 + max(2, int.from_bytes(frame[position + 2 : position + 4], "big"))


def _jpeg_size(frame: bytes, position: int) -> FrameHeader:
    if position + 10 > len(frame):
        raise CodestreamError("it ends before the size of the picture")
    precision, rows, columns, components = struct.unpack_from(">BHHB", frame, position + 4)
    return FrameHeader(rows, columns, components, precision)


def _end_of_scan(frame: bytes, position: int) -> int:
    """Behind the last byte of the scan whose marker stands at ``position``."""
    start = position + 2 + int.from_bytes(frame[position + 2 : position + 4], "big")
    found = _END_OF_SCAN.search(frame, start)
    end = found.start() if found else len(frame)
    while end > start and frame[end - 1] == 0xFF:
        end -= 1
    return end


def _next_restart(frame: bytes, start: int, end: int) -> bytes:
    last = [frame.rfind(marker, start, end) for marker in _RESTARTS]
    return _RESTARTS[(last.index(max(last)) + 1) % 8 if max(last) >= 0 else 0]


def _last_bits(frame: bytes, position: int) -> set[tuple[int, int]]:
    """Coefficients of components of which this scan gives the last bit."""
    behind = position + 5 + 2 * int.from_bytes(frame[position + 4 : position + 5], "big")
    if behind + 3 > len(frame):
        raise CodestreamError("it ends inside the header of a scan")
    first, last, bits = frame[behind : behind + 3]
    if bits & 0x0F:
        return set()
    components = frame[position + 5 : behind : 2]
    return {(one, k) for one in components for k in range(first, min(last, 63) + 1)}


def jpeg2000_header(frame: bytes) -> FrameHeader:
    """Header of a JPEG 2000 codestream, bare or in JP2 boxes; raises :class:`CodestreamError`.

    Also where not every tile is there: a decoder takes memory for each, and leaves those black.
    """
    start = _codestream_in_boxes(frame) if frame.startswith(_JP2_START) else 0
    if frame[start : start + 4] != _J2K_START or start + 43 > len(frame):
        raise CodestreamError("it does not start as JPEG 2000 does")
    right, bottom, left, top, *tiling, components, depth = struct.unpack_from(
        ">8IHB", frame, start + 8
    )
    width, height, tiles_left, tiles_top = tiling
    if right <= left or bottom <= top:
        raise CodestreamError("its size is not positive")
    if not (tiles_left <= left < tiles_left + width and tiles_top <= top < tiles_top + height):
        raise CodestreamError("its first tile is empty")
    tiles = -(-(right - tiles_left) // width) * -(-(bottom - tiles_top) // height)
    if tiles > _MOST_TILES or _tiles_present(frame, start) != tiles:
        raise CodestreamError(f"not all of its {tiles} tiles are there")
    return FrameHeader(bottom - top, right - left, components, (depth & 0x7F) + 1)


def _codestream_in_boxes(frame: bytes) -> int:
    """Where it starts in a JP2 file; a signature that stands in another box is none."""
    position = len(_JP2_START)
    for _ in range(_MOST_BOXES):
        if position + 8 > len(frame):
            break
        length, kind = struct.unpack_from(">I4s", frame, position)
        if kind == b"jp2c":
            return position + (16 if length == 1 else 8)
        if length < 8:
            break
        position += length
    raise CodestreamError("its JP2 boxes are damaged")


def _tiles_present(frame: bytes, start: int) -> int:
    """Tiles of which every part is in the codestream at ``start``, as far as a part tells."""
    position = start + 2
    while frame[position : position + 2] != _START_OF_TILE[:2]:
        if frame[position : position + 1] != b"\xff" or position + 4 > len(frame):
            raise CodestreamError("its main header is damaged")
        position += 2 + max(2, int.from_bytes(frame[position + 2 : position + 4], "big"))
    found, declared = Counter[int](), Counter[int]()
    while frame[position : position + 4] == _START_OF_TILE and position + _TILE_HEADER_BYTES <= len(
        frame
    ):
        tile, length, _, parts = struct.unpack_from(">HIBB", frame, position + 4)
        found[tile] += 1
        declared[tile] = max(declared[tile], parts)
        if length < _TILE_HEADER_BYTES:
            break
        position += length
    return sum(found[tile] >= declared[tile] for tile in found)


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
