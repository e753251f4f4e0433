"""Reading one DICOM radiograph: parse, refuse what cannot be shown, decode, turn into grey.

Only the elements listed in ``_KEYWORDS`` are ever parsed; names, numbers and addresses of patients
are skipped in the file and exist nowhere in this process but in the file's bytes.

A file is refused, with a child of :class:`radiopaque.errors.DicomError`, when it has no pixels,
several frames, fewer pixels than declared, more than 16 bits, a palette, a transfer syntax without
a decoder, or colour that is not an 8-bit secondary capture.
"""

from __future__ import annotations

import re
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import get_frame, parse_basic_offsets
from pydicom.filereader import read_dataset
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import (
    UID,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000TransferSyntaxes,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    RLELossless,
)

from data_owner import codestream, greyscale
from data_owner.apart import PLUGINS, decode_apart
from data_owner.elements import EXPORT_AGAIN, Elements, refusing, silenced
from data_owner.images import GreyImage, ImageMeta, check_size, ends_early
from radiopaque.errors import (
    DicomError,
    MultiFrameError,
    NoPixelDataError,
    NotDicomError,
    TruncatedPixelDataError,
    UnsupportedTransferSyntaxError,
)
from radiopaque.graph.plan import MAX_PIXELS

_PREFIX_AT = 128
_PREFIX = b"DICM"
_VALUE_REPRESENTATIONS = frozenset(
    b"AE AS AT CS DA DS DT FL FD IS LO LT OB OD OF OW PN SH SL SQ SS ST TM UI UL UN US UT".split()
)
_KEYWORDS = [
    "SOPClassUID", "StudyDate", "Modality", "PatientBirthDate", "PatientAge", "BodyPartExamined",
    "ViewPosition", "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration",
    "NumberOfFrames", "Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit",
    "PixelRepresentation", "PixelPaddingValue", "PixelPaddingRangeLimit", "WindowCenter",
    "WindowWidth", "RescaleIntercept", "RescaleSlope", "VOILUTFunction", "ModalityLUTSequence",
    "VOILUTSequence", "SharedFunctionalGroupsSequence", "PixelData",
]  # fmt: skip
_NATIVE = (ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian)
_PILLOW = dict.fromkeys((JPEGBaseline8Bit, JPEGExtended12Bit), "pillow")
"""Damaged frames make GDCM, which pydicom would ask first, abort the process."""
_SUPPORTED = (*_NATIVE, *_PILLOW, *PLUGINS, RLELossless)
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
_GREY = frozenset({"MONOCHROME1", "MONOCHROME2"})
_COLOUR = frozenset({"RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT"})


def looks_like_dicom(data: bytes) -> bool:
    """Whether ``data`` has the DICM mark, or no mark but a plausible first element.

    Old archives write files without preamble. Those start with group 0002 or 0008, little endian.
    """
    if data[_PREFIX_AT : _PREFIX_AT + 4] == _PREFIX:
        return True
    if len(data) < 16 or data[:2] not in (b"\x02\x00", b"\x08\x00"):
        return False
    if data[4:6] in _VALUE_REPRESENTATIONS:
        return True
    return data[3] == 0 and int.from_bytes(data[4:8], "little") <= min(64, len(data) - 8)


def read_dicom(data: bytes, *, max_pixels: int = MAX_PIXELS) -> GreyImage:
    """Turn the bytes of a DICOM file into a picture.

    Grey is what :mod:`.greyscale` says; MONOCHROME1 is inverted after the window; pixels of the
    Pixel Padding Value become black. The first VOI LUT is preferred to the first window.
    Raises ``DicomError`` or one of its children, or ``ImageError`` above ``max_pixels``.
    """
    with silenced(), refusing("not a usable DICOM image"):
        return _read(data, max_pixels)


