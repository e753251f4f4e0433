"""Every compressed transfer syntax against the same picture stored plainly."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import suppress
from io import BytesIO

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, get_frame
from pydicom.pixels.decoders.base import Decoder
from pydicom.uid import JPEG2000Lossless, JPEGBaseline8Bit, JPEGLosslessSV1, JPEGLSLossless

from data_owner import apart, codestream
from data_owner.dicom import read_dicom
from data_owner.images import read_image
from radiopaque.errors import DicomError, TruncatedPixelDataError

LOSSLESS = ("MR_small_jp2klossless.dcm", "MR_small_jpeg_ls_lossless.dcm", "MR_small_RLE.dcm")
COMPRESSED = (*LOSSLESS, "SC_rgb_jpeg_dcmtk.dcm", "SC_rgb_jpeg_gdcm.dcm", "693_J2KI.dcm")


def frame_of(path) -> tuple[Dataset, bytes]:
    dataset = dcmread(path)
    return dataset, get_frame(dataset.PixelData, 0, number_of_frames=1)


def with_frame(dataset, frame: bytes, dicom_bytes) -> bytes:
    dataset.PixelData = encapsulate([frame + b"\0" * (len(frame) % 2)])
    return dicom_bytes(dataset, dataset.file_meta.TransferSyntaxUID)


@pytest.mark.parametrize(
    "name", [*LOSSLESS, "MR_small_bigendian.dcm", "MR_small_implicit.dcm", "MR_small_padded.dcm"]
)
def test_lossless_encodings_agree_exactly(bundled, name) -> None:
    plain = read_image(bundled("MR_small.dcm"))
    np.testing.assert_array_equal(read_image(bundled(name)).pixels, plain.pixels)


def test_the_plain_picture_is_what_the_standard_says(bundled) -> None:
    """MR_small: 16 bits signed, window 600 / 1600 (LINEAR)."""
    dataset = dcmread(bundled("MR_small.dcm"))
    assert (dataset.WindowCenter, dataset.WindowWidth) == (600, 1600)
    stored = np.frombuffer(dataset.PixelData, "<i2").reshape(64, 64).astype(float)
    expected = np.clip((stored - 599.5) / 1599 + 0.5, 0, 1)
    actual = read_image(bundled("MR_small.dcm")).pixels
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "exact"),
    [
        ("SC_rgb_rle.dcm", True),
        ("SC_rgb_jpeg_gdcm.dcm", True),
        ("SC_rgb_gdcm_KY.dcm", False),
        ("SC_rgb_jpeg_dcmtk.dcm", False),
        ("SC_rgb_jpeg_lossy_gdcm.dcm", False),
        ("SC_rgb_dcmtk_+eb+cy+s4.dcm", False),
    ],
)
def test_colour_test_chart(bundled, name, exact) -> None:
    """The chart's rows are eight known colours, two of them primary, in bands of ten."""
    red, green, blue = np.eye(3) * 255
    pale = [np.where(colour == 0, 128, colour) for colour in (red, green, blue)]
    greys = [np.full(3, level) for level in (0, 64, 192, 255)]
    colours = [red, pale[0], green, pale[1], blue, pale[2], *greys]
    luma = np.array(colours) @ np.array([0.299, 0.587, 0.114]) / 255
    grey = read_image(bundled(name)).pixels
    tolerance = 0.51 / 255 if exact else 3 / 255
    np.testing.assert_allclose(grey[5::10], np.repeat(luma[:, None], 100, 1), atol=tolerance)


def test_jpeg_lossless_agrees_with_rle_exactly(bundled) -> None:
    assert dcmread(bundled("SC_rgb_jpeg_gdcm.dcm")).file_meta.TransferSyntaxUID == JPEGLosslessSV1
    one, other = (read_image(bundled(f"SC_rgb_{kind}.dcm")) for kind in ("jpeg_gdcm", "rle"))
    np.testing.assert_array_equal(one.pixels, other.pixels)


@pytest.mark.parametrize(("changes", "seed"), [(1, 77), (8, 1)])
def test_a_damaged_jpeg_lossless_frame_ends_its_decoder_alone(
    bundled, monkeypatch, changes, seed
) -> None:
    """GDCM 3.0 is killed over these, by SIGABRT and SIGSEGV; pytest must not be."""
    asked = []
    ask = apart._ask

    def noted(told: memoryview, size: int) -> bytearray:
        asked.append(size)
        return ask(told, size)

    monkeypatch.setattr(apart, "_ask", noted)
    damaged = bytearray(bundled("SC_rgb_jpeg_gdcm.dcm").read_bytes())
    frame = damaged.index(b"\xff\xd8\xff")
    generator = np.random.default_rng(seed)
    for place in frame + 2 + generator.integers(0, 600, changes):
        damaged[place] = generator.integers(256)
    with suppress(DicomError):  # a later GDCM may read them
        read_dicom(bytes(damaged))
    assert len(asked) == 1


