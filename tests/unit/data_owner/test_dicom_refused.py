"""What cannot be shown is refused: the right error, a remedy in its message, nothing else."""

from __future__ import annotations

import zlib
from io import BytesIO

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import dcmread
from pydicom.encaps import encapsulate, get_frame
from pydicom.pixels.decoders import base as decoder_base
from pydicom.uid import JPEG2000Lossless, RLELossless

from data_owner.dicom import looks_like_dicom, read_dicom
from data_owner.images import read_image
from radiopaque.errors import (
    DicomError,
    ImageError,
    MultiFrameError,
    NoPixelDataError,
    NotDicomError,
    TruncatedPixelDataError,
    UnsupportedTransferSyntaxError,
)

PICTURE = np.arange(600, dtype=np.uint16).reshape(20, 30)


def edited(data: bytes, dicom_bytes, **elements) -> bytes:
    """The same file with other element values; ``None`` removes one."""
    dataset = dcmread(BytesIO(data))
    syntax = dataset.file_meta.TransferSyntaxUID
    for keyword, value in elements.items():
        if value is None:
            delattr(dataset, keyword)
        else:
            setattr(dataset, keyword, value)
    return dicom_bytes(dataset, syntax)


def with_syntax(data: bytes, uid: str) -> bytes:
    """The same bytes under another transfer syntax of the same length."""
    assert data.count(b"1.2.840.10008.1.2.1\0") == 1
    padded = uid.encode().ljust(20, b"\0")
    assert len(padded) == 20
    return data.replace(b"1.2.840.10008.1.2.1\0", padded)


def test_text_is_not_dicom() -> None:
    with pytest.raises(NotDicomError, match="export"):
        read_dicom(b"Dear colleague, please find attached the chest X-ray of today.")


def test_text_named_dcm_is_not_dicom(tmp_path) -> None:
    (tmp_path / "x.dcm").write_text("hello " * 100)
    with pytest.raises(NotDicomError, match=r"x\.dcm"):
        read_image(tmp_path / "x.dcm")


@pytest.mark.parametrize("rest", [b"", b"\0" * 50, b"\xff" * 50])
def test_a_mark_without_elements_is_not_dicom(rest) -> None:
    with pytest.raises(DicomError):
        read_dicom(b"\0" * 128 + b"DICM" + rest)


def test_preamble_is_not_needed(make_dicom) -> None:
    data = make_dicom(PICTURE)
    expected = read_dicom(data).pixels
    np.testing.assert_array_equal(read_dicom(data[132:]).pixels, expected)


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2", "1.2.840.10008.1.2.1"])
def test_neither_preamble_nor_file_meta_is_needed(make_dicom, syntax) -> None:
    data = make_dicom(PICTURE, syntax=syntax)
    start = data.index(b"\x08\x00\x16\x00", 132)
    bare = data[start:]
    assert looks_like_dicom(bare)
    np.testing.assert_array_equal(read_dicom(bare).pixels, read_dicom(data).pixels)


@pytest.mark.parametrize("name", ["reportsi.dcm", "rtplan.dcm", "waveform_ecg.dcm", "test-SR.dcm"])
def test_objects_without_pixels(bundled, name) -> None:
    with pytest.raises(NoPixelDataError, match="without pixel data"):
        read_image(bundled(name))


def test_image_without_pixels(make_dicom, dicom_bytes) -> None:
    with pytest.raises(NoPixelDataError):
        read_dicom(edited(make_dicom(PICTURE), dicom_bytes, PixelData=None))


@pytest.mark.parametrize("missing", [1, 600, 1199])
def test_file_cut_short(make_dicom, missing) -> None:
    with pytest.raises(TruncatedPixelDataError, match="of the 1200 bytes"):
        read_dicom(make_dicom(PICTURE)[:-missing])