def _read(data: bytes, max_pixels: int) -> GreyImage:
    dataset, syntax = _parse(data)
    elements = Elements(dataset)
    rows, columns = _check_frame(elements, max_pixels)
    colour = _check_pixel_format(elements)
    _check_pixel_data(elements, syntax, rows, columns)
    with refusing(f"the pixel data ({syntax.name}) cannot be decoded"):
        if syntax in PLUGINS:
            stored = decode_apart(dataset, syntax)
        else:
            plugin = _PILLOW.get(syntax, "")
            stored, _ = get_decoder(syntax).as_array(dataset, index=0, decoding_plugin=plugin)
    if stored.shape[:2] != (rows, columns):
        raise DicomError(
            f"decodes to {stored.shape[0]} x {stored.shape[1]} pixels, but {rows} x {columns} are "
            f"declared; {EXPORT_AGAIN}"
        )
    if colour:
        pixels, grey_scale = _luma(stored), "full range"
    else:
        with refusing("the grey scale elements are damaged"), np.errstate(all="ignore"):
            pixels, grey_scale = _grey(elements, stored)
    meta = ImageMeta(
        source="dicom",
        modality=elements.code("Modality"),
        body_part=elements.code("BodyPartExamined"),
        view=elements.code("ViewPosition"),
        age_years=elements.age_years(),
        photometric=elements.code("PhotometricInterpretation"),
        grey_scale=grey_scale,
    )
    return GreyImage(pixels, meta)


def _parse(data: bytes) -> tuple[Dataset, UID]:
    if not looks_like_dicom(data):
        raise NotDicomError(f"neither the DICM mark nor a DICOM element was found; {EXPORT_AGAIN}")
    with refusing("cannot be parsed as DICOM"):
        # The transfer syntax first: pydicom would inflate a deflated file without any limit.
        stream = BytesIO(data)
        stream.seek(_PREFIX_AT + 4 if data[_PREFIX_AT : _PREFIX_AT + 4] == _PREFIX else 0)
        head = read_dataset(stream, False, True, stop_when=lambda tag, *_: tag.group != 2)
        declared = head.get("TransferSyntaxUID")
        if declared is not None:
            _check_syntax(UID(str(declared)))
        dataset = dcmread(BytesIO(data), force=True, specific_tags=_KEYWORDS)
        if declared is None:
            implicit, little = dataset.original_encoding
            native = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
            dataset.file_meta = FileMetaDataset()
            dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else native
    if not dataset.get("PixelData"):
        if not any(keyword in dataset for keyword in ("SOPClassUID", "Modality", "Rows")):
            raise NotDicomError(f"has no DICOM element that an image has; {EXPORT_AGAIN}")
        kind = Elements(dataset).code("Modality") or "unknown"
        raise NoPixelDataError(
            f"a DICOM object of modality {kind} without pixel data; choose the image of the study"
        )
    return dataset, UID(dataset.file_meta.TransferSyntaxUID)


def _check_syntax(syntax: UID) -> None:
    name = syntax.name if syntax.is_valid and syntax.is_transfer_syntax else "not a registered one"
    uid = syntax if syntax.is_valid else "malformed UID"
    if syntax not in _SUPPORTED:
        raise UnsupportedTransferSyntaxError(
            f"transfer syntax {name} ({uid}) cannot be read; export as Explicit VR Little Endian "
            "(JPEG, JPEG-LS, JPEG 2000 and RLE need pip install 'radiopaque[dicom]')"
        )
    decoder = get_decoder(syntax)
    wanted = (PLUGINS | _PILLOW).get(syntax)
    if not decoder.is_available or (wanted and wanted not in decoder.available_plugins):
        raise UnsupportedTransferSyntaxError(
            f"no decoder for transfer syntax {name} ({uid}) is installed; "
            "pip install 'radiopaque[dicom]', or export as Explicit VR Little Endian"
        )


def _check_frame(elements: Elements, max_pixels: int) -> tuple[int, int]:
    frames = elements.text("NumberOfFrames") or "1"
    if not re.fullmatch(r"0*[1-9]\d{0,9}", frames):
        raise DicomError(f"the number of frames is not a positive number; {EXPORT_AGAIN}")
    if int(frames) > 1:
        raise MultiFrameError(f"has {int(frames)} frames; send one frame as an image of its own")
    if "SharedFunctionalGroupsSequence" in elements:
        raise MultiFrameError(
            "an enhanced multi-frame object, whose grey scale is stored by frame; "
            "send it as a single-frame image"
        )
    rows, columns = elements.integer("Rows"), elements.integer("Columns")
    check_size(rows, columns, max_pixels)
    return rows, columns


