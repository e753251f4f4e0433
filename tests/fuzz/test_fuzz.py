"""The short form: the corpus, examples that hypothesis makes, and some thousand mutations."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import tracemalloc
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from crypto_provider import artefacts
from radiopaque import config, config_files
from radiopaque.audit import chain
from radiopaque.certificates import identity
from radiopaque.engine import weights_file
from radiopaque.errors import (
    ConfigError,
    ManifestError,
    PlanError,
    RadiopaqueError,
    StoreError,
    WeightsFileError,
)
from radiopaque.graph import manifest
from radiopaque.wire.plans import decode_plan
from tests.fuzz import runner, seeds
from tests.fuzz.mutate import MOST_BYTES, mutated
from tests.fuzz.targets import CORPUS, TARGETS, Defect, Target

EXAMPLES = 100
MUTATIONS = {"onnx": 150, "dicom": 150, "image": 150, "certificates": 150, "config": 150}
REFUSED = {
    "control/out-of-order",
    "plan/long-kernel",
    "journal/deep",
    "audit/damaged-head",
    "manifest/deep",
    "config/deep",
    "onnx/too-large",
}
"""Seeds that show what was a defect once; all others are good."""


@pytest.fixture(autouse=True)
def _quiet() -> None:
    warnings.simplefilter("ignore")


@pytest.mark.parametrize("name", TARGETS)
def test_the_corpus(name: str) -> None:
    """Every seed does what it was made for; what was found does no harm any more."""
    target = TARGETS[name]
    assert target.seeds()
    for path in sorted((CORPUS / name).glob("*")):
        accepted = target.run(path.read_bytes())
        if not path.name.startswith("found-"):
            assert accepted is (f"{name}/{path.name}" not in REFUSED), path


@pytest.mark.parametrize("name", TARGETS)
def test_examples(name: str) -> None:
    """Bytes as hypothesis makes them, alone and in place of a part of a seed."""
    target = TARGETS[name]
    known = target.seeds()

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(
        st.sampled_from(known),
        st.floats(0, 1),
        st.integers(0, 64),
        st.one_of(st.binary(max_size=200), st.text(max_size=50).map(str.encode)),
    )
    def examine(seed: bytes, place: float, removed: int, inserted: bytes) -> None:
        at = int(place * len(seed))
        target.run(seed[:at] + inserted + seed[at + removed :])
        target.run(inserted)

    examine()


@pytest.mark.parametrize("name", TARGETS)
def test_mutations(name: str) -> None:
    target = TARGETS[name]
    known = target.seeds()
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    for _ in range(MUTATIONS.get(name, 400)):
        data = mutated(rng, known)
        try:
            target.run(data)
        except BaseException:
            print(f"{name}: {data.hex()}")
            raise


@pytest.mark.parametrize("name", TARGETS)
def test_length_alone(name: str) -> None:
    """Nothing, one byte, and as much as a fuzzer makes: all the same byte."""
    for data in (b"", b"\0", b"[" * MOST_BYTES, b"\xff" * MOST_BYTES, bytes(MOST_BYTES)):
        TARGETS[name].run(data)


def _bombs() -> dict[str, tuple[str, bytes]]:
    """Small inputs that ask for much memory, with what must not be in the way of the question."""
    png = bytearray((CORPUS / "image" / "grey.png").read_bytes())
    png[16:24] = b"\0\0\xff\xff" * 2
    dicom = (CORPUS / "dicom" / "explicit").read_bytes()
    for element, value in ((b"\x10\0", b"\x0c\0"), (b"\x11\0", b"\x0a\0")):
        head = b"\x28\0" + element + b"US\x02\0"
        assert head + value in dicom
        dicom = dicom.replace(head + value, head + b"\xff\xff")
    frame = (CORPUS / "frame" / "image").read_bytes()
    assert frame.endswith(b"\x2a\x09" + bytes(range(9)))
    return {
        "constant": ("onnx", (CORPUS / "onnx" / "too-large").read_bytes()),
        "picture": ("image", bytes(png)),
        "radiograph": ("dicom", dicom),
        "payload": ("frame", frame[:-10] + b"\xff\xff\xff\xff\x0f" + bytes(9)),
        "journal": ("journal", b"[" * MOST_BYTES + b"\n"),
        "decoy": ("dicom", (CORPUS / "dicom" / "found-jpeg2000-decoy").read_bytes()),
        "tiles": ("dicom", (CORPUS / "dicom" / "found-jpeg2000-tiles").read_bytes()),
    }


GROWTH = """
import resource, sys
from tests.fuzz.targets import CORPUS, TARGETS

def most():
    whose = resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN
    return [resource.getrusage(one).ru_maxrss for one in whose]

target, bomb = TARGETS[sys.argv[1]], sys.stdin.buffer.read()
for path in (CORPUS / target.name).iterdir():  # loads what it needs
    if not path.name.startswith("found-") and path.read_bytes() != bomb:
        target.run(path.read_bytes())
