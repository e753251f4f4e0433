"""PNG and JPEG, and everything that is neither."""

from __future__ import annotations

import os
import struct
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data_owner.images import MAX_FILE_BYTES, GreyImage, ImageMeta, check_size, read_image
from radiopaque.errors import ImageError, NotAnImageError
from radiopaque.graph.plan import MAX_PIXELS, MAX_SIDE

RNG = np.random.default_rng(11)
GREY8 = RNG.integers(0, 256, (9, 14), dtype=np.uint8)
GREY16 = RNG.integers(0, 65536, (9, 14), dtype=np.uint16)
COLOUR = RNG.integers(0, 256, (9, 14, 3), dtype=np.uint8)
SAMPLE = next((Path(__file__).parents[3] / "samples" / "labelled").rglob("*.jpeg"))


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


@pytest.fixture
def read(tmp_path):
    def read_bytes(data: bytes, name: str = "picture", **limits: int) -> GreyImage:
        (tmp_path / name).write_bytes(data)
        return read_image(tmp_path / name, **limits)

    return read_bytes


def luma(colour: np.ndarray) -> np.ndarray:
    return colour @ np.array([0.299, 0.587, 0.114]) / 255


def test_png_of_8_bits(read) -> None:
    image = read(saved(Image.fromarray(GREY8), "PNG"))
    np.testing.assert_array_equal(image.pixels, GREY8.astype(np.float32) / np.float32(255))
    assert image.meta == ImageMeta(source="png")


def test_png_of_16_bits(read) -> None:
    image = read(saved(Image.fromarray(GREY16), "PNG"))
    np.testing.assert_array_equal(image.pixels, GREY16.astype(np.float32) / np.float32(65535))


def test_png_of_1_bit(read) -> None:
    image = read(saved(Image.fromarray(GREY8 > 99), "PNG"))
    np.testing.assert_array_equal(image.pixels, GREY8 > 99)


def test_png_in_colour(read) -> None:
    image = read(saved(Image.fromarray(COLOUR), "PNG"))
    np.testing.assert_allclose(image.pixels, luma(COLOUR), rtol=0, atol=0.51 / 255)


def test_png_with_a_palette(read) -> None:
    paletted = Image.fromarray(COLOUR).quantize(8)
    expected = luma(np.asarray(paletted.convert("RGB")))
    image = read(saved(paletted, "PNG"))
    np.testing.assert_allclose(image.pixels, expected, rtol=0, atol=0.51 / 255)


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_opaque_alpha_is_ignored(read, mode) -> None:
    image = read(saved(Image.fromarray(GREY8).convert(mode), "PNG"))
    np.testing.assert_array_equal(image.pixels, GREY8.astype(np.float32) / np.float32(255))


def test_transparent_pixels_are_refused(read) -> None:
    image = Image.fromarray(GREY8).convert("LA")
    image.putpixel((3, 3), (9, 254))
    with pytest.raises(ImageError, match="transparent"):
        read(saved(image, "PNG"))


def test_transparent_colour_is_refused(read) -> None:
    level = int(GREY8[0, 0])
    with pytest.raises(ImageError, match="transparent"):
        read(saved(Image.fromarray(GREY8), "PNG", transparency=level))


def test_transparent_grey_of_16_bits_is_refused(read) -> None:
    with pytest.raises(ImageError, match="stored as I;16"):
        read(saved(Image.fromarray(GREY16), "PNG", transparency=7))


def test_animated_png_is_refused(read) -> None:
    frames = [Image.fromarray(GREY8), Image.fromarray(255 - GREY8)]
    with pytest.raises(ImageError, match="animated"):
        read(saved(frames[0], "PNG", save_all=True, append_images=frames[1:]))


def test_jpeg_is_what_training_reads(read) -> None:
    with Image.open(SAMPLE) as opened:
        expected = np.asarray(opened.convert("L"), dtype=np.float32) / np.float32(255)
    image = read_image(SAMPLE)
    np.testing.assert_array_equal(image.pixels, expected)
    assert image.meta == ImageMeta(source="jpeg")


def test_the_name_does_not_matter(read) -> None:
    assert read(SAMPLE.read_bytes(), "x.dcm").meta.source == "jpeg"


def test_exif_orientation_is_obeyed(read) -> None:
    wide = Image.fromarray(np.tile(np.linspace(0, 255, 32).astype(np.uint8), (16, 1)))
    exif = Image.Exif()
    exif[0x0112] = 6
    upright = read(saved(wide, "JPEG", quality=95)).pixels
    turned = read(saved(wide, "JPEG", quality=95, exif=exif)).pixels
    np.testing.assert_array_equal(turned, np.rot90(upright, -1))


def test_cmyk_jpeg_is_refused(read) -> None:
    with pytest.raises(ImageError, match="stored as CMYK"):
        read(saved(Image.fromarray(COLOUR).convert("CMYK"), "JPEG"))


@pytest.mark.parametrize("kind", ["GIF", "BMP", "TIFF", "WEBP"])
def test_other_formats_are_not_read(read, kind) -> None:
    with pytest.raises(NotAnImageError, match="neither DICOM, PNG nor JPEG"):
        read(saved(Image.fromarray(GREY8), kind))