def _check_pixel_format(elements: Elements) -> bool:
    """Whether the picture is colour; raises for what cannot be shown as grey."""
    samples = elements.integer("SamplesPerPixel")
    allocated, used = elements.integer("BitsAllocated"), elements.integer("BitsStored")
    high = elements.integer("HighBit", used - 1)
    if allocated not in (8, 16) or not 1 <= used <= allocated or high != used - 1:
        raise DicomError(
            f"{allocated} bits allocated, {used} stored, high bit {high}; "
            "8 to 16 bits in the low bits of one or two bytes can be read"
        )
    if elements.integer("PixelRepresentation") not in (0, 1):
        raise DicomError(f"the pixel representation is neither 0 nor 1; {EXPORT_AGAIN}")
    photometric = elements.text("PhotometricInterpretation")
    if photometric in _GREY and samples == 1:
        return False
    capture = elements.text("SOPClassUID") == _SECONDARY_CAPTURE
    if capture and photometric in _COLOUR and samples == 3 and used == 8:
        return True
    shown = photometric if photometric in _COLOUR | _GREY | {"PALETTE COLOR"} else "unknown"
    raise DicomError(
        f"photometric interpretation {shown}, {samples} sample(s) of {used} bits, is not a "
        "grey radiograph; send MONOCHROME1 or MONOCHROME2 (8-bit RGB only as secondary capture)"
    )


def _check_pixel_data(elements: Elements, syntax: UID, rows: int, columns: int) -> None:
    pixel_data = elements.dataset.PixelData
    samples, size = elements.integer("SamplesPerPixel"), elements.integer("BitsAllocated") // 8
    if syntax in _NATIVE:
        halved = elements.text("PhotometricInterpretation") == "YBR_FULL_422"
        expected = rows * columns * (2 if halved else samples) * size
        found = len(pixel_data)
        if found < expected:
            raise TruncatedPixelDataError(
                f"has {found} of the {expected} bytes of pixels declared; {EXPORT_AGAIN}"
            )
        if found >= 2 * expected and found > expected + expected % 2:
            raise MultiFrameError(
                f"has {found} bytes of pixels, {expected} are one frame; send a single frame"
            )
        return
    with refusing("the compressed pixel data are damaged"):
        if len(parse_basic_offsets(pixel_data)) > 1:
            raise MultiFrameError("holds several compressed frames; send a single frame")
        frame = get_frame(pixel_data, 0, number_of_frames=1)
    if syntax == RLELossless:
        _check_rle(frame, rows * columns, samples * size)
    else:
        try:
            _check_compressed(frame, syntax, (rows, columns, samples))
        except codestream.CodestreamError as error:
            raise DicomError(f"the compressed frame is damaged: {error}; {EXPORT_AGAIN}") from None


def _check_rle(frame: bytes, plane: int, planes: int) -> None:
    try:
        lengths = codestream.rle_segment_lengths(frame, plane + codestream.RLE_PADDING_BYTES)
    except codestream.CodestreamError as error:
        raise DicomError(f"the RLE data are damaged: {error}; {EXPORT_AGAIN}") from None
    if len(lengths) != planes:
        raise DicomError(f"has {len(lengths)} RLE segments, {planes} expected; {EXPORT_AGAIN}")
    if min(lengths) < plane:
        raise TruncatedPixelDataError(
            f"an RLE segment holds {min(lengths)} of {plane} pixels; {EXPORT_AGAIN}"
        )
    if max(lengths) > plane + codestream.RLE_PADDING_BYTES:
        raise DicomError(f"an RLE segment holds more than {plane} pixels; {EXPORT_AGAIN}")