@pytest.mark.parametrize(
    "name", ["SC_rgb_jpeg_gdcm.dcm", "MR_small_jpeg_ls_lossless.dcm", "MR_small_jp2klossless.dcm"]
)
def test_a_decoder_that_is_killed_is_a_damaged_file(bundled, monkeypatch, name) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    says = "decoder of the pixel data ended over this file; export the image again"
    with pytest.raises(DicomError, match=says):
        read_image(bundled(name))


def test_a_decoder_that_is_too_slow_is_ended(bundled, monkeypatch) -> None:
    monkeypatch.setattr(apart, "_SECONDS", 0.001)
    with pytest.raises(DicomError, match=r"took over 0.001 s to decode; export the image again"):
        read_image(bundled("SC_rgb_jpeg_gdcm.dcm"))


LIMITS = """
import resource, sys
from data_owner import apart

allowed = int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_CPU, (allowed, allowed))

def told(*_, **__):
    kinds = resource.RLIMIT_CORE, resource.RLIMIT_AS, resource.RLIMIT_CPU
    print([limit for kind in kinds for limit in resource.getrlimit(kind)])
    raise SystemExit

apart.dcmread = told
apart.main()
"""


@pytest.mark.parametrize(("seconds", "left"), [(7, 7), (3600, 60)])
def test_the_decoder_is_limited_also_where_the_machine_allows_less(seconds, left) -> None:
    told = subprocess.run(
        [sys.executable, "-c", LIMITS, str(2 << 30), str(seconds)],
        capture_output=True,
        check=True,
        text=True,
    ).stdout
    assert json.loads(told) == [0, 0, 2 << 30, 2 << 30, left, left]


def test_the_decoder_is_told_nothing_of_the_patient(bundled, monkeypatch) -> None:
    sent = []
    ask = apart._ask

    def noted(told: memoryview, size: int) -> bytearray:
        sent.append(bytes(told))
        return ask(told, size)

    monkeypatch.setattr(apart, "_ask", noted)
    data = bundled("SC_rgb_jpeg_gdcm.dcm").read_bytes()
    read_dicom(data)
    (told,) = sent
    elements = {element.keyword for element in dcmread(BytesIO(told), force=True)}
    assert elements <= set(apart._DESCRIBING)
    assert str(dcmread(BytesIO(data)).StudyInstanceUID).encode() not in told


def test_jpeg_baseline_is_what_pillow_reads(bundled) -> None:
    from PIL import Image

    dataset, frame = frame_of(bundled("SC_rgb_jpeg_dcmtk.dcm"))
    assert dataset.file_meta.TransferSyntaxUID == JPEGBaseline8Bit
    with Image.open(BytesIO(frame)) as image:
        expected = np.asarray(image.convert("RGB").convert("L")) / 255
    actual = read_image(bundled("SC_rgb_jpeg_dcmtk.dcm")).pixels
    np.testing.assert_allclose(actual, expected, rtol=0, atol=2 / 255)


def test_jpeg_baseline_is_decoded_by_pillow_alone(bundled, monkeypatch) -> None:
    """GDCM, which pydicom would ask first, aborts over some damaged frames."""
    asked = []
    decode = Decoder.as_array

    def noted(self: Decoder, *arguments, **options):
        asked.append(options["decoding_plugin"])
        return decode(self, *arguments, **options)

    monkeypatch.setattr(Decoder, "as_array", noted)
    read_image(bundled("SC_rgb_jpeg_dcmtk.dcm"))
    assert asked == ["pillow"]


def test_jpeg2000_signedness_mismatch_is_corrected(bundled) -> None:
    """The codestream is unsigned, the header signed; air would else be white."""
    image = read_image(bundled("J2K_pixelrep_mismatch.dcm"))
    corners = image.pixels[[0, 0, -1, -1], [0, -1, 0, -1]]
    np.testing.assert_array_equal(corners, 0)
    assert image.pixels.max() == 1


@pytest.mark.parametrize("name", ["JPEGLSNearLossless_08.dcm", "JPEGLSNearLossless_16.dcm"])
def test_jpeg_ls_near_lossless_is_read(bundled, name) -> None:
    dataset = dcmread(bundled(name))
    image = read_image(bundled(name))
    assert image.pixels.shape == (dataset.Rows, dataset.Columns)
    assert (image.pixels.min(), image.pixels.max()) == (0, 1)


