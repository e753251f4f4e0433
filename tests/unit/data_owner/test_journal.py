"""The journal of a submission and the waits between attempts."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data_owner.journal import Image, Journal, Result
from data_owner.preparing import Prepared
from data_owner.retry import Backoff
from data_owner.sessions import Answer
from radiopaque.errors import StoreError

ARTEFACT = bytes(range(16))
OUTPUTS = np.array([[0.1, -2.0, 1 / 3], [1e-300, 5e300, -0.0]])
ANSWER = Answer(bytes(range(16)), OUTPUTS, 0.25, 0.5, 4, {"data_owner_to_model_owner": 7})
MADE = replace(ANSWER, prepared=Prepared(ANSWER.session, 1.5, {"a_to_b": 3}))
WHEN = "2026-11-21T12:00:00+00:00"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.jsonl"


@pytest.fixture
def image(tmp_path: Path) -> Image:
    file = tmp_path / "chest \udcff.png"
    file.write_bytes(b"pixels")
    return Image.of(file)


@contextmanager
def full_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """It takes nine bytes of a line."""
    write = os.write
    with monkeypatch.context() as patched:
        patched.setattr(os, "write", lambda file, data: write(file, data[:9]))
        yield


@pytest.mark.parametrize("answer", [ANSWER, MADE])
@pytest.mark.parametrize("index", [0, 1])
def test_a_result_comes_back_as_it_was(
    path: Path, image: Image, answer: Answer, index: int
) -> None:
    with Journal(path) as journal:
        assert journal.find(image, ARTEFACT) is None
        journal.add(image, ARTEFACT, Result(answer, index, WHEN))
        in_memory = journal.find(image, ARTEFACT)
    with Journal(path) as journal:
        found = journal.find(image, ARTEFACT)
    assert found is not None
    assert in_memory is not None
    for result in (found, in_memory):
        assert (result.index, result.created) == (0, WHEN)
        assert result.answer.outputs.tobytes() == OUTPUTS[index : index + 1].tobytes()
        assert result.answer.prepared == answer.prepared
        assert replace(result.answer, outputs=answer.outputs) == answer
    assert path.stat().st_mode & 0o777 == 0o600


def test_only_the_same_bytes_name_and_artefact(path: Path, image: Image) -> None:
    other = image.path.with_name("other.png")
    other.write_bytes(b"pixels")
    with Journal(path) as journal:
        journal.add(image, ARTEFACT, Result(ANSWER, 0, WHEN))
        assert journal.find(Image.of(other), ARTEFACT) is None
        assert journal.find(image, bytes(16)) is None
        image.path.write_bytes(b"pixelz")
        assert journal.find(Image.of(image.path), ARTEFACT) is None
        moved = Image(Path("/elsewhere") / image.path.name, image.digest)
        assert journal.find(moved, ARTEFACT) is not None


def test_a_line_that_was_cut_off_is_dropped(path: Path, image: Image) -> None:
    with Journal(path) as journal:
        journal.add(image, ARTEFACT, Result(ANSWER, 0, WHEN))
    whole = path.read_bytes()
    for cut in (1, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole + whole.replace(b'"sha256": "', b'"sha256": "00')[:cut])
        with Journal(path) as journal:
            assert journal.find(image, ARTEFACT) is not None
            journal.add(replace(image, digest="11"), ARTEFACT, Result(ANSWER, 1, WHEN))
        assert path.read_bytes().startswith(whole)
        assert len([json.loads(line) for line in path.read_bytes().splitlines()]) == 2


def test_a_line_is_on_the_disk_before_a_result_counts(
    path: Path, image: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that fails is told, and so is one that takes a part of a line."""

    def fail(file: int) -> None:
        raise OSError(errno.EIO, "the disk is broken")

    with Journal(path) as journal:
        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", fail)
            with pytest.raises(StoreError, match="the disk is broken"):
                journal.add(image, ARTEFACT, Result(ANSWER, 0, WHEN))
        assert journal.find(image, ARTEFACT) is None
    path.unlink()
    with Journal(path) as journal:
        with full_disk(monkeypatch), pytest.raises(StoreError, match="No space left on device"):
            journal.add(image, ARTEFACT, Result(ANSWER, 0, WHEN))
        assert journal.find(image, ARTEFACT) is None


def test_a_journal_that_could_not_be_written_takes_no_further_line(
    path: Path, image: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would stand behind a part of the last, and the next run would refuse all of it."""
    first, second, third = (replace(image, digest=f"{n:02}") for n in range(3))
    with Journal(path) as journal:
        journal.add(first, ARTEFACT, Result(ANSWER, 0, WHEN))
        with full_disk(monkeypatch), pytest.raises(StoreError):
            journal.add(second, ARTEFACT, Result(ANSWER, 0, WHEN))
        with pytest.raises(StoreError, match="cannot be written any more; submit again"):
            journal.add(third, ARTEFACT, Result(ANSWER, 0, WHEN))
        assert journal.find(third, ARTEFACT) is None
    with Journal(path) as journal:
        assert journal.find(first, ARTEFACT) is not None
        assert journal.find(second, ARTEFACT) is None
        journal.add(second, ARTEFACT, Result(ANSWER, 0, WHEN))
    assert len([json.loads(line) for line in path.read_bytes().splitlines()]) == 2


@pytest.mark.parametrize("bad", [b"{}", b"[]", b"nonsense", b'{"sha256": 1}', b"\xff\xfe"])
def test_a_damaged_line_is_refused(path: Path, image: Image, bad: bytes) -> None:
    with Journal(path) as journal:
        journal.add(image, ARTEFACT, Result(ANSWER, 0, WHEN))
    path.write_bytes(path.read_bytes() + bad + b"\n")
    with pytest.raises(StoreError, match=r"line 2 of the journal .* is damaged; move"):
        Journal(path)


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="cannot use the journal"):
        Journal(tmp_path / "none" / "journal.jsonl")


def test_waits_double_with_jitter_and_are_bounded() -> None:
    backoff = Backoff(attempts=7, first_seconds=1.0, longest_seconds=5.0)
    runs = [list(backoff.waits()) for _ in range(50)]
    for waits in runs:
        for wait, most in zip(waits, (1.0, 2.0, 4.0, 5.0, 5.0, 5.0), strict=True):
            assert most / 2 <= wait <= most
    assert len({tuple(waits) for waits in runs}) == 50
    assert list(Backoff(attempts=1).waits()) == []