def _check_compressed(frame: bytes, syntax: UID, declared: tuple[int, int, int]) -> None:
    jpeg2000 = syntax in JPEG2000TransferSyntaxes
    header = codestream.jpeg2000_header(frame) if jpeg2000 else codestream.jpeg_header(frame)
    found = (header.rows, header.columns, header.components)
    if found != declared:
        raise DicomError(
            f"the compressed frame is {list(found)} [h, w, c], but {list(declared)} is declared; "
            f"{EXPORT_AGAIN}"
        )
    if syntax == JPEGExtended12Bit and header.precision > 8:
        raise UnsupportedTransferSyntaxError(
            f"transfer syntax {syntax.name} with {header.precision} bits cannot be read, also with "
            "pip install 'radiopaque[dicom]'; export as Explicit VR Little Endian"
        )
    if not codestream.is_complete(frame):
        raise TruncatedPixelDataError(f"the compressed frame has no end mark; {EXPORT_AGAIN}")
    if syntax in _PILLOW and ends_early(frame):
        raise TruncatedPixelDataError(
            f"the compressed frame ends before its last pixel; {EXPORT_AGAIN}"
        )


def _luma(stored: NDArray[Any]) -> NDArray[np.float32]:
    """ITU-R BT.601 luma of 8-bit RGB [h, w, 3], by the function that reads colour JPEG files."""
    from PIL import Image

    grey = Image.fromarray(np.ascontiguousarray(stored, dtype=np.uint8), "RGB").convert("L")
    return np.asarray(grey, dtype=np.float32) / np.float32(255)


def _grey(elements: Elements, stored: NDArray[Any]) -> tuple[NDArray[np.float32], str]:
    """Picture in 0..1 and the way in which its grey was made."""
    padding = _padding(elements, stored)
    values, low, transformed = _modality(elements, stored)
    table = elements.table("VOILUTSequence", signed=low < 0)
    centres, widths = elements.numbers("WindowCenter"), elements.numbers("WindowWidth")
    used = elements.integer("BitsStored")
    if table is not None:
        grey, made = table.apply(values) / ((1 << table.bits) - 1), "VOI LUT"
    elif centres and widths:
        function = elements.text("VOILUTFunction").upper() or "LINEAR"
        grey, made = greyscale.window(values, centres[0], widths[0], function), "window"
    elif used <= 8 and not transformed:
        grey, made = greyscale.spread(values, low, low + (1 << used) - 1), "full range"
    else:
        shown = values if padding is None or padding.all() else values[~padding]
        grey = greyscale.spread(values, float(shown.min()), float(shown.max()))
        made = "minimum to maximum"
    if elements.text("PhotometricInterpretation") == "MONOCHROME1":
        grey = 1.0 - grey
    if padding is not None:
        grey[padding] = 0.0
    return grey.astype(np.float32), made


def _modality(elements: Elements, stored: NDArray[Any]) -> tuple[greyscale.Values, float, bool]:
    """Values after the modality transformation, the least possible value, whether there was one."""
    values = stored.astype(np.float64)
    used = elements.integer("BitsStored")
    signed = elements.integer("PixelRepresentation") == 1
    table = elements.table("ModalityLUTSequence", signed)
    if table is not None:
        return table.apply(values), 0.0, True
    low = -float(1 << (used - 1)) if signed else 0.0
    slope = (elements.numbers("RescaleSlope") or [1.0])[0]
    intercept = (elements.numbers("RescaleIntercept") or [0.0])[0]
    if (slope, intercept) == (1.0, 0.0):
        return values, low, False
    ends = greyscale.rescale(np.array([low, low + (1 << used) - 1]), slope, intercept)
    return greyscale.rescale(values, slope, intercept), float(ends.min()), True


def _padding(elements: Elements, stored: NDArray[Any]) -> NDArray[np.bool_] | None:
    """Where (0028,0120) Pixel Padding Value, up to (0028,0121), says there is no image."""
    signed = elements.integer("PixelRepresentation") == 1
    value = elements.word("PixelPaddingValue", signed)
    if value is None:
        return None
    limit = elements.word("PixelPaddingRangeLimit", signed)
    limit = value if limit is None else limit
    mask: NDArray[np.bool_] = (stored >= min(value, limit)) & (stored <= max(value, limit))
    return mask
