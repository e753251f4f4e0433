"""Decoding a frame in a process of its own, for decoders that a damaged file may end.

JPEG Lossless has one free decoder in Python, GDCM, which was seen to end the process over changed
bytes. The child gets the few elements that describe the frame, none of the patient's, under limits
of memory and time; it gives back the pixels or dies alone.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from io import BytesIO
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from pydicom import dcmread, dcmwrite
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import UID

from data_owner.elements import EXPORT_AGAIN
from radiopaque.errors import DicomError

_DESCRIBING: Final = (
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "PlanarConfiguration",
    "NumberOfFrames",
    "Rows",
    "Columns",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "PixelData",
)
_MEMORY_BYTES: Final = 4 << 30
_SECONDS: Final = 60


def decode_apart(dataset: Dataset, syntax: UID) -> NDArray[Any]:
    """The first frame as pydicom's decoders give it, [rows, columns] or [rows, columns, samples].

    Raises DicomError where the child ended, was too slow, or gave back no array.
    """
    described = Dataset()
    for keyword in _DESCRIBING:
        if keyword in dataset:
            described[keyword] = dataset[keyword]
    described.file_meta = FileMetaDataset()
    described.file_meta.TransferSyntaxUID = syntax
    sent = BytesIO()
    dcmwrite(sent, described, enforce_file_format=False)
    try:
        child = subprocess.run(  # noqa: S603 - this interpreter, this module
            [sys.executable, "-P", "-m", __name__],
            input=sent.getvalue(),
            capture_output=True,
            timeout=_SECONDS,
            check=False,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        if child.returncode:
            raise DicomError(f"the decoder of the pixel data ended over this file; {EXPORT_AGAIN}")
        pixels: NDArray[Any] = np.load(BytesIO(child.stdout), allow_pickle=False)
    except subprocess.TimeoutExpired:
        raise DicomError(
            f"the pixel data took over {_SECONDS} s to decode; {EXPORT_AGAIN}"
        ) from None
    return pixels


def main() -> None:
    """The child: a dataset on standard input, a numpy file on standard output."""
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_AS, _MEMORY_BYTES)
    _limit(resource.RLIMIT_CPU, _SECONDS)
    dataset = dcmread(BytesIO(sys.stdin.buffer.read()), force=True)
    stored, _ = get_decoder(dataset.file_meta.TransferSyntaxUID).as_array(dataset, index=0)
    np.save(sys.stdout.buffer, stored, allow_pickle=False)


def _limit(kind: int, most: int) -> None:
    """Where the machine's own limit is lower, that one: no process may raise it."""
    _, hard = resource.getrlimit(kind)
    least = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(kind, (least, least))


if __name__ == "__main__":
    main()
