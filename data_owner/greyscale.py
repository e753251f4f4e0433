"""From stored DICOM values to grey: modality look-up, VOI look-up or window, polarity.

The order is that of DICOM PS3.4 annex N.2: stored value -> modality LUT (PS3.3 C.11.1) -> VOI LUT
or window (C.11.2) -> polarity (C.7.6.3.1.2). Every function maps float64 [h, w] to float64 [h, w].

Without a VOI LUT or window, data of at most 8 stored bits and no modality transformation keep their
full range (0..255 becomes 0..1), so that a secondary capture of a JPEG equals the JPEG; everything
else is spread from the smallest to the largest value present, padding apart, because detectors
declare 12 to 16 bits and use an unknown part of them. That is also what common viewers do.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from radiopaque.errors import DicomError

Values = NDArray[np.float64]
_LARGEST_EXPONENT = 700.0


@dataclass(frozen=True, eq=False)
class LookupTable:
    """A DICOM LUT: entry ``i`` belongs to input ``first + i``; outer inputs take the outer entries.

    ``table`` is float64 [entries], ``bits`` the width of an entry.
    """

    first: int
    bits: int
    table: Values

    def apply(self, values: Values) -> Values:
        """Entries for ``values``, which are rounded to the nearest integer first."""
        index = np.clip(np.rint(values) - self.first, 0, len(self.table) - 1)
        result: Values = self.table[index.astype(np.int64)]
        return result


def lookup_table(
    descriptor: list[int], data: list[int] | bytes, little_endian: bool
) -> LookupTable:
    """Build a table from (0028,3002) LUT Descriptor and (0028,3006) LUT Data.

    ``descriptor[1]`` may be negative; the caller knows whether the input is signed. Data are words,
    or two 8-bit entries a word. Raises ``DicomError`` where they do not fit together.
    """
    if len(descriptor) != 3:
        raise DicomError(f"a LUT Descriptor has {len(descriptor)} values, not 3; export again")
    entries, first, bits = descriptor[0] or 1 << 16, descriptor[1], descriptor[2]
    if not 8 <= bits <= 16:
        raise DicomError(f"a LUT with {bits} bits an entry, not 8 to 16; export again")
    if isinstance(data, bytes):
        words = np.frombuffer(data[: len(data) // 2 * 2], "<u2" if little_endian else ">u2")
    else:
        words = np.asarray(data, dtype=np.int64).astype(np.uint16)
    if len(words) < entries and bits == 8 and 2 * len(words) >= entries:
        words = words.astype("<u2").view(np.uint8)
    if len(words) < entries:
        raise DicomError(f"a LUT has {len(words)} of the {entries} entries declared; export again")
    table = words[:entries].astype(np.float64)
    if table.max() > (1 << bits) - 1:
        raise DicomError(f"a LUT holds values of more than the {bits} bits declared; export again")
    return LookupTable(first, bits, table)


def rescale(values: Values, slope: float, intercept: float) -> Values:
    """Modality transformation by (0028,1053) slope and (0028,1052) intercept."""
    if not (np.isfinite(slope) and np.isfinite(intercept)) or slope == 0:
        raise DicomError(f"rescale slope {slope}, intercept {intercept}; export the image again")
    return values * slope + intercept


def window(values: Values, centre: float, width: float, function: str) -> Values:
    """Map a window to 0..1 by the VOI LUT Function LINEAR, LINEAR_EXACT or SIGMOID.

    Source: DICOM PS3.3 C.11.2.1.2.1, C.11.2.1.3.1 and C.11.2.1.3.2 with an output range of 0..1.
    """
    if function not in ("LINEAR", "LINEAR_EXACT", "SIGMOID"):
        raise DicomError(
            "the VOI LUT function is neither LINEAR, LINEAR_EXACT nor SIGMOID; export again"
        )
    usable = width >= 1.0 if function == "LINEAR" else width > 0.0
    if not (np.isfinite(centre) and np.isfinite(width) and usable):
        raise DicomError(
            f"window centre {centre}, width {width} cannot be used with {function}; export again"
        )
    if function == "SIGMOID":
        exponent = np.clip(-4.0 * (values - centre) / width, -_LARGEST_EXPONENT, _LARGEST_EXPONENT)
        sigmoid: Values = 1.0 / (1.0 + np.exp(exponent))
        return sigmoid
    if function == "LINEAR":
        centre, width = centre - 0.5, width - 1.0
    if width == 0.0:
        return (values > centre).astype(np.float64)
    return np.clip((values - centre) / width + 0.5, 0.0, 1.0)


def spread(values: Values, low: float, high: float) -> Values:
    """Map low..high to 0..1, clipped; a picture of one single value becomes black."""
    if high <= low:
        return np.zeros_like(values)
    return np.clip((values - low) / (high - low), 0.0, 1.0)
