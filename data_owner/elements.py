"""Reading single DICOM elements without trusting them, and without pydicom quoting them.

pydicom quotes odd values in warnings and log lines. That can be any part of a file: a damaged
length makes one element swallow the next ones, patient's name included. So it is silenced while a
file is read, and text is taken from the raw bytes, which pydicom does not validate.
"""

from __future__ import annotations

import logging
import re
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from typing import Any

import numpy as np
from pydicom.dataset import Dataset
from pydicom.tag import Tag

from data_owner.greyscale import LookupTable, lookup_table
from radiopaque.errors import DicomError, ImageError

EXPORT_AGAIN = "export the image again from the archive"

_CODE = re.compile(r"[A-Z0-9_ ]{1,16}")
_AGE = re.compile(r"(\d{1,3})([DWMY])")
_PERIODS_PER_YEAR = {"D": 365.25, "W": 365.25 / 7, "M": 12.0, "Y": 1.0}


_READING = threading.Lock()


@contextmanager
def silenced() -> Iterator[None]:
    """Keep pydicom's warnings and log records from everybody, for one reader at a time.

    Both switches belong to the process: the lock keeps two readers from restoring them wrongly.
    """
    logger = logging.getLogger("pydicom")
    with _READING, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        level = logger.level
        logger.setLevel(logging.CRITICAL + 1)
        try:
            yield
        finally:
            logger.setLevel(level)


@contextmanager
def refusing(problem: str) -> Iterator[None]:
    """Turn whatever pydicom or a decoder raises into a ``DicomError`` that quotes no value."""
    try:
        yield
    except ImageError:
        raise
    except Exception as error:  # parsers fed with damaged files raise any type
        raise DicomError(f"{problem} ({type(error).__name__}); {EXPORT_AGAIN}") from None


class Elements:
    """The few elements of a dataset that a picture needs, by keyword."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __contains__(self, keyword: str) -> bool:
        return keyword in self.dataset

    def text(self, keyword: str) -> str:
        """The raw bytes as text, without padding; empty where the element is absent."""
        tag = Tag(keyword)
        if tag not in self.dataset:
            return ""
        value = self.dataset.get_item(tag).value
        text = value.decode("ascii", "replace") if isinstance(value, bytes) else str(value or "")
        return text.strip(" \0")

    def code(self, keyword: str) -> str | None:
        """A code string; ``None`` for anything else, such as free text typed into the field."""
        text = self.text(keyword).upper()
        return text if _CODE.fullmatch(text) else None

    def numbers(self, keyword: str) -> list[float]:
        """Values of a decimal string; raises ``DicomError`` where they are no numbers."""
        try:
            return [float(part) for part in self.text(keyword).split("\\") if part.strip()]
        except ValueError:
            raise DicomError(f"{keyword} is not a number; {EXPORT_AGAIN}") from None

    def integer(self, keyword: str, default: int | None = None) -> int:
        """One binary integer; raises ``DicomError`` where it is missing and has no default."""
        value = None
        with refusing(f"{keyword} is damaged"):
            value = self.dataset.get(keyword, default)
        if not isinstance(value, int):
            raise DicomError(f"{keyword} is missing or is not one number; {EXPORT_AGAIN}")
        return value

    def word(self, keyword: str, signed: bool) -> int | None:
        """First 16-bit word of an element whose VR may be US or SS; ``None`` where absent."""
        if self.dataset.get(keyword) is None:
            return None
        return _as_signed(self._words(self.dataset[keyword].value)[0], signed)

    def table(self, keyword: str, signed: bool) -> LookupTable | None:
        """First LUT of a sequence, for signed or unsigned input; ``None`` where absent."""
        if not self.dataset.get(keyword):
            return None
        item = self.dataset[keyword].value[0]
        descriptor = self._words(item["LUTDescriptor"].value)
        if len(descriptor) == 3:
            entries, first, bits = descriptor
            descriptor = [entries & 0xFFFF, _as_signed(first, signed), bits]
        data = item["LUTData"].value
        if not isinstance(data, bytes):
            data = self._words(data)
        return lookup_table(descriptor, data, little_endian=bool(self.dataset.original_encoding[1]))

    def age_years(self) -> float | None:
        """From (0010,1010) Patient's Age, else from the dates of birth and study."""
        match = _AGE.fullmatch(self.text("PatientAge"))
        if match:
            return int(match[1]) / _PERIODS_PER_YEAR[match[2]]
        born, studied = self._date("PatientBirthDate"), self._date("StudyDate")
        if born is None or studied is None or studied < born:
            return None
        months = 12 * (studied.year - born.year) + studied.month - born.month
        months -= studied.day < born.day
        return float(months // 12) if months >= 24 else months / 12

    def _words(self, value: Any) -> list[int]:
        """16-bit words of a value that pydicom leaves as bytes where its VR is ambiguous."""
        if isinstance(value, bytes):
            order = "<u2" if self.dataset.original_encoding[1] else ">u2"
            return [int(word) for word in np.frombuffer(value[: len(value) // 2 * 2], order)]
        return [int(value)] if isinstance(value, int) else [int(word) for word in value]

    def _date(self, keyword: str) -> date | None:
        text = self.text(keyword)
        if not re.fullmatch(r"\d{8}", text):
            return None
        try:
            return date(int(text[:4]), int(text[4:6]), int(text[6:]))
        except ValueError:
            return None


def _as_signed(word: int, signed: bool) -> int:
    """A word stored as US although its domain is signed is taken modulo 2^16."""
    return word - (1 << 16) if signed and word >= 1 << 15 else word
