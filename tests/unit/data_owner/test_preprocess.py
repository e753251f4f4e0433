"""The network's input is what training fed to the network."""

from __future__ import annotations

from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from data_owner.images import GreyImage, ImageMeta, read_image
from data_owner.preprocess import picture_png, preprocess
from radiopaque.errors import ImageError, PlanError, TensorError
from radiopaque.graph.plan import MAX_SIDE, Preprocessing

SAMPLES = sorted((Path(__file__).parents[3] / "samples" / "labelled").rglob("*.jpeg"))
SPEC = Preprocessing(
    3, 224, 224, "stretch", "bilinear", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
)
PLAIN = Preprocessing(1, 4, 4, "stretch", "bilinear", (0.0,), (1.0,))


def picture(pixels: np.ndarray) -> GreyImage:
    return GreyImage(np.asarray(pixels, dtype=np.float32), ImageMeta("png"))


@pytest.mark.parametrize("path", SAMPLES[::4], ids=lambda path: path.stem)
def test_a_jpeg_of_the_right_size_is_what_training_saw(path) -> None:
    with Image.open(path) as image:
        assert image.size == (224, 224)
        grey = np.asarray(image.convert("L"), dtype=np.float32) / 255
    expected = np.stack(
        [(grey - np.float32(m)) / np.float32(s) for m, s in zip(SPEC.mean, SPEC.std, strict=True)]
    )
    actual = preprocess(read_image(path), SPEC)
    assert actual.dtype == np.float32
    assert actual.shape == (3, 224, 224)
    assert actual.flags.c_contiguous
    np.testing.assert_array_equal(actual, expected)


def test_there_are_samples() -> None:
    assert len(SAMPLES) >= 24


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "nearest"])
@pytest.mark.parametrize("resize", ["stretch", "fit", "crop"])
def test_the_right_size_is_not_resampled(resize, interpolation) -> None:
    pixels = np.random.default_rng(1).random((4, 4), dtype=np.float32)
    spec = replace(PLAIN, resize=resize, interpolation=interpolation)
    np.testing.assert_array_equal(preprocess(picture(pixels), spec)[0], pixels)


def test_halving_is_antialiased() -> None:
    """A triangle of width four over samples at -1.5, -0.5, 0.5, 1.5: weights 1, 3, 3, 1."""
    row = np.array([0, 1, 0, 0, 0, 0, 1, 1], dtype=np.float32)
    spec = replace(PLAIN, height=8)
    result = preprocess(picture(np.tile(row, (8, 1))), spec)[0]
    expected = [3 / 7, 1 / 8, 1 / 8, 6 / 7]
    np.testing.assert_allclose(result, np.tile(expected, (8, 1)), atol=1e-6)


def test_nearest_takes_pixels_as_they_are() -> None:
    pixels = np.arange(64, dtype=np.float32).reshape(8, 8) / 64
    spec = replace(PLAIN, interpolation="nearest")
    np.testing.assert_array_equal(preprocess(picture(pixels), spec)[0], pixels[1::2, 1::2])


def test_bicubic_overshoot_is_clipped() -> None:
    pixels = np.zeros((4, 8), dtype=np.float32)
    pixels[:, 4:] = 1
    spec = replace(PLAIN, height=4, width=32, interpolation="bicubic")
    unclipped = Image.fromarray(pixels).resize((32, 4), Image.Resampling.BICUBIC)
    assert np.asarray(unclipped).min() < 0
    result = preprocess(picture(pixels), spec)[0]
    np.testing.assert_array_equal(result, np.clip(np.asarray(unclipped), 0, 1))


def test_stretch_ignores_the_aspect_ratio() -> None:
    pixels = np.zeros((10, 40), dtype=np.float32)
    pixels[:, 20:] = 1
    result = preprocess(picture(pixels), replace(PLAIN, interpolation="nearest"))[0]
    np.testing.assert_array_equal(result, np.tile([0, 0, 1, 1], (4, 1)))


@pytest.mark.parametrize("turned", [False, True])
def test_fit_keeps_the_aspect_ratio_and_adds_black(turned) -> None:
    pixels = np.ones((6, 12), dtype=np.float32)
    expected = np.zeros((12, 12))
    expected[3:9] = 1
    spec = replace(PLAIN, height=12, width=12, resize="fit")
    result = preprocess(picture(pixels.T if turned else pixels), spec)[0]
    np.testing.assert_array_equal(result, expected.T if turned else expected)


def test_black_bars_are_black_before_normalisation() -> None:
    spec = replace(PLAIN, height=8, width=4, resize="fit", mean=(0.5,), std=(0.25,))
    result = preprocess(picture(np.ones((4, 4))), spec)[0]
    np.testing.assert_array_equal(result[:, 0], [-2, -2, 2, 2, 2, 2, -2, -2])


@pytest.mark.parametrize("turned", [False, True])
def test_crop_keeps_the_centre(turned) -> None:
    pixels = np.zeros((4, 12), dtype=np.float32)
    pixels[:, 4:8] = np.linspace(0.1, 0.9, 4)
    spec = replace(PLAIN, resize="crop")
    result = preprocess(picture(pixels.T if turned else pixels), spec)[0]
    expected = pixels[:, 4:8]
    np.testing.assert_allclose(result, expected.T if turned else expected, atol=1e-7)


