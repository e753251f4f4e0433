"""What the decoder's process may do to the clinic's, with other programs in the decoder's place."""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import JPEGLosslessSV1

from data_owner import apart
from radiopaque.errors import DicomError

ROWS, COLUMNS = 512, 300
SIZE = ROWS * COLUMNS
FRAME = b"\xff\xd8" + bytes(1 << 20)
assert min(SIZE, len(FRAME)) > 2 * (1 << 16), "more than a pipe holds"

GIVE = """
import os, signal, sys, time
def give(size):
    sys.stdout.buffer.write((bytes(range(251)) * (1 + size // 251))[:size])
    sys.stdout.flush()
told = sys.stdin.buffer.read
"""

Decoder = Callable[[str], None]
Children = list[subprocess.Popen[bytes]]


def described(bits: int = 8, signed: int = 0, samples: int = 1) -> Dataset:
    dataset = Dataset()
    dataset.Rows, dataset.Columns, dataset.SamplesPerPixel = ROWS, COLUMNS, samples
    dataset.BitsAllocated, dataset.PixelRepresentation = bits, signed
    dataset.PixelData = encapsulate([FRAME])
    return dataset


def decode(**declared: int) -> NDArray[Any]:
    return apart.decode_apart(described(**declared), JPEGLosslessSV1)


@pytest.fixture
def decoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Decoder:
    """Puts a program of these lines in the decoder's place; ``give(n)`` writes n known bytes."""
    interpreter = sys.executable

    def become(lines: str) -> None:
        program = tmp_path / "decoder"
        program.write_text(f"#!{interpreter}\n{GIVE}{lines}\n")
        program.chmod(0o700)
        monkeypatch.setattr(sys, "executable", str(program))

    return become


@pytest.fixture
def children(monkeypatch: pytest.MonkeyPatch) -> Iterator[Children]:
    """Every process begun; afterwards none is left, nor a pipe to it."""
    begun: Children = []

    begin = subprocess.Popen

    def watched(*arguments: Any, **options: Any) -> subprocess.Popen[bytes]:
        begun.append(begin(*arguments, **options))
        return begun[-1]

    monkeypatch.setattr(subprocess, "Popen", watched)
    yield begun
    (child,) = begun
    assert child.returncode is not None
    assert child.stderr is None
    for pipe in (child.stdin, child.stdout):
        assert pipe is not None
        assert pipe.closed


def known(size: int, kind: str) -> NDArray[Any]:
    return np.frombuffer((bytes(range(251)) * (1 + size // 251))[:size], kind)


@pytest.mark.parametrize(
    ("declared", "kind", "shape"),
    [
        ({}, "<u1", (ROWS, COLUMNS)),
        ({"bits": 16}, "<u2", (ROWS, COLUMNS)),
        ({"bits": 16, "signed": 1}, "<i2", (ROWS, COLUMNS)),
        ({"samples": 3}, "<u1", (ROWS, COLUMNS, 3)),
    ],
    ids=str,
)
def test_values_have_the_form_that_is_declared(
    decoder: Decoder,
    children: Children,
    declared: dict[str, int],
    kind: str,
    shape: tuple[int, ...],
) -> None:
    size = int(np.prod(shape)) * np.dtype(kind).itemsize
    decoder(f"told(); give({size})")
    found = decode(**declared)
    assert found.dtype == kind
    np.testing.assert_array_equal(found, known(size, kind).reshape(shape))


def test_a_decoder_that_answers_before_it_listens_is_heard(
    decoder: Decoder, children: Children
) -> None:
    """Both pipes are full then."""
    decoder(f"give({SIZE}); sys.exit(len(told()) < {len(FRAME)})")
    np.testing.assert_array_equal(decode(), known(SIZE, "<u1").reshape(ROWS, COLUMNS))


def test_a_decoder_need_not_listen_to_the_end(decoder: Decoder, children: Children) -> None:
    decoder(f"os.close(0); give({SIZE})")
    np.testing.assert_array_equal(decode(), known(SIZE, "<u1").reshape(ROWS, COLUMNS))


def test_a_decoder_may_take_what_the_declared_size_makes_likely(
    decoder: Decoder, children: Children
) -> None:
    """And 4 GiB for the largest."""
    told = len(described().PixelData)
    most = (1 << 30) + 16 * SIZE + 8 * told
    decoder(f"told(); give({SIZE} if {most} <= int(sys.argv[-1]) < {most} + 8192 else 0)")
    assert decode().shape == (ROWS, COLUMNS)
    assert apart._memory(1 << 28, 1 << 20) == 4 << 30


@pytest.mark.parametrize(
    ("more", "how"), [(1, "more"), (128, "more"), (-1, "less"), (-SIZE, "less")]
)
def test_values_are_as_many_as_are_declared(
    decoder: Decoder, children: Children, more: int, how: str
) -> None:
    decoder(f"told(); give({SIZE + more})")
    with pytest.raises(
        DicomError, match=f"decodes to {how} than the {SIZE} bytes declared; export"
    ):
        decode()


def test_no_more_is_read_than_is_declared(
    decoder: Decoder, children: Children, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 64 MiB, after which the decoder would wait for 30 s."""
    taken = 0
    read = os.read

    def count(descriptor: int, most: int) -> bytes:
        nonlocal taken
        data = read(descriptor, most)
        taken += len(data)
        return data

    monkeypatch.setattr(os, "read", count)
    decoder("told(); give(1 << 26); time.sleep(30)")
    with pytest.raises(DicomError, match="decodes to more"):
        decode()
    assert taken == SIZE + 1
    assert children[0].returncode == -signal.SIGKILL


@pytest.mark.parametrize(
    "lines", ["told(); give({0}); sys.exit(3)", "give({0}); os.kill(os.getpid(), signal.SIGSEGV)"]
)
def test_a_decoder_that_fails_after_its_answer_has_given_none(
    decoder: Decoder, children: Children, lines: str
) -> None:
    decoder(lines.format(SIZE))
    with pytest.raises(DicomError, match="ended over this file; export the image again"):
        decode()


@pytest.mark.parametrize(
    "lines",
    [
        "time.sleep(30)",
        "told(); time.sleep(30)",
        "told(); give({0}); os.close(1); time.sleep(30)",
        "told()\nfor _ in range(3000): give(1); time.sleep(0.01)",
    ],
    ids=["while it is told", "while it decodes", "after its answer", "a byte at a time"],
)
def test_a_decoder_is_ended_wherever_it_waits(
    decoder: Decoder, children: Children, monkeypatch: pytest.MonkeyPatch, lines: str
) -> None:
    """It would end by itself, and well, in 30 s."""
    monkeypatch.setattr(apart, "_SECONDS", 1)
    decoder(lines.format(SIZE))
    with pytest.raises(DicomError, match="took over 1 s to decode; export the image again"):
        decode()
    assert children[0].returncode == -signal.SIGKILL


def test_a_decoder_that_says_much_about_errors_is_neither_kept_nor_held_up(
    decoder: Decoder, children: Children, capfd: pytest.CaptureFixture[str]
) -> None:
    decoder(f"told(); sys.stderr.write('x' * (1 << 20)); give({SIZE})")
    assert decode().shape == (ROWS, COLUMNS)
    assert capfd.readouterr().err == ""


def test_no_decoder_is_left_where_the_clinic_is_interrupted(
    decoder: Decoder, children: Children, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(selectors.DefaultSelector, "select", interrupted)
    decoder("told(); give(1); time.sleep(30)")
    with pytest.raises(KeyboardInterrupt):
        decode()
    assert children[0].returncode == -signal.SIGKILL