@pytest.mark.parametrize("name", COMPRESSED)
@pytest.mark.parametrize("kept", [0.95, 0.5])
def test_truncated_frames(bundled, dicom_bytes, name, kept) -> None:
    dataset, frame = frame_of(bundled(name))
    with pytest.raises(TruncatedPixelDataError):
        read_dicom(with_frame(dataset, frame[: int(kept * len(frame))], dicom_bytes))


@pytest.mark.parametrize("name", COMPRESSED)
def test_empty_and_foreign_frames(bundled, dicom_bytes, name) -> None:
    for frame in (b"\0\0", b"\xff\xd8\xff\xd9", b"RIFF" * 40):
        dataset = dcmread(bundled(name))
        with pytest.raises(DicomError):
            read_dicom(with_frame(dataset, frame, dicom_bytes))


@pytest.mark.parametrize("name", COMPRESSED)
def test_another_size_in_the_frame_never_reaches_a_decoder(bundled, monkeypatch, name) -> None:
    dataset = dcmread(bundled(name))
    rows = dataset.Rows
    data = bytearray(bundled(name).read_bytes())
    element = b"\x28\x00\x10\x00US\x02\x00" + rows.to_bytes(2, "little")
    start = data.index(element)
    data[start + 8 : start + 10] = (rows - 1).to_bytes(2, "little")

    def decode(*_, **__):
        pytest.fail("decoded")

    if "RLE" in name:
        # Segments with one row too many are within what encoders add, and are cut off.
        assert read_dicom(bytes(data)).pixels.shape[0] == rows - 1
        return
    monkeypatch.setattr("pydicom.pixels.decoders.base.Decoder.as_array", decode)
    with pytest.raises(DicomError, match="compressed frame is"):
        read_dicom(bytes(data))


def test_rle_bomb_is_refused_without_expanding_it(bundled, dicom_bytes, monkeypatch) -> None:
    dataset, frame = frame_of(bundled("MR_small_RLE.dcm"))
    run = b"\x81\x00" * 50_000
    header = b"".join(n.to_bytes(4, "little") for n in (2, 64, 64 + len(run)))
    bomb = header.ljust(64, b"\0") + run + frame[64:]
    monkeypatch.setattr(
        "pydicom.pixels.decoders.base.Decoder.as_array", lambda *_, **__: pytest.fail("decoded")
    )
    with pytest.raises(DicomError, match="more than 4096 pixels"):
        read_dicom(with_frame(dataset, bomb, dicom_bytes))


@pytest.mark.parametrize(
    ("name", "syntax"),
    [
        ("MR_small_jpeg_ls_lossless.dcm", JPEGLSLossless),
        ("MR_small_jp2klossless.dcm", JPEG2000Lossless),
    ],
)
def test_headers_are_read_as_they_are(bundled, name, syntax) -> None:
    dataset, frame = frame_of(bundled(name))
    assert dataset.file_meta.TransferSyntaxUID == syntax
    reader = codestream.jpeg_header if syntax == JPEGLSLossless else codestream.jpeg2000_header
    assert reader(frame) == codestream.FrameHeader(64, 64, 1, 16)


def test_rle_lengths_are_those_of_the_decoded_segments(bundled) -> None:
    _, frame = frame_of(bundled("MR_small_RLE.dcm"))
    assert codestream.rle_segment_lengths(frame, 5000) == [4096, 4096]


def test_real_radiograph_in_four_encodings(shared_dicom) -> None:
    plain = read_image(shared_dicom / "RG1_UNCR.dcm")
    assert plain.pixels.shape == (1955, 1841)
    assert (plain.meta.modality, plain.meta.body_part, plain.meta.view) == ("CR", "CHEST", "PA")
    lossless = read_image(shared_dicom / "RG1_J2KR.dcm")
    np.testing.assert_array_equal(lossless.pixels, plain.pixels)
    near = read_image(shared_dicom / "RG1_JLSN.dcm")
    assert np.abs(near.pixels - plain.pixels).max() <= 0.001
    lossy = read_image(shared_dicom / "RG1_J2KI.dcm")
    assert np.abs(lossy.pixels - plain.pixels).max() <= 0.02
    noise = np.sqrt(np.mean((lossy.pixels - plain.pixels) ** 2))
    assert -20 * np.log10(noise) >= 50  # dB, beyond which nobody sees a difference


def test_real_radiograph_is_windowed_and_inverted(shared_dicom) -> None:
    dataset = dcmread(shared_dicom / "RG1_UNCR.dcm")
    stored = np.frombuffer(dataset.PixelData, "<u2").reshape(1955, 1841).astype(float)
    centre, width = float(dataset.WindowCenter), float(dataset.WindowWidth)
    expected = 1 - np.clip((stored - (centre - 0.5)) / (width - 1) + 0.5, 0, 1)
    actual = read_image(shared_dicom / "RG1_UNCR.dcm").pixels
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-6)