def test_crop_equals_resize_then_crop() -> None:
    """Shortest side to 8, then the centre 8 x 8."""
    pixels = np.random.default_rng(3).random((32, 64), dtype=np.float32)
    whole = np.asarray(Image.fromarray(pixels).resize((16, 8), Image.Resampling.BILINEAR))
    spec = replace(PLAIN, height=8, width=8, resize="crop")
    np.testing.assert_allclose(preprocess(picture(pixels), spec)[0], whole[:, 4:12], atol=1e-6)


def test_grey_is_repeated_over_channels_each_with_its_own_normalisation() -> None:
    spec = replace(PLAIN, channels=2, mean=(0.0, 0.5), std=(1.0, 0.5))
    result = preprocess(picture(np.full((4, 4), 0.75)), spec)
    np.testing.assert_array_equal(result[:, 0, 0], [0.75, 0.5])


@pytest.mark.parametrize(
    "wrong",
    [
        {"resize": "squash"},
        {"interpolation": "lanczos"},
        {"height": 0},
        {"width": -1},
        {"channels": 0, "mean": (), "std": ()},
        {"mean": (0.1, 0.2)},
        {"std": ()},
        {"std": (0.0,)},
        {"std": (-1.0,)},
        {"mean": (float("nan"),)},
        {"std": (float("inf"),)},
    ],
    ids=str,
)
def test_specifications_that_cannot_be_carried_out(wrong) -> None:
    with pytest.raises(PlanError, match="ask the vendor"):
        preprocess(picture(np.zeros((4, 4))), replace(PLAIN, **wrong))


@pytest.mark.parametrize(
    "wrong",
    [
        {"width": MAX_SIDE + 1},
        {"height": MAX_SIDE + 1},
        {"width": 1 << 26, "height": 1},
        {"height": MAX_SIDE, "width": MAX_SIDE // 2 + 1},
        {"height": MAX_SIDE, "width": MAX_SIDE // 4 + 1, "channels": 2},
    ],
    ids=str,
)
def test_no_input_is_made_that_is_larger_than_a_picture(wrong: dict[str, Any]) -> None:
    """Resampling would raise MemoryError, or take GiB."""
    ones = (1.0,) * wrong.get("channels", 1)
    with pytest.raises(PlanError, match="over 16384 pixels a side or 134217728 values; ask the"):
        preprocess(picture(np.zeros((4, 4))), replace(PLAIN, mean=ones, std=ones, **wrong))


@pytest.mark.parametrize("shape", [(1, 1 << 26), (MAX_SIDE + 1, 1), (MAX_SIDE, MAX_SIDE // 2 + 1)])
def test_no_picture_is_resampled_that_is_larger_than_one_that_is_read(
    shape: tuple[int, int],
) -> None:
    pixels = np.broadcast_to(np.float32(0), shape)
    with pytest.raises(ImageError, match=r"more than the limit of .* send a single radiograph"):
        preprocess(GreyImage(pixels, ImageMeta("png")), PLAIN)


@pytest.mark.parametrize("side", [(1, MAX_SIDE), (MAX_SIDE, 1)])
def test_the_longest_sides_are_resampled(side: tuple[int, int]) -> None:
    spec = replace(PLAIN, height=side[0], width=side[1])
    for shape in ((1, MAX_SIDE), (MAX_SIDE, 1), (2, 2)):
        assert preprocess(picture(np.ones(shape)), spec).shape == (1, *side)


def test_report_picture_is_what_the_network_sees() -> None:
    image = read_image(SAMPLES[0])
    png = picture_png(preprocess(image, SPEC), SPEC)
    with Image.open(BytesIO(png)) as opened:
        assert opened.info == {}
        assert opened.mode == "L"
        np.testing.assert_array_equal(np.asarray(opened), np.rint(image.pixels * 255))
    kinds = []
    position = 8
    while position < len(png):
        kinds.append(png[position + 4 : position + 8])
        position += 12 + int.from_bytes(png[position : position + 4], "big")
    assert set(kinds) == {b"IHDR", b"IDAT", b"IEND"}


def test_report_picture_of_another_tensor() -> None:
    with pytest.raises(TensorError, match=r"\[3, 4, 4\].*\[1, 4, 4\]"):
        picture_png(np.zeros((3, 4, 4), np.float32), PLAIN)


@settings(max_examples=150, deadline=None)
@given(
    pixels=hnp.arrays(
        np.float32,
        hnp.array_shapes(min_dims=2, max_dims=2, max_side=40),
        elements=st.floats(0, 1, width=32),
    ),
    height=st.integers(1, 20),
    width=st.integers(1, 20),
    resize=st.sampled_from(["stretch", "fit", "crop"]),
    interpolation=st.sampled_from(["bilinear", "bicubic", "nearest"]),
)
def test_any_picture_becomes_a_tensor_in_range(
    pixels, height, width, resize, interpolation
) -> None:
    spec = Preprocessing(2, height, width, resize, interpolation, (0.5, 0.0), (0.5, 1.0))
    result = preprocess(picture(pixels), spec)
    assert result.shape == (2, height, width)
    assert np.isfinite(result).all()
    assert result[0].min() >= -1
    assert result.max() <= 1
    assert result[1].min() >= 0