def test_pixel_data_shorter_than_declared(make_dicom) -> None:
    with pytest.raises(TruncatedPixelDataError, match="1200 of the 1320 bytes"):
        read_dicom(make_dicom(PICTURE, Rows=22))


def test_truncated_file_of_pydicom(bundled) -> None:
    with pytest.raises(TruncatedPixelDataError):
        read_image(bundled("MR_truncated.dcm"))


@pytest.mark.parametrize("frames", [2, 30])
def test_several_frames(make_dicom, frames) -> None:
    with pytest.raises(MultiFrameError, match=f"{frames} frames"):
        read_dicom(make_dicom(PICTURE, NumberOfFrames=frames))


@pytest.mark.parametrize("name", ["SC_rgb_rle_2frame.dcm", "examples_ybr_color.dcm", "rtdose.dcm"])
def test_several_frames_of_pydicoms_files(bundled, name) -> None:
    with pytest.raises(MultiFrameError):
        read_image(bundled(name))


def test_several_frames_that_are_not_declared(make_dicom) -> None:
    with pytest.raises(MultiFrameError, match="1200 bytes of pixels, 600 are one frame"):
        read_dicom(make_dicom(PICTURE, Rows=10))


def test_several_compressed_frames_that_are_not_declared(bundled, dicom_bytes) -> None:
    dataset = dcmread(bundled("MR_small_RLE.dcm"))
    frame = get_frame(dataset.PixelData, 0, number_of_frames=1)
    dataset.PixelData = encapsulate([frame, frame], has_bot=True)
    with pytest.raises(MultiFrameError):
        read_dicom(dicom_bytes(dataset, RLELossless))


def test_enhanced_objects(bundled) -> None:
    with pytest.raises(MultiFrameError, match="enhanced"):
        read_image(bundled("liver_1frame.dcm"))


@pytest.mark.parametrize(
    ("uid", "named"),
    [
        ("1.2.840.10008.1.2.1.99", "Deflated Explicit VR Little Endian"),
        ("1.2.840.10008.1.2.4.100", "MPEG2"),
        ("1.2.840.10008.1.2.4.102", "MPEG-4 AVC"),
    ],
)
def test_unsupported_transfer_syntaxes_are_named(make_dicom, dicom_bytes, uid, named) -> None:
    dataset = dcmread(BytesIO(make_dicom(PICTURE)))
    if uid != "1.2.840.10008.1.2.1.99":
        dataset.PixelData = encapsulate([b"\xff\xd8\xff\xd9"])
    with pytest.raises(UnsupportedTransferSyntaxError) as caught:
        read_dicom(dicom_bytes(dataset, uid))
    assert named in str(caught.value)
    assert uid in str(caught.value)
    assert "pip install 'radiopaque[dicom]'" in str(caught.value)


@pytest.mark.parametrize("uid", ["1.2.3.4.5", "John Doe", "1.2..3"])
def test_unregistered_transfer_syntaxes(make_dicom, uid) -> None:
    with pytest.raises(UnsupportedTransferSyntaxError) as caught:
        read_dicom(with_syntax(make_dicom(PICTURE), uid))
    assert "John" not in str(caught.value)


def test_deflated_files_are_not_inflated(make_dicom, monkeypatch) -> None:
    """A megabyte of deflated zeros would become a gigabyte inside pydicom."""

    def inflate(*_):
        pytest.fail("the file was inflated")

    data = make_dicom(PICTURE, syntax="1.2.840.10008.1.2.1.99")
    monkeypatch.setattr(zlib, "decompress", inflate)
    with pytest.raises(UnsupportedTransferSyntaxError):
        read_dicom(data)


def test_missing_decoder(bundled, monkeypatch) -> None:
    decoder = decoder_base.get_decoder(JPEG2000Lossless)
    monkeypatch.setattr(decoder, "_available", {})
    with pytest.raises(UnsupportedTransferSyntaxError) as caught:
        read_image(bundled("MR_small_jp2klossless.dcm"))
    assert "JPEG 2000 Image Compression (Lossless Only)" in str(caught.value)
    assert "pip install 'radiopaque[dicom]'" in str(caught.value)


