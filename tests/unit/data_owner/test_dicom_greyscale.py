"""Stored values to grey: every rule of the standard against a few lines of numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.pixels.processing import apply_windowing
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from data_owner.dicom import read_dicom
from radiopaque.errors import DicomError, ImageError

NATIVE = (ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian)


def ramp(dtype: str, low: int, high: int) -> NDArray[np.integer]:
    """All values from low to high, or 4096 of them, as [h, w] with an odd number of rows."""
    values = np.unique(np.linspace(low, high, min(high - low + 1, 4095)).round())
    return np.resize(values, (63, 65)).astype(dtype)


def linear(x: NDArray[Any], centre: float, width: float) -> NDArray[Any]:
    """PS3.3 C.11.2.1.2.1, written case by case as the standard does, for an output of 0..1."""
    result = np.empty(x.shape)
    for index, value in np.ndenumerate(x):
        if value <= centre - 0.5 - (width - 1) / 2:
            result[index] = 0.0
        elif value > centre - 0.5 + (width - 1) / 2:
            result[index] = 1.0
        else:
            result[index] = (value - (centre - 0.5)) / (width - 1) + 0.5
    return result


def linear_exact(x: NDArray[Any], centre: float, width: float) -> NDArray[Any]:
    return np.clip((x - centre) / width + 0.5, 0, 1)


def sigmoid(x: NDArray[Any], centre: float, width: float) -> NDArray[Any]:
    with np.errstate(over="ignore"):
        return 1 / (1 + np.exp(-4 * (x - centre) / width))


def lut_item(first: int, bits: int, table: NDArray[Any], signed: bool = False) -> Dataset:
    item = Dataset()
    item.add_new("LUTDescriptor", "SS" if signed else "US", [len(table) & 0xFFFF, first, bits])
    item.add_new("LUTData", "OW", table.astype("<u2").tobytes())
    return item


def close(actual: NDArray[Any], expected: NDArray[Any]) -> None:
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-6)


def test_eight_bits_without_window_are_exactly_a_jpegs_grey(make_dicom) -> None:
    stored = np.arange(256, dtype=np.uint8).reshape(16, 16)[2:, 3:]
    image = read_dicom(make_dicom(stored))
    np.testing.assert_array_equal(image.pixels, stored.astype(np.float32) / np.float32(255))
    assert image.meta.grey_scale == "full range"


def test_signed_eight_bits_keep_their_full_range(make_dicom) -> None:
    stored = ramp("int8", -128, 127)
    close(read_dicom(make_dicom(stored)).pixels, (stored.astype(float) + 128) / 255)


@pytest.mark.parametrize("syntax", NATIVE)
@pytest.mark.parametrize(
    ("dtype", "bits", "low", "high"),
    [
        ("uint16", 16, 0, 65535),
        ("uint16", 12, 17, 3001),
        ("uint16", 10, 3, 1000),
        ("int16", 16, -32768, 32767),
        ("int16", 12, -2048, 2047),
        ("int16", 13, -1024, 3071),
    ],
)
def test_more_bits_without_window_spread_over_what_is_there(
    make_dicom, syntax, dtype, bits, low, high
) -> None:
    stored = ramp(dtype, low, high)
    image = read_dicom(make_dicom(stored, bits=bits, syntax=syntax))
    close(image.pixels, (stored.astype(float) - low) / (high - low))
    assert image.meta.grey_scale == "minimum to maximum"


@pytest.mark.parametrize("dtype", ["uint16", "int16"])
def test_bits_above_those_stored_are_ignored(make_dicom, dtype) -> None:
    """Old files keep overlays there (PS3.5 section 8.1.1)."""
    stored = ramp(dtype, 0, 2000)
    dirty = stored | np.array(0x3000, dtype=dtype)
    clean = read_dicom(make_dicom(stored, bits=12)).pixels
    np.testing.assert_array_equal(read_dicom(make_dicom(dirty, bits=12)).pixels, clean)
    assert clean.max() == 1


def test_one_single_value_is_black(make_dicom) -> None:
    image = read_dicom(make_dicom(np.full((4, 5), 700, dtype=np.uint16)))
    np.testing.assert_array_equal(image.pixels, np.zeros((4, 5)))


@pytest.mark.parametrize(
    ("function", "reference"),
    [(None, linear), ("LINEAR", linear), ("LINEAR_EXACT", linear_exact), ("SIGMOID", sigmoid)],
)
@pytest.mark.parametrize(("centre", "width"), [(2048, 4096), (600, 351.5), (1000.25, 2), (-40, 80)])
def test_window_functions(make_dicom, function, reference, centre, width) -> None:
    stored = ramp("int16", -100, 4000)
    image = read_dicom(
        make_dicom(stored, bits=13, WindowCenter=centre, WindowWidth=width, VOILUTFunction=function)
    )
    close(image.pixels, reference(stored.astype(float), centre, width))
    assert image.meta.grey_scale == "window"


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
def test_window_functions_agree_with_pydicom(make_dicom, function) -> None:
    stored = ramp("uint16", 0, 4095)
    elements = {"WindowCenter": 1500, "WindowWidth": 900, "VOILUTFunction": function}
    dataset = Dataset()
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.BitsStored, dataset.PixelRepresentation = 12, 0
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    image = read_dicom(make_dicom(stored, bits=12, **elements))
    close(image.pixels, apply_windowing(stored, dataset) / 4095)


def test_linear_window_of_width_one_is_a_threshold(make_dicom) -> None:
    stored = ramp("uint16", 0, 100)
    image = read_dicom(make_dicom(stored, WindowCenter=50, WindowWidth=1))
    np.testing.assert_array_equal(image.pixels, (stored > 49.5).astype(float))


def test_the_first_of_several_windows_counts(make_dicom) -> None:
    stored = ramp("uint16", 0, 4000)
    image = read_dicom(make_dicom(stored, WindowCenter=[500, 9], WindowWidth=[300, 1]))
    close(image.pixels, linear(stored.astype(float), 500, 300))


def test_window_applies_to_rescaled_values(make_dicom) -> None:
    stored = ramp("uint16", 0, 4000)
    image = read_dicom(
        make_dicom(
            stored, RescaleSlope="2.5", RescaleIntercept=-1024, WindowCenter=300, WindowWidth=1500
        )
    )
    close(image.pixels, linear(2.5 * stored.astype(float) - 1024, 300, 1500))


def test_negative_slope_turns_the_picture(make_dicom) -> None:
    stored = ramp("uint16", 0, 1000)
    image = read_dicom(make_dicom(stored, bits=12, RescaleSlope=-1, RescaleIntercept=1000))
    close(image.pixels, 1 - stored / 1000)


def test_rescaled_eight_bits_spread_over_what_is_there(make_dicom) -> None:
    stored = ramp("uint8", 10, 60)
    image = read_dicom(make_dicom(stored, RescaleSlope=4, RescaleIntercept=0))
    close(image.pixels, (stored - 10.0) / 50)


@pytest.mark.parametrize("width", [900, 4096])
def test_monochrome1_is_inverted_after_the_window(make_dicom, width) -> None:
    stored = ramp("uint16", 0, 4095)
    elements = {"bits": 12, "WindowCenter": 1500, "WindowWidth": width}
    white = read_dicom(make_dicom(stored, photometric="MONOCHROME1", **elements)).pixels
    close(white, 1 - linear(stored.astype(float), 1500, width))


def test_monochrome1_without_window(make_dicom) -> None:
    stored = ramp("uint8", 0, 255)
    close(read_dicom(make_dicom(stored, photometric="MONOCHROME1")).pixels, 1 - stored / 255)


@pytest.mark.parametrize("syntax", NATIVE[:2])
@pytest.mark.parametrize("signed_vr", [False, True])
def test_voi_lut(make_dicom, syntax, signed_vr) -> None:
    stored = ramp("uint16", 0, 1023)
    table = (np.arange(300) ** 2 % 1024).astype(np.uint16)
    item = lut_item(400, 10, table, signed_vr)
    image = read_dicom(make_dicom(stored, bits=10, syntax=syntax, VOILUTSequence=[item]))
    index = np.clip(stored.astype(int) - 400, 0, 299)
    close(image.pixels, table[index] / 1023)
    assert image.meta.grey_scale == "VOI LUT"


@pytest.mark.parametrize("first_vr", ["US", "SS"])
def test_voi_lut_of_signed_values_starts_below_zero(make_dicom, first_vr) -> None:
    stored = ramp("int16", -500, 500)
    table = np.arange(0, 4001, 10, dtype=np.uint16)
    item = lut_item(-200 if first_vr == "SS" else 65536 - 200, 12, table, first_vr == "SS")
    image = read_dicom(make_dicom(stored, VOILUTSequence=[item]))
    close(image.pixels, table[np.clip(stored.astype(int) + 200, 0, 400)] / 4095)


def test_voi_lut_over_65535_of_unsigned_values_starts_above_32767(make_dicom) -> None:
    stored = ramp("uint16", 30000, 65535)
    table = np.arange(1000, dtype=np.uint16)
    image = read_dicom(make_dicom(stored, VOILUTSequence=[lut_item(40000, 10, table)]))
    close(image.pixels, table[np.clip(stored.astype(int) - 40000, 0, 999)] / 1023)


def test_voi_lut_is_preferred_to_a_window(make_dicom) -> None:
    stored = ramp("uint16", 0, 255)
    item = lut_item(0, 16, np.full(256, 13107, dtype=np.uint16))
    image = read_dicom(make_dicom(stored, VOILUTSequence=[item], WindowCenter=9, WindowWidth=4))
    close(image.pixels, np.full(stored.shape, 0.2))


def test_voi_lut_with_two_entries_a_word(make_dicom) -> None:
    stored = ramp("uint16", 0, 255)
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [256, 0, 8])
    item.add_new("LUTData", "OW", np.arange(256, dtype=np.uint8)[::-1].tobytes())
    close(read_dicom(make_dicom(stored, VOILUTSequence=[item])).pixels, (255 - stored) / 255)


def test_modality_lut_comes_before_the_window(make_dicom) -> None:
    stored = ramp("uint16", 0, 999)
    table = np.linspace(60000, 0, 800).astype(np.uint16)
    image = read_dicom(
        make_dicom(
            stored,
            bits=12,
            ModalityLUTSequence=[lut_item(100, 16, table)],
            WindowCenter=30000,
            WindowWidth=20000,
        )
    )
    values = table[np.clip(stored.astype(int) - 100, 0, 799)].astype(float)
    close(image.pixels, linear(values, 30000, 20000))


def test_padding_is_black_and_does_not_widen_the_range(make_dicom) -> None:
    stored = ramp("int16", -200, 800)
    stored[:5] = -2000
    image = read_dicom(make_dicom(stored, PixelPaddingValue=-2000))
    expected = (stored + 200.0) / 1000
    expected[:5] = 0
    close(image.pixels, expected)


def test_padding_range_stays_black_in_monochrome1(make_dicom) -> None:
    stored = ramp("uint16", 100, 900)
    stored[:2], stored[2:4] = 4000, 4090
    image = read_dicom(
        make_dicom(
            stored,
            bits=12,
            photometric="MONOCHROME1",
            PixelPaddingValue=4095,
            PixelPaddingRangeLimit=4000,
        )
    )
    expected = 1 - (stored - 100.0) / 800
    expected[:4] = 0
    close(image.pixels, expected)


@pytest.mark.parametrize("windowed", [False, True])
def test_bright_padding_is_black_too(make_dicom, windowed) -> None:
    stored = ramp("uint16", 100, 900)
    stored[60:] = 4095
    window = {"WindowCenter": 500.5, "WindowWidth": 801} if windowed else {}
    image = read_dicom(make_dicom(stored, bits=12, PixelPaddingValue=4095, **window))
    expected = (stored - 100.0) / 800
    expected[60:] = 0
    close(image.pixels, expected)


def test_padding_of_signed_pixels_may_be_stored_unsigned(make_dicom) -> None:
    stored = ramp("int16", -200, 800)
    stored[:5] = -2000
    data = make_dicom(stored, PixelPaddingValue=-2000)
    element = b"\x28\x00\x20\x01SS"
    assert data.count(element) == 1
    unsigned = data.replace(element, element[:4] + b"US")
    np.testing.assert_array_equal(read_dicom(unsigned).pixels, read_dicom(data).pixels)
    assert read_dicom(data).pixels[10:].max() == 1


def test_nothing_but_padding_is_black(make_dicom) -> None:
    stored = np.full((3, 3), 7, dtype=np.uint16)
    assert read_dicom(make_dicom(stored, PixelPaddingValue=7)).pixels.max() == 0


@pytest.mark.parametrize("syntax", NATIVE)
def test_colour_of_a_secondary_capture_becomes_luma(make_dicom, syntax) -> None:
    rng = np.random.default_rng(5)
    stored = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
    data = make_dicom(
        stored, photometric="RGB", SOPClassUID="1.2.840.10008.5.1.4.1.1.7", syntax=syntax
    )
    exact = stored @ np.array([0.299, 0.587, 0.114]) / 255
    np.testing.assert_allclose(read_dicom(data).pixels, exact, rtol=0, atol=0.51 / 255)


@pytest.mark.parametrize(
    "elements",
    [
        {"WindowCenter": 5, "WindowWidth": 0},
        {"WindowCenter": 5, "WindowWidth": -3},
        {"WindowCenter": 5, "WindowWidth": 0, "VOILUTFunction": "SIGMOID"},
        {"WindowCenter": 5, "WindowWidth": 4, "VOILUTFunction": "GAMMA"},
        {"RescaleSlope": 0, "RescaleIntercept": 1},
        {"VOILUTSequence": [lut_item(0, 7, np.zeros(4))]},
        {"VOILUTSequence": [lut_item(0, 10, np.full(4, 2000))]},
        {"VOILUTSequence": [Dataset()]},
    ],
)
def test_unusable_grey_scale_elements_are_refused(make_dicom, elements) -> None:
    with pytest.raises(DicomError, match="export"):
        read_dicom(make_dicom(ramp("uint16", 0, 100), **elements))


def test_lut_with_missing_entries_is_refused(make_dicom) -> None:
    item = lut_item(0, 12, np.arange(50))
    item.LUTDescriptor = [400, 0, 12]
    with pytest.raises(DicomError, match="50 of the 400 entries"):
        read_dicom(make_dicom(ramp("uint16", 0, 100), VOILUTSequence=[item]))


numbers = st.floats(-1e6, 1e6, allow_nan=False).map(lambda v: float(f"{v:.6g}"))
pictures = st.sampled_from(["uint8", "int8", "uint16", "int16"]).flatmap(
    lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=2, max_dims=2, max_side=6))
)


@settings(max_examples=150, deadline=None)
@given(
    stored=pictures,
    photometric=st.sampled_from(["MONOCHROME1", "MONOCHROME2"]),
    slope=st.none() | numbers.filter(bool),
    window=st.none() | st.tuples(numbers, st.floats(1, 1e6).map(lambda v: float(f"{v:.6g}"))),
    function=st.sampled_from([None, "LINEAR", "LINEAR_EXACT", "SIGMOID"]),
    padding=st.booleans(),
)
def test_grey_is_always_finite_and_within_0_and_1(
    make_dicom, stored, photometric, slope, window, function, padding
) -> None:
    elements: dict[str, object] = {"VOILUTFunction": function}
    if slope is not None:
        elements |= {"RescaleSlope": slope, "RescaleIntercept": -slope}
    if window is not None:
        elements |= {"WindowCenter": window[0], "WindowWidth": window[1]}
    if padding:
        elements["PixelPaddingValue"] = int(stored.flat[0])
    pixels = read_dicom(make_dicom(stored, photometric=photometric, **elements)).pixels
    assert pixels.shape == stored.shape
    assert pixels.dtype == np.float32
    assert np.isfinite(pixels).all()
    assert pixels.min() >= 0
    assert pixels.max() <= 1


@pytest.mark.parametrize("intercept", ["0", "1e308", "-1e308"])
@pytest.mark.parametrize("slope", ["1e308", "-1e308"])
def test_rescaling_that_leaves_no_numbers(make_dicom, slope, intercept) -> None:
    """An ImageError, over which a folder goes on."""
    stored = np.arange(16, dtype=np.uint16).reshape(4, 4)
    data = make_dicom(stored, RescaleSlope=slope, RescaleIntercept=intercept)
    with pytest.raises(ImageError, match=r"a number in 0\.\.1; export the image again"):
        read_dicom(data)
