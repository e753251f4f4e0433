"""Frames that would have a decoder take too much, or make up what is not there."""

from __future__ import annotations

import struct
from collections.abc import Callable
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, get_frame
from pydicom.pixels.decoders import base
from pydicom.uid import UID, JPEG2000Lossless, JPEGBaseline8Bit, JPEGLosslessSV1

from data_owner import codestream, dicom
from data_owner.codestream import CodestreamError
from data_owner.dicom import read_dicom
from data_owner.images import read_image
from radiopaque.errors import DicomError, ImageError

RNG = np.random.default_rng(5)
NOISE = RNG.integers(60, 200, (64, 96), dtype=np.uint8)
END = b"\xff\xd9"

Packed = Callable[[bytes, UID, int], bytes]


def saved(pixels: np.ndarray, kind: str = "JPEG", **options: Any) -> bytes:
    stream = BytesIO()
    Image.fromarray(pixels).save(stream, kind, **options)
    return stream.getvalue()


@pytest.fixture
def packed(dicom_bytes) -> Packed:
    """A DICOM file that declares the shape of NOISE, or a square of that side."""

    def pack(frame: bytes, syntax: UID, side: int = 0) -> bytes:
        dataset = Dataset()
        dataset.SOPClassUID, dataset.Modality = "1.2.840.10008.5.1.4.1.1.1", "CR"
        dataset.Rows, dataset.Columns = (side, side) if side else NOISE.shape
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
        dataset.BitsAllocated = dataset.BitsStored = 8
        dataset.HighBit, dataset.PixelRepresentation = 7, 0
        dataset.PixelData = encapsulate([frame])
        dataset["PixelData"].VR = "OB"
        return dicom_bytes(dataset, syntax)

    return pack


@pytest.fixture
def undecoded(monkeypatch) -> None:
    """No decoder may be asked."""
    for where, name in ((dicom, "decode_apart"), (base.Decoder, "as_array"), (Image, "open")):
        monkeypatch.setattr(where, name, lambda *_, **__: pytest.fail("decoded"))


# --- JPEG 2000 --------------------------------------------------------------------------------


def small_jpeg2000(side: int, tile: int) -> bytes:
    """A codestream of a square, of whose tiles the first is there, and empty."""
    siz = struct.pack(">H8IH3B", 0, side, side, 0, 0, tile, tile, 0, 0, 1, 7, 1, 1)
    segments = ((b"\x51", siz), (b"\x52", b"\0\0\0\1\0\0\4\4\0\1"), (b"\x5c", b"\x40\x40"))
    head = b"".join(
        b"\xff" + marker + struct.pack(">H", 2 + len(body)) + body for marker, body in segments
    )
    return (
        b"\xff\x4f"
        + head
        + struct.pack(">2sHHIBB2sB", b"\xff\x90", 10, 0, 15, 0, 1, b"\xff\x93", 0)
        + END
    )