def test_another_decoder_than_the_one_that_is_used(bundled, monkeypatch) -> None:
    """Pillow, which is always there, counts as a decoder of JPEG 2000 for pydicom."""
    decoder = decoder_base.get_decoder(JPEG2000Lossless)
    monkeypatch.setattr(decoder, "_available", {"pillow": decoder._available["pillow"]})
    with pytest.raises(UnsupportedTransferSyntaxError) as caught:
        read_image(bundled("MR_small_jp2klossless.dcm"))
    assert "pip install 'radiopaque[dicom]'" in str(caught.value)


def test_twelve_bit_jpeg_has_no_decoder(bundled) -> None:
    with pytest.raises(UnsupportedTransferSyntaxError, match="12 bits"):
        read_image(bundled("JPEG-lossy.dcm"))


@pytest.mark.parametrize(
    "elements",
    [
        {"Rows": None},
        {"Columns": None},
        {"Rows": 0},
        {"BitsAllocated": None},
        {"BitsAllocated": 32, "BitsStored": 32, "HighBit": 31},
        {"BitsAllocated": 12, "BitsStored": 12, "HighBit": 11},
        {"BitsStored": 17, "HighBit": 16},
        {"BitsStored": 0},
        {"BitsStored": 12, "HighBit": 15},
        {"PixelRepresentation": None},
        {"PixelRepresentation": 2},
        {"PhotometricInterpretation": None},
        {"PhotometricInterpretation": "PALETTE COLOR"},
        {"SamplesPerPixel": 3},
        {"SamplesPerPixel": None},
        {"NumberOfFrames": "0"},
        {"Rows": [20, 20]},
    ],
)
def test_pixel_formats_that_cannot_be_grey(make_dicom, elements) -> None:
    with pytest.raises(ImageError) as caught:
        read_dicom(make_dicom(PICTURE, **elements))
    assert type(caught.value) in (ImageError, DicomError)


@pytest.mark.parametrize(
    "name",
    ["examples_palette.dcm", "examples_rgb_color.dcm", "SC_rgb_rle_16bit.dcm", "ExplVR_BigEnd.dcm"],
)
def test_colour_other_than_8_bit_secondary_captures(bundled, name) -> None:
    with pytest.raises(DicomError, match="not a grey radiograph"):
        read_image(bundled(name))


def test_size_is_checked_before_decoding(make_dicom, monkeypatch) -> None:
    monkeypatch.setattr("data_owner.dicom.get_decoder", lambda _: pytest.fail("decoded"))
    data = make_dicom(PICTURE, Rows=16000, Columns=16000, syntax="1.2.840.10008.1.2")
    monkeypatch.setattr("data_owner.dicom._check_syntax", lambda _: None)
    with pytest.raises(ImageError, match="16000 x 16000, more than the limit of 134217728 pixels"):
        read_dicom(data)


def test_pixel_limit_is_inclusive(make_dicom) -> None:
    data = make_dicom(PICTURE)
    assert read_dicom(data, max_pixels=600).pixels.shape == (20, 30)
    with pytest.raises(ImageError, match="limit of 599"):
        read_dicom(data, max_pixels=599)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_damaged_files_raise_image_errors_only(make_dicom, data) -> None:
    damaged = bytearray(make_dicom(PICTURE, WindowCenter=9, WindowWidth=4, PixelPaddingValue=3))
    for _ in range(data.draw(st.integers(1, 8))):
        position = data.draw(st.integers(132, 620))
        damaged[position] = data.draw(st.integers(0, 255))
    kept = data.draw(st.integers(0, len(damaged)))
    try:
        pixels = read_dicom(bytes(damaged[:kept])).pixels
    except ImageError:
        return
    assert pixels.min() >= 0
    assert pixels.max() <= 1