before = most()
assert not target.run(bomb)
print(*(after - known for after, known in zip(most(), before)))
"""
"""KiB of this process and of those that it starts, with memory that Python does not count."""


def test_lengths_are_checked_before_products() -> None:
    """A kernel of a million numbers would be multiplied for minutes."""
    with pytest.raises(PlanError, match="take 2 numbers"):
        decode_plan((CORPUS / "plan" / "long-kernel").read_bytes())


def test_a_plan_has_one_encoding() -> None:
    good = (CORPUS / "plan" / "smallest").read_bytes()
    decode_plan(good)
    unknown, repeated = b"\x98\x06\x01", good[:2]
    for more in (unknown, repeated):
        with pytest.raises(PlanError, match="not in canonical form"):
            decode_plan(good + more)


def test_a_damaged_artefact_is_not_taken(tmp_path: Path) -> None:
    """Its keys are bytes like any others: the checksum alone tells."""
    name, body = bytes(16), (CORPUS / "registered" / "whole").read_bytes()
    data = body + artefacts._checksum(name, body)
    path = tmp_path / "one.artefact"
    path.write_bytes(data)
    artefacts._parse(path, name)
    path.write_bytes(data[:8] + bytes([data[8] ^ 1]) + data[9:])
    with pytest.raises(StoreError, match="is damaged"):
        artefacts._parse(path, name)


BOMBS = ["constant", "picture", "radiograph", "payload", "journal", "decoy", "tiles"]


@pytest.mark.parametrize("bomb", BOMBS)
def test_sizes_are_checked_before_memory_is_taken(bomb: str) -> None:
    name, data = _bombs()[bomb]
    with suppress(Exception):
        TARGETS[name].run(TARGETS[name].seeds()[0])  # loads what it needs
    tracemalloc.start()
    try:
        assert not TARGETS[name].run(data)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("bomb", BOMBS)
def test_sizes_are_checked_before_native_memory_is_taken(bomb: str) -> None:
    name, data = _bombs()[bomb]
    command = [sys.executable, "-W", "ignore", "-c", GROWTH, name]
    told = subprocess.run(command, input=data, check=True, capture_output=True)
    assert max(map(int, told.stdout.split())) < 32 << 10


def test_files_over_their_limit_are_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They may be as long as a disk; each reader says how many bytes it takes."""
    monkeypatch.setattr(config_files, "_MAX_FILE_BYTES", 10)
    monkeypatch.setattr(manifest, "MAX_MANIFEST_BYTES", 10)
    path = tmp_path / "manifest.json"
    path.write_bytes(b" " * 11)
    readers: list[tuple[Callable[[], object], type[RadiopaqueError], str]] = [
        (lambda: config.load_data_owner(path), ConfigError, "has over 10 bytes"),
        (lambda: manifest.Manifest.load(path), ManifestError, "is larger than 10 bytes"),
        (lambda: identity.read(path, 10), ConfigError, "has over 10 bytes"),
        (lambda: weights_file.read_limited(path, 10), WeightsFileError, "over the 10"),
    ]
    for read, expected, text in readers:
        with pytest.raises(expected, match=text):
            read()
    log = tmp_path / chain.segment_name(1)
    for empty in (log, tmp_path / chain.HEAD_NAME):
        empty.touch()
    os.truncate(log, 64 << 20)
    tracemalloc.start()
    try:
        assert not chain.verify(log).holds
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_every_byte_of_certificates_and_lists() -> None:
    """The highest bit of each is flipped."""
    target = TARGETS["certificates"]
    for seed in target.seeds():
        for place in range(1, len(seed)):
            target.run(seed[:place] + bytes([seed[place] ^ 0x80]) + seed[place + 1 :])


@pytest.mark.parametrize("name", ["found-gdcm-abort", "found-gdcm-abort-jpeg2000"])
def test_damaged_frames_reach_no_decoder_that_aborts(name: str) -> None:
    code = "import sys; from tests.fuzz.targets import TARGETS, CORPUS; "
    code += "TARGETS['dicom'].run((CORPUS / 'dicom' / sys.argv[1]).read_bytes())"
    subprocess.run([sys.executable, "-c", code, name], check=True)


def test_the_corpus_is_what_its_maker_makes() -> None:
    """But for what was found, and what depends on the versions of the libraries that write it."""
    made = {name for name, _ in seeds.seeds()}
    present = {
        f"{path.parent.name}/{path.name}"
        for path in CORPUS.glob("*/*")
        if not path.name.startswith("found-")
    }
    assert made == present
    assert {path.name for path in CORPUS.iterdir()} <= set(TARGETS)


def test_the_runner_finds_what_is_wrong(tmp_path: Path) -> None:
    """Another error than a typed one, and what a target itself calls a defect."""

    def decode(data: bytes) -> None:
        if data.startswith(b"good"):
            return
        raise (IndexError if len(data) % 2 else Defect)("untyped")

    target = Target("wrong", decode, lambda: [b"good seed"])
    outcome = runner.mutate(target, 1, 500, 30.0, tmp_path)
    assert outcome.executions == 500
    assert outcome.defects == 500 - outcome.accepted > 100
    kept = [path.name for path in tmp_path.iterdir()]
    assert len(kept) == 2
    assert all(name.startswith("wrong-") for name in kept)
    # the same seed makes the same inputs
    again = runner.mutate(target, 1, 500, 30.0, tmp_path)
    assert (again.accepted, again.defects) == (outcome.accepted, outcome.defects)
