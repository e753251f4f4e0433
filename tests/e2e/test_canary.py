"""Secrets that are known to the test are looked for in everything that three parties leave behind.

The parties are processes that log at DEBUG. They do what works and what fails: good sessions,
broken ones, damaged material, bad keys, bad pictures, one that is decoded in a process of its own,
dealer audits that find nothing, something, and another key; and operators look at all of it. What
each looks for is first found where it belongs, so that a search that cannot find anything does not
pass.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from data_owner.images import read_image
from data_owner.preprocess import preprocess
from radiopaque.certificates import Role
from radiopaque.engine.artefact import mask_weights
from radiopaque.errors import DealerError, MessageValueError, RadiopaqueError
from radiopaque.prg import KEY_BYTES, SecretKey
from radiopaque.wire.frames import Frame, Kind
from tests.e2e.conftest import write_dicom
from tests.e2e.networks import lungs
from tests.e2e.parties import Clinic, Deployment, Serving, contents, free_port, until
from tests.faults.hand import SECONDS, Hand, Tampered, raw_call
from tests.faults.test_messages import only, shortened
from tests.faults.test_remains import kept

WATCHED = Path(__file__).with_name("watched.py")
PATIENT = {
    "PatientName": "Zyxwvut^Canary",
    "PatientID": "CANARY-4711-ID",
    "PatientBirthDate": "19370223",
    "PatientAddress": "Canary Lane 99",
    "AccessionNumber": "ACC-CANARY-31",
    "InstitutionName": "Canary General",
    "ReferringPhysicianName": "Quack^Canary",
}


def spellings(secret: bytes) -> list[bytes]:
    """Some bytes as they could appear anywhere: as they are, and as text of the usual kinds."""
    cut = secret[:16]
    return [
        cut,
        cut.hex().encode(),
        cut.hex().upper().encode(),
        base64.b64encode(cut)[:20],
        base64.urlsafe_b64encode(cut)[:20],
        repr(cut[:10])[2:-1].encode(),
        json.dumps(repr(cut[:10])[2:-1])[1:-1].encode(),
        str(list(cut[:10]))[1:-1].encode(),
        " ".join(str(byte) for byte in cut[:10]).encode(),
    ]


def pieces(data: bytes) -> Iterator[bytes]:
    """Sixteen bytes each, from all over; those that say little are left out."""
    step = max(16, len(data) // 40 // 4 * 4)
    for start in range(0, len(data) - 16, step):
        if len(set(data[start : start + 16])) >= 5:
            yield data[start : start + 16]


def numbers(values: np.ndarray) -> list[bytes]:
    """An array's values as Python and numpy print them."""
    flat = values.reshape(-1)[:6]
    return [str(flat.tolist())[1:-1].encode(), str(flat)[1:-1].encode()]


@dataclass
class Secrets:
    """What must be nowhere, by kind."""

    texts: dict[str, list[bytes]] = field(default_factory=dict)

    def add(self, kind: str, data: bytes, values: np.ndarray | None = None) -> None:
        found = self.texts.setdefault(kind, [])
        cut = [data] if len(data) == KEY_BYTES else list(pieces(data))
        assert cut, f"{kind} has nothing to look for"
        found += [spelling for piece in cut for spelling in spellings(piece)]
        found += [] if values is None else numbers(values)

    def within(self, data: bytes, kinds: Iterable[str] | None = None) -> list[str]:
        """The kinds that are found."""
        chosen = list(kinds or self.texts)
        return [kind for kind in chosen if any(text in data for text in self.texts[kind])]


@dataclass
class Run:
    """Three parties that ran, the secrets, and what they left behind."""

    folder: Path
    deployment: Deployment
    secrets: Secrets
    clinic: Clinic
    said: list[bytes] = field(default_factory=list)
    """What commands printed, errors said, and metrics showed."""

    def traces(self) -> Iterator[tuple[Path, bytes]]:
        """Every log, audit line, trace, temporary file."""
        yield from contents([self.folder / "watched", self.folder / "temporary"])
        for party in (self.deployment.owner, self.deployment.provider):
            yield party.log, party.log.read_bytes()
            yield from contents([party.store / "audit"])
        yield from contents([self.clinic.store / "audit"])