def box(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I4s", 8 + len(body), kind) + body


def jp2(*boxes: bytes) -> bytes:
    return b"".join([box(b"jP  ", b"\r\n\x87\n"), box(b"ftyp", b"jp2 \0\0\0\0jp2 "), *boxes])


def tiled() -> bytes:
    """Six tiles of NOISE."""
    return saved(NOISE, "JPEG2000", no_jp2=True, irreversible=False, tile_size=(32, 32))


def test_a_header_in_another_box_is_not_that_of_the_codestream(packed, undecoded) -> None:
    """30,000 x 30,000 pixels, and one of 8 x 8 where no decoder looks."""
    large = box(b"jp2c", small_jpeg2000(30_000, 30_000))
    decoy = jp2(box(b"free", small_jpeg2000(8, 8)), large)
    assert len(decoy) < 300
    with pytest.raises(DicomError, match=r"frame is \[30000, 30000, 1\]"):
        read_dicom(packed(decoy, JPEG2000Lossless, 8))
    with pytest.raises(DicomError, match="does not start as JPEG 2000 does"):
        read_dicom(packed(b"\0" * 4 + small_jpeg2000(8, 8), JPEG2000Lossless, 8))


@pytest.mark.parametrize("length", ["its own", "to the end", "in 64 bits"])
def test_the_header_in_boxes_is_that_of_the_codestream(length) -> None:
    inner = tiled()
    head = {
        "its own": struct.pack(">I4s", 8 + len(inner), b"jp2c"),
        "to the end": struct.pack(">I4s", 0, b"jp2c"),
        "in 64 bits": struct.pack(">I4sQ", 1, b"jp2c", 16 + len(inner)),
    }
    found = codestream.jpeg2000_header(jp2(box(b"jp2h", b"anything"), head[length] + inner))
    assert found == codestream.jpeg2000_header(inner) == codestream.FrameHeader(64, 96, 1, 8)


@pytest.mark.parametrize("length", [0, 1, 7, 1 << 31])
def test_boxes_that_lead_nowhere(length) -> None:
    wrong = struct.pack(">I4s", length, b"free") + bytes(64) + box(b"jp2c", tiled())
    with pytest.raises(CodestreamError, match="boxes are damaged"):
        codestream.jpeg2000_header(jp2(wrong))
    short = struct.pack(">I4s", 4, b"free") + b"jp2c" + tiled()
    with pytest.raises(CodestreamError, match="boxes are damaged"):
        codestream.jpeg2000_header(jp2(short))
    with pytest.raises(CodestreamError, match="boxes are damaged"):
        codestream.jpeg2000_header(jp2(*[box(b"free", b"")] * 40, box(b"jp2c", tiled())))


def test_a_file_with_boxes_is_read(bundled) -> None:
    assert read_image(bundled("GDCMJ2K_TextGBR.dcm")).pixels.shape == (400, 400)


def test_tiles_that_are_there_are_read(packed) -> None:
    found = read_dicom(packed(tiled(), JPEG2000Lossless)).pixels
    np.testing.assert_array_equal(found, NOISE.astype(np.float32) / np.float32(255))


def test_every_tile_must_be_there(packed, undecoded) -> None:
    """The decoder takes 10 kB for each that is declared, and leaves it black."""
    with pytest.raises(DicomError, match="not all of its 65025 tiles are there"):
        read_dicom(packed(small_jpeg2000(255, 1), JPEG2000Lossless, 255))
    with pytest.raises(DicomError, match="not all of its 121000000 tiles are there"):
        read_dicom(packed(small_jpeg2000(11_000, 1), JPEG2000Lossless, 11_000))
    whole = tiled()
    for tile in range(6):
        start = whole.index(struct.pack(">HHH", 0xFF90, 10, tile))
        (length,) = struct.unpack_from(">I", whole, start + 6)
        with pytest.raises(DicomError, match="not all of its 6 tiles are there"):
            read_dicom(packed(whole[:start] + whole[start + length :], JPEG2000Lossless))


def test_every_part_of_a_tile_must_be_there(packed, undecoded) -> None:
    frame = bytearray(tiled())
    parts = frame.rindex(b"\xff\x90") + 11
    assert frame[parts] == 1
    frame[parts] = 2
    with pytest.raises(DicomError, match="not all of its 6 tiles are there"):
        read_dicom(packed(bytes(frame), JPEG2000Lossless))


@pytest.mark.parametrize("tiling", [(0, 32, 0, 0), (32, 0, 0, 0), (8, 8, 0, 8), (8, 8, 1, 0)])
def test_a_tiling_that_begins_elsewhere(tiling) -> None:
    frame = bytearray(tiled())
    struct.pack_into(">4I", frame, 24, *tiling)
    with pytest.raises(CodestreamError, match="first tile is empty"):
        codestream.jpeg2000_header(bytes(frame))


def test_a_main_header_without_end() -> None:
    frame = tiled()
    with pytest.raises(CodestreamError, match="main header is damaged"):
        codestream.jpeg2000_header(frame[: frame.index(b"\xff\x90")])


# --- JPEG -------------------------------------------------------------------------------------

KINDS: dict[str, dict[str, Any]] = {
    "baseline": {},
    "own tables": {"optimize": True, "quality": 95},
    "progressive": {"progressive": True},
    "restarts": {"restart_marker_blocks": 4},
    "a restart a row": {"restart_marker_rows": 1},
}


def cuts(frame: bytes) -> list[int]:
    """Places in the data of the scans, and before and behind the last restart markers."""
    start = frame.index(b"\xff\xda") + 20
    places = [int(place) for place in np.linspace(start, len(frame) - 3, 25)]
    restarts = [frame.rfind(bytes([0xFF, 0xD0 + i])) for i in range(8)]
    return [*places, *(place + more for place in restarts for more in (0, 2) if place > start)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_jpeg_that_ends_early_is_refused(tmp_path, packed, kind) -> None:
    """Also where it has an end mark: its decoder would make up the rest, and say nothing."""
    whole = saved(NOISE, **KINDS[kind])
    path = tmp_path / "picture.jpeg"
    path.write_bytes(whole)
    expected = np.asarray(Image.open(BytesIO(whole)), np.float32) / np.float32(255)
    np.testing.assert_array_equal(read_image(path).pixels, expected)
    data = packed(whole, JPEGBaseline8Bit)
    np.testing.assert_array_equal(read_dicom(data).pixels, expected)
    for kept in cuts(whole):
        path.write_bytes(whole[:kept] + END)
        with pytest.raises(ImageError, match=r"ends before its last pixel|scans are missing"):
            read_image(path)
        with pytest.raises(DicomError, match=r"ends before its last pixel|scans are missing"):
            read_dicom(packed(whole[:kept] + END, JPEGBaseline8Bit))


@pytest.mark.parametrize("missing", [1, 2, 5])
def test_scans_that_are_missing(tmp_path, missing) -> None:
    whole = saved(NOISE, progressive=True)
    scans = whole.split(b"\xff\xda")
    assert len(scans) > 6
    path = tmp_path / "picture.jpeg"
    path.write_bytes(b"\xff\xda".join(scans[:-missing]) + END)
    with pytest.raises(ImageError, match="scans are missing; export the image again"):
        read_image(path)


def many_scans(count: int, pixels: NDArray[np.uint8] = NOISE) -> bytes:
    """A progressive JPEG of so many scans, the last of which comes again and again."""
    whole = saved(pixels, progressive=True)
    start = whole.rindex(b"\xff\xda")
    others = whole.count(b"\xff\xda") - 1
    return whole[:start] + whole[start:-2] * (count - others) + END


def test_the_number_of_scans_has_a_limit(tmp_path, packed, monkeypatch) -> None:
    path = tmp_path / "picture.jpeg"
    path.write_bytes(many_scans(codestream.MOST_SCANS))
    assert read_image(path).pixels.shape == NOISE.shape
    more = many_scans(codestream.MOST_SCANS + 1)
    path.write_bytes(more)
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("decoded"))
    with pytest.raises(ImageError, match="has over 100 scans; export the image again"):
        read_image(path)
    with pytest.raises(DicomError, match="has over 100 scans; export the image again"):
        read_dicom(packed(more, JPEGBaseline8Bit))


def test_scans_are_counted_where_the_decoder_looks_for_them(tmp_path) -> None:
    """It passes over FF 00, which is no marker and has no length."""
    more = many_scans(codestream.MOST_SCANS + 1, NOISE[:8, :8])
    last = more[more.rindex(b"\xff\xda") : -2]
    start, end = more.index(last), more.rindex(last)
    over = b"\xff\0" + struct.pack(">H", 2 + end - start)
    path = tmp_path / "picture.jpeg"
    path.write_bytes(more[:start] + over + more[start:])
    with pytest.raises(ImageError, match="a marker is missing"):
        read_image(path)


def test_fill_bytes_before_a_marker_are_none_of_the_scan(tmp_path) -> None:
    whole = saved(NOISE)
    path = tmp_path / "picture.jpeg"
    path.write_bytes(whole[:-2] + b"\xff\xff\xff" + END)
    expected = np.asarray(Image.open(BytesIO(whole)), np.float32) / np.float32(255)
    np.testing.assert_array_equal(read_image(path).pixels, expected)


@pytest.mark.parametrize("coding", [0xC3, 0xC5, 0xC9, 0xCA])
def test_other_codes_than_huffmans_are_refused(tmp_path, coding) -> None:
    path = tmp_path / "picture.jpeg"
    path.write_bytes(saved(NOISE).replace(b"\xff\xc0", bytes([0xFF, coding])))
    with pytest.raises(ImageError, match="neither baseline nor progressive"):
        read_image(path)


@pytest.mark.parametrize("behind", range(10))
def test_a_scan_header_that_ends(behind) -> None:
    whole = saved(NOISE)
    with pytest.raises(CodestreamError):
        codestream.jpeg_with_more(whole[: whole.index(b"\xff\xda") + behind])


@pytest.mark.parametrize("kept", [0.9, 0.5, 0.2])
def test_a_jpeg_lossless_that_ends_early_is_refused(bundled, dicom_bytes, kept) -> None:
    from pydicom import dcmread

    dataset = dcmread(bundled("SC_rgb_jpeg_gdcm.dcm"))
    frame = get_frame(dataset.PixelData, 0, number_of_frames=1)
    dataset.PixelData = encapsulate([frame[: 2 * int(kept * len(frame) / 2)] + END])
    with pytest.raises(DicomError, match="decoder of the pixel data ended over this file"):
        read_dicom(dicom_bytes(dataset, JPEGLosslessSV1))