@pytest.mark.parametrize("data", [b"", b"hello", b"\0" * 200, b"\x89PNG", b"%PDF-1.7" * 9])
def test_files_that_are_no_images(read, data) -> None:
    with pytest.raises(NotAnImageError):
        read(data)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_every_cut_is_noticed(read, kind) -> None:
    data = saved(Image.fromarray(np.tile(GREY8, (8, 8))), kind)
    for kept in (8, 20, 60, len(data) // 2, len(data) - 60):
        with pytest.raises(ImageError):
            read(data[:kept])


def test_huge_png_is_refused_before_decoding(read, monkeypatch) -> None:
    """A few bytes that declare 16000 x 16000 pixels."""
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("opened"))
    header = struct.pack(">IIBBBBB", 16000, 16000, 8, 0, 0, 0, 0)
    chunk = b"IHDR" + header
    data = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk
    data += struct.pack(">I", zlib.crc32(chunk))
    with pytest.raises(ImageError, match="16000 x 16000, more than the limit of 134217728 pixels"):
        read(data)


def test_huge_jpeg_is_refused_before_decoding(read, monkeypatch) -> None:
    data = bytearray(saved(Image.fromarray(GREY8), "JPEG"))
    start = data.index(b"\xff\xc0")
    data[start + 5 : start + 9] = struct.pack(">HH", 16000, 16000)
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("opened"))
    with pytest.raises(ImageError, match="16000 x 16000, more than the limit of 134217728 pixels"):
        read(bytes(data))


@pytest.mark.parametrize("shape", [(1, MAX_SIDE), (MAX_SIDE, 1)])
def test_a_side_has_a_limit_of_its_own(read, shape) -> None:
    assert read(saved(Image.fromarray(np.zeros(shape, np.uint8)), "PNG")).pixels.shape == shape
    longer = np.zeros((shape[0] + 1, shape[1] + 1), np.uint8)
    with pytest.raises(ImageError, match="limit of 16384 pixels a side; send a single radiograph"):
        read(saved(Image.fromarray(longer), "PNG"))


@pytest.mark.parametrize("shape", [(5000, 6000), (6931, 5431), (12000, 10000), (10000, 12000)])
def test_mammograms_and_scans_of_films_are_within_the_limits(shape: tuple[int, int]) -> None:
    rows, columns = shape
    check_size(rows, columns, MAX_PIXELS)
    assert 2 * rows * columns < MAX_FILE_BYTES


def test_a_large_picture_is_no_bomb(read, monkeypatch) -> None:
    """Pillow warns of more pixels than this, though not twice as many, and pytest minds."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 9 * 14 - 1)
    for kind in ("PNG", "JPEG"):
        assert read(saved(Image.fromarray(GREY8), kind)).pixels.shape == (9, 14)


def test_limits_are_inclusive(read) -> None:
    data = saved(Image.fromarray(GREY8), "PNG")
    assert read(data, max_bytes=len(data), max_pixels=9 * 14).pixels.shape == (9, 14)
    with pytest.raises(ImageError, match="limit of 125 pixels"):
        read(data, max_pixels=125)
    with pytest.raises(ImageError, match="bytes"):
        read(data, max_bytes=len(data) - 1)


def test_missing_file(tmp_path) -> None:
    with pytest.raises(ImageError, match=r"nowhere\.dcm: cannot be read: No such file"):
        read_image(tmp_path / "nowhere.dcm")


def test_folders_and_pipes_are_refused(tmp_path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(ImageError, match="not a regular file"):
            read_image(path)


def test_messages_name_the_file_without_its_folder(tmp_path) -> None:
    folder = tmp_path / "Zebrafinch Anna"
    folder.mkdir()
    (folder / "a.dcm").write_bytes(b"x" * 300)
    with pytest.raises(ImageError, match=r"a\.dcm") as caught:
        read_image(folder / "a.dcm")
    assert "Zebrafinch" not in str(caught.value)


@pytest.mark.parametrize(
    "pixels",
    [np.zeros((2, 2)), np.zeros((2, 2, 1), np.float32), np.zeros((0, 4), np.float32)],
)
def test_pictures_have_one_form(pixels) -> None:
    with pytest.raises(ImageError, match="read_image"):
        GreyImage(pixels, ImageMeta("png"))


@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf, -1e-6, 1.00001])
def test_a_picture_is_numbers_from_0_to_1(odd) -> None:
    GreyImage(np.array([[0.0, 1.0]], np.float32), ImageMeta("png"))
    with pytest.raises(ImageError, match=r"a number in 0\.\.1; export the image again"):
        GreyImage(np.array([[0.5, odd]], np.float32), ImageMeta("png"))


@settings(max_examples=200, deadline=None)
@given(kind=st.sampled_from(["PNG", "JPEG"]), data=st.data())
def test_damaged_files_raise_image_errors_only(tmp_path_factory, kind, data) -> None:
    damaged = bytearray(saved(Image.fromarray(GREY8), kind))
    for _ in range(data.draw(st.integers(1, 6))):
        damaged[data.draw(st.integers(3, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "damaged"
    path.write_bytes(damaged)
    try:
        pixels = read_image(path).pixels
    except ImageError:
        return
    assert pixels.min() >= 0
    assert pixels.max() <= 1