def watched(folder: Path, name: str, words: list[str]) -> list[str]:
    place = folder / "watched" / name
    place.mkdir(parents=True, exist_ok=True)
    return [sys.executable, str(WATCHED), str(place), *words]


def watch(party: Serving, folder: Path) -> int:
    """Have a server run watched and with metrics; returns the port of these."""
    port = free_port()
    words = [str(party.role), "serve", "--config", str(party.config)]
    party._command = lambda: watched(folder, str(party.role), words)  # type: ignore[method-assign]
    party._head += f'metrics = "127.0.0.1:{port}"\n'
    party.write_config("")
    return port


def command(run: Run, *words: object) -> int:
    """A command on the clinic's machine; its exit code."""
    text = [str(word) for word in words]
    done = subprocess.run(
        watched(run.folder, "data-owner", text), capture_output=True, timeout=60, check=False
    )
    run.said += [done.stdout, done.stderr]
    return done.returncode


def clinic(run: Run, name: str, *more: object) -> list[object]:
    return ["data-owner", name, *more, "--config", run.clinic.config]


def submit(run: Run, picture: Path, *more: object) -> int:
    return command(run, *clinic(run, "submit", picture, *more))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    folder = tmp_path_factory.mktemp("canary")
    (folder / "temporary").mkdir()
    network = lungs()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(folder / "temporary"))
        patch.setenv("GRPC_VERBOSITY", "DEBUG")
        deployment = Deployment(folder, {"lungs": network})
        ports = [watch(party, folder) for party in (deployment.owner, deployment.provider)]
        with deployment:
            run = Run(folder, deployment, Secrets(), deployment.clinic("ward"))
            plant(run)
            happen(run)
            for port in ports:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as page:
                    run.said.append(page.read())
            for party in (deployment.owner, deployment.provider):
                assert party.stop() == 0
            yield run


def plant(run: Run) -> None:
    """The picture, and what the vendor and its authority keep."""
    secrets = run.secrets
    pixels = np.random.default_rng(7).integers(0, 256, (48, 48), np.uint8)
    write_dicom(run.folder / "picture.dcm", pixels, **PATIENT)
    write_dicom(run.folder / "cut.dcm", pixels[:9].repeat(3, 1), Rows=480, **PATIENT)
    compressed = pixels[::-1].copy()
    write_dicom(run.folder / "plain.dcm", compressed, **PATIENT)
    write_lossless(run.folder / "plain.dcm", run.folder / "lossless.dcm")
    secrets.texts["patient"] = [value.encode() for value in PATIENT.values()]
    secrets.texts["patient"] += [value.lower().encode() for value in PATIENT.values()]
    secrets.add("pixels", pixels.tobytes(), pixels)
    secrets.add("pixels", compressed.tobytes(), compressed)
    spec = run.deployment.networks["lungs"].plan.preprocessing
    assert spec is not None
    tensor = preprocess(read_image(run.folder / "picture.dcm"), spec)
    secrets.add("image", tensor.tobytes(), tensor)
    compiled = run.deployment.compiled["lungs"]
    for words in compiled.weights.linear.values():
        secrets.add("weights", words.tobytes(), words.view(np.int32))
    for words in compiled.weights.constants.values():
        shown = [*spellings(words.tobytes()), *numbers(words.view(np.int32))]
        secrets.texts["weights"] += shown
    for files in run.deployment.certificates.values():
        body = b"".join(files.key.read_bytes().splitlines()[1:-1])
        secrets.add("private keys", base64.b64decode(body))
        secrets.texts["private keys"].append(body[40:70])
    secrets.add("keys", compiled.key.key_b.reveal())
    secrets.add("F", mask_weights(compiled.plan, compiled.weights, compiled.key))


def write_lossless(plain: Path, compressed: Path) -> None:
    """The same picture as JPEG Lossless, which the clinic decodes in a process of its own."""
    import gdcm

    reader, change, writer = (
        gdcm.ImageReader(),
        gdcm.ImageChangeTransferSyntax(),
        gdcm.ImageWriter(),
    )
    reader.SetFileName(str(plain))
    assert reader.Read()
    change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.JPEGLosslessProcess14_1))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    writer.SetFileName(str(compressed))
    assert writer.Write()


