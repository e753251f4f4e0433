"""Decoding a frame in a process of its own, for decoders that a damaged file may end or fill.

JPEG Lossless has one free decoder in Python, GDCM, which was seen to end the process over changed
bytes; JPEG 2000 and JPEG-LS decoders were seen to take gigabytes for some hundred. The child gets
the few elements that describe the frame, none of the patient's, under limits of memory and time; it
gives back the pixels or dies alone. Nothing of what it gives is believed but the values: their
number, shape and type are those that the dataset declares.
"""

from __future__ import annotations

import os
import resource
import selectors
import subprocess
import sys
import time
from io import BytesIO
from math import prod
from typing import IO, Any, Final, cast

import numpy as np
from numpy.typing import NDArray
from pydicom import dcmread, dcmwrite
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import (
    UID,
    JPEG2000TransferSyntaxes,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSTransferSyntaxes,
)

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
PLUGINS: Final = {
    **dict.fromkeys((JPEGLossless, JPEGLosslessSV1), "gdcm"),
    **dict.fromkeys(JPEGLSTransferSyntaxes, "pyjpegls"),
    **dict.fromkeys(JPEG2000TransferSyntaxes, "pylibjpeg"),
}
"""The decoder of each transfer syntax that is decoded here."""
_MEMORY_BYTES: Final = 4 << 30
_SECONDS: Final = 60
_CORRUPT: Final = b"Corrupt JPEG data"
"""What GDCM's library writes where it makes up pixels that are not there."""
_READ_BYTES: Final = 1 << 18


def decode_apart(dataset: Dataset, syntax: UID) -> NDArray[Any]:
    """The first frame as pydicom's decoders give it, [rows, columns] or [rows, columns, samples].

    Raises DicomError where the child ended, was too slow, or gave back more or less than the frame
    that ``dataset`` declares, of which no more is ever read.
    """
    described = Dataset()
    for keyword in _DESCRIBING:
        if keyword in dataset:
            described[keyword] = dataset[keyword]
    described.file_meta = FileMetaDataset()
    described.file_meta.TransferSyntaxUID = syntax
    sent = BytesIO()
    dcmwrite(sent, described, enforce_file_format=False)
    shape = (dataset.Rows, dataset.Columns, dataset.SamplesPerPixel)
    kind = np.dtype(f"<{'i' if dataset.PixelRepresentation else 'u'}{dataset.BitsAllocated // 8}")
    try:
        given = _ask(sent.getbuffer(), prod(shape) * kind.itemsize)
    except subprocess.TimeoutExpired:
        raise DicomError(
            f"the pixel data took over {_SECONDS} s to decode; {EXPORT_AGAIN}"
        ) from None
    return np.frombuffer(given, kind).reshape(shape if shape[2] > 1 else shape[:2])


def _ask(question: memoryview, size: int) -> bytearray:
    """The child's answer of ``size`` bytes. The child is gone when this returns or raises."""
    deadline = time.monotonic() + _SECONDS
    with subprocess.Popen(  # noqa: S603 - this interpreter, this module
        [sys.executable, "-P", "-m", __name__, str(_memory(size, len(question)))],
        bufsize=0,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            "OPENBLAS_NUM_THREADS": "1",
        },
    ) as child:
        try:
            answer = _exchange(child, question, size + 1, deadline)
            if len(answer) <= size and child.wait(deadline - time.monotonic()):
                raise DicomError(
                    f"the decoder of the pixel data ended over this file; {EXPORT_AGAIN}"
                )
        finally:
            child.kill()
    if len(answer) != size:
        how = "more" if len(answer) > size else "less"
        raise DicomError(f"decodes to {how} than the {size} bytes declared; {EXPORT_AGAIN}")
    return answer


def _memory(size: int, told: int) -> int:
    """Address space for a decoder of ``told`` bytes to ``size``: what is declared decides."""
    return min(_MEMORY_BYTES, (1 << 30) + 16 * size + 8 * told)


def _exchange(
    child: subprocess.Popen[bytes], question: memoryview, most: int, deadline: float
) -> bytearray:
    """What the child writes, until it stops or has written ``most`` bytes, while it is told."""
    stdin, stdout = cast("IO[bytes]", child.stdin), cast("IO[bytes]", child.stdout)
    os.set_blocking(stdin.fileno(), False)
    answer = bytearray()
    with selectors.DefaultSelector() as ready:
        ready.register(stdin, selectors.EVENT_WRITE)
        ready.register(stdout, selectors.EVENT_READ)
        while len(answer) < most:
            left = deadline - time.monotonic()
            if left <= 0:
                raise subprocess.TimeoutExpired(child.args, _SECONDS)
            for key, _ in ready.select(left):
                if key.fileobj is stdout:
                    read = os.read(key.fd, min(_READ_BYTES, most - len(answer)))
                    if not read:
                        return answer
                    answer += read
                    continue
                try:
                    question = question[os.write(key.fd, question) :]
                except BrokenPipeError:
                    question = question[:0]
                if not question:
                    ready.unregister(stdin)
                    stdin.close()
    return answer


def main() -> None:
    """The child: a dataset on standard input, the values row by row on standard output.

    Its argument is the most bytes of address space that it may take.
    """
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_AS, int(sys.argv[1]))
    _limit(resource.RLIMIT_CPU, _SECONDS)
    dataset = dcmread(BytesIO(sys.stdin.buffer.read()), force=True)
    syntax = dataset.file_meta.TransferSyntaxUID
    heard, said = os.pipe()
    os.set_blocking(said, False)  # what does not fit is lost, and waits for nobody
    os.write(said, b"\n")  # so that there is something to read
    os.dup2(said, 2)
    stored, _ = get_decoder(syntax).as_array(dataset, index=0, decoding_plugin=PLUGINS[syntax])
    if _CORRUPT in os.read(heard, _READ_BYTES):
        sys.exit(1)
    sys.stdout.buffer.write(np.ascontiguousarray(stored).data)


def _limit(kind: int, most: int) -> None:
    """Where the machine's own limit is lower, that one: no process may raise it."""
    _, hard = resource.getrlimit(kind)
    least = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(kind, (least, least))


if __name__ == "__main__":
    main()