def look(run: Run) -> None:
    """What operators look with, at all parties; and a clinic's audit of the crypto provider."""
    words = clinic(run, "prepare", "--count", 2)
    words += ["--then", *clinic(run, "audit", "--share", "0.5")]
    for party in (run.deployment.owner, run.deployment.provider):
        for name in ("top", "usage"):
            words += ["--then", name, party.role, "--config", party.config]
            words += ["--json"] * (name == "top")
        words += ["--then", "doctor", party.role, "--config", party.config]
        words += ["--then", "audit", "verify", party.store / "audit"]
    words += ["--then", "doctor", Role.DATA_OWNER, "--config", run.clinic.config]
    words += ["--then", "audit", "verify", run.clinic.store / "audit"]
    assert command(run, *words) == 0


def happen(run: Run) -> None:
    """Sessions through the command, and sessions by hand whose every message is remembered."""
    secrets, deployment, said = run.secrets, run.deployment, run.said
    reports = run.folder / "reports"
    assert submit(run, run.folder / "picture.dcm", "--output", reports) == 0
    # which its journal answers
    assert submit(run, run.folder / "picture.dcm", "--output", reports) == 0
    assert submit(run, run.folder / "lossless.dcm", "--output", reports) == 0
    assert submit(run, run.folder / "cut.dcm") == 4
    assert submit(run, run.folder / "clinics" / "ward.toml") == 4
    by_hand = deployment.clinic("by-hand")

    def remember(frame: Frame) -> list[Frame]:
        data = bytes(frame.payload)
        if len(data) > 64:
            secrets.add("shares", data)
        return [frame]

    def failing(hand: Hand, change: object) -> None:
        with pytest.raises(RadiopaqueError) as caught:
            hand.run(Tampered(hand.start(), change), images)  # type: ignore[arg-type]
        said.append(f"{caught.value!r} {caught.value}".encode())

    def new(hand: Hand) -> None:
        hand.renew()
        hand.prepare()
        for key in [hand.key_d.reveal(), *kept(deployment.owner.store, hand.session)]:
            secrets.add("keys", key)
        for frame in hand.frames:
            remember(frame)

    images = np.random.default_rng(8).uniform(-2, 2, deployment.networks["lungs"].images().shape)
    secrets.add("image", images.tobytes(), images)
    secrets.add("image", images.astype(np.float32).tobytes(), images.astype(np.float32))
    with Hand(deployment, by_hand, "lungs") as hand:
        new(hand)
        hand.run(Tampered(hand.start(), remember), images)
        new(hand)
        failing(hand, only(Kind.SELECTION, lambda frame: remember(shortened(frame))))
        new(hand)
        damaged = deployment.material(hand.session)[0]
        data = bytearray(damaged.read_bytes())
        data[len(data) // 2] ^= 1
        damaged.write_bytes(data)
        failing(hand, remember)
        new(hand)
        said.append(audited(hand, SecretKey.generate().reveal(), MessageValueError))
        hand.renew()
        hand.reserve(key_d=SecretKey.generate().reveal())
        hand.upload()
        secrets.add("keys", hand.key_d.reveal())
        said.append(audited(hand, hand.key_d.reveal(), DealerError))
        long = SecretKey.generate().reveal()
        secrets.add("keys", long)
        hand.renew()
        for frame in hand.frames:
            remember(frame)
        for attempt in (
            lambda: hand.reserve(key_d=long + b"!"),
            lambda: raw_call(hand.provider, "Reserve", b"\x0a" + long),
            lambda: hand.start(SECONDS),
            lambda: hand.upload(hand.requests(hand.frames[1:])),
        ):
            with pytest.raises(RadiopaqueError) as caught:
                attempt()
            said.append(f"{caught.value!r} {caught.value}".encode())
    until(lambda: "inference broken off" in deployment.owner.log.read_text())
    look(run)


def audited(hand: Hand, key: bytes, expected: type[RadiopaqueError]) -> bytes:
    """What the model owner says of a session that is opened with some key."""
    channel = hand.owner.open("Audit", SECONDS)
    channel.send(Frame(hand.session, 0, Kind.START, 0, hand.mark.encode()))
    channel.receive()
    channel.send(Frame(hand.session, 0, Kind.KEY, 0, key))
    with pytest.raises(expected) as caught:
        channel.receive()
    channel.close()
    return f"{caught.value!r} {caught.value}".encode()


def test_the_search_finds_what_is_there(run: Run) -> None:
    secrets = run.secrets
    assert set(secrets.texts) == {
        "patient",
        "pixels",
        "image",
        "weights",
        "private keys",
        "keys",
        "F",
        "shares",
    }
    picture = (run.folder / "picture.dcm").read_bytes()
    assert secrets.within(picture) == ["patient", "pixels"]
    compiled = (run.folder / "compiled" / "lungs" / "weights.bin").read_bytes()
    assert secrets.within(compiled) == ["weights", "keys"]
    masked = next((run.clinic.store / "models").iterdir()).read_bytes()
    assert secrets.within(masked) == ["F"]
    for text in secrets.texts["keys"]:
        assert secrets.within(b"... " + text + b" ...", ["keys"])


def test_parties_talked_while_they_were_watched(run: Run) -> None:
    """At DEBUG, with failures; otherwise there was nothing to find."""
    owner, provider = (p.log.read_text() for p in (run.deployment.owner, run.deployment.provider))
    for text in ("session prepared", "inference served", "inference broken off", "call refused"):
        assert text in owner
    assert "a call failed inside" in owner
    assert "session audited" in owner
    assert "session dealt" in provider
    said = b"".join(run.said)
    assert b"radiopaque_calls" in said
    assert b"TruncatedPixelDataError" in said
    assert b"NotAnImageError" in said
    assert b"session(s) opened and right" in said
    for looked in (b"top model-owner", b"usage crypto-provider", b"audit verify"):
        assert looked + b": exit 0" in said
    assert said.count(b"doctor ") == 3
    assert b"DealerError" in said
    assert "-m data_owner.apart" in (run.folder / "watched/data-owner/children").read_text()
    seen = {path.name for path, _ in run.traces()}
    assert {"opened", "traces", "head", "model-owner.log", "crypto-provider.log"} <= seen


def test_no_log_metric_trace_or_error_holds_a_secret(run: Run) -> None:
    for path, data in run.traces():
        assert run.secrets.within(data) == [], path
        assert run.secrets.within(str(path).encode()) == [], path
    for text in run.said:
        assert run.secrets.within(text) == [], text[:300]


def test_no_store_holds_what_is_not_its_partys(run: Run) -> None:
    """Prepared material is sealed, and nothing of an image reaches any disk but the clinic's."""
    shared = ("patient", "pixels", "image", "weights", "private keys", "shares")
    stores = {
        run.deployment.owner.store: (*shared, "F"),
        run.deployment.provider.store: (*shared, "F"),
        run.clinic.store: shared,
    }
    for store, kinds in stores.items():
        for path, data in contents([store]):
            assert run.secrets.within(data, kinds) == [], path
            assert run.secrets.within(path.name.encode()) == [], path


def test_reports_name_no_patient(run: Run) -> None:
    """Nor does the journal beside them, and neither holds anything of the picture."""
    names = set()
    for path, data in contents([run.folder / "reports"]):
        names.add(path.name)
        assert run.secrets.within(data) == [], path
    assert len(names) >= 3


def test_files_are_written_in_stores_and_nowhere_else(run: Run) -> None:
    """No temporary files at all."""
    assert list((run.folder / "temporary").iterdir()) == []
    allowed = [
        run.deployment.owner.store,
        run.deployment.provider.store,
        run.clinic.store,
        run.folder / "reports",
        run.folder / "watched",
    ]
    for opened in (run.folder / "watched").glob("*/opened"):
        for name in set(opened.read_text().splitlines()):
            path = Path(name)
            inside = any(path.is_relative_to(folder) for folder in allowed)
            # compiled code, of Python and of the kernels, which never holds data
            code = path.suffix in (".nbi", ".nbc", ".pyc") or "numba" in name.lower()
            code = code or "__pycache__" in path.parts
            assert inside or code or name == os.devnull, name
