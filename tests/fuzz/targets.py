"""What is fuzzed: each target takes any bytes to a decoder, as they would come from outside.

A target returns, or raises a RadiopaqueError; whatever else comes out of it is a defect. Decoders
that admit one encoding of each value are asked to give the same bytes back.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from radiopaque import errors
from radiopaque.errors import RadiopaqueError

CORPUS = Path(__file__).parent / "corpus"
Decode = Callable[[bytes], None]


class Defect(Exception):
    """A decoder took what it must not."""


@dataclass(frozen=True)
class Target:
    """``decode`` and the seeds that mutations begin with; ``made`` adds some at run time."""

    name: str
    decode: Decode
    made: Callable[[], list[bytes]] = list

    def seeds(self) -> list[bytes]:
        """The committed corpus, sorted, and what is made."""
        found = [path.read_bytes() for path in sorted((CORPUS / self.name).glob("*"))]
        return [*found, *self.made()]

    def run(self, data: bytes) -> bool:
        """Whether ``data`` was accepted. Raises what is a defect."""
        try:
            self.decode(data)
        except RadiopaqueError as error:
            if type(error) is RadiopaqueError:
                raise Defect("the error has no type of its own") from error
            return False
        return True


@cache
def folder() -> Path:
    """A private folder of this process for decoders of files, in memory where there is one."""
    memory = Path("/dev/shm")  # several times as fast as a disk
    made = tempfile.TemporaryDirectory(prefix="fuzz-", dir=memory if memory.is_dir() else None)
    _folders.append(made)
    return Path(made.name)


_folders: list[tempfile.TemporaryDirectory[str]] = []


def clean() -> None:
    """Remove that folder, in a process that ends without its interpreter's farewells."""
    for made in _folders:
        made.cleanup()


def _file(name: str, data: bytes, mode: int = 0o600) -> Path:
    path = folder() / name
    path.parent.mkdir(mode=0o700, exist_ok=True)
    path.write_bytes(data)
    path.chmod(mode)
    return path


def _same(found: bytes, data: bytes) -> None:
    if found != data:
        raise Defect(f"another encoding of the same: {found[:64].hex()}")


# --- the wire ---------------------------------------------------------------------------------


def frame(data: bytes) -> None:
    """A frame of the online phase."""
    from radiopaque.wire import frames

    _same(frames.encode(frames.decode(data)), data)


@cache
def message_types() -> tuple[type, ...]:
    """Every message of the two services, in alphabetical order of their names."""
    from radiopaque.wire.v1 import services_pb2 as pb

    return tuple(getattr(pb, name) for name in sorted(pb.DESCRIPTOR.message_types_by_name))


def control(data: bytes) -> None:
    """Messages around the frames: a name, a newline, the message. Some fields have a length."""
    from radiopaque.ledger import Mark
    from radiopaque.wire import messages

    name, _, body = data.partition(b"\n")
    types = {kind.__name__.encode(): kind for kind in message_types()}
    kind = types.get(name) or message_types()[sum(name) % len(types)]
    decoded: Any = messages.decode(kind, body)
    _same(messages.encode(decoded), body)
    checks = {
        "session": messages.session_id,
        "artefact": messages.artefact_id,
        "epoch": messages.epoch,
        "mark": Mark.decode,
        "plan_digest": lambda value: messages.digest(value, "plan digest"),
        "key_d": lambda value: messages.key(value, "key_D"),
    }
    for field, check in checks.items():
        if hasattr(decoded, field):
            check(getattr(decoded, field))
    if kind.__name__ == "PrepareRequest" and decoded.WhichOneof("part") == "frame":
        decoded = decoded.frame
    if type(decoded).__name__ == "Frame":
        again = messages.from_frame(messages.to_frame(decoded))
        _same(messages.encode(again), messages.encode(decoded))


def plan(data: bytes) -> None:
    """A plan of either engine."""
    from radiopaque.engine.plans import decode_any

    decode_any(data)


def versions(data: bytes) -> None:
    """What a peer states of itself with a call."""
    from radiopaque import versions as stated

    lines = data.decode("latin-1").split("\n")
    names = [name for name, _ in stated.own()]
    metadata = [(names[i % len(names)], line) for i, line in enumerate(lines)]
    with suppress(errors.VersionError):
        stated.check(stated.stated(metadata), "model-owner", "data-owner")


def refusal(data: bytes) -> None:
    """How a server ends a call: status, class of the error, seconds and text, a line each."""
    from radiopaque.transport import status
    from radiopaque.transport.tls import grpc

    code, name, seconds, *text = [*data.decode("utf-8", "replace").split("\n"), "", "", ""]
    codes = list(grpc.StatusCode)

    class Ended(grpc.RpcError):  # type: ignore[misc]
        def code(self) -> grpc.StatusCode:
            return codes[sum(code.encode()) % len(codes)]

        def details(self) -> str:
            return "\n".join(text)

        def trailing_metadata(self) -> tuple[tuple[str, str], ...]:
            return (status.ERROR_KEY, name), (status.RETRY_KEY, seconds)

    found = status.from_rpc_error(Ended(), "model owner", "localhost:7302")
    if not all(c.isprintable() or c == "\n" for c in str(found)):
        raise Defect("control characters of a peer")


# --- files of a party --------------------------------------------------------------------------


def weights(data: bytes) -> None:
    """A compiled folder whose weights file is this: as it is, and with its digests put right."""
    import hashlib

    from radiopaque.engine.weights_file import MAGIC, PLAN_FILE, WEIGHTS_FILE, read_compiled

    public = (CORPUS / "plan" / "smallest").read_bytes()
    compiled = folder() / "compiled"
    if not compiled.exists():
        _file(f"compiled/{PLAN_FILE}", public)
        _file(f"compiled/{WEIGHTS_FILE}", b"")
    path = compiled / WEIGHTS_FILE
    path.write_bytes(data)
    with suppress(RadiopaqueError):
        read_compiled(compiled)
    start = len(MAGIC)
    body = data[:start] + hashlib.sha256(public).digest() + data[start + 32 : -32]
    path.write_bytes(body + hashlib.sha256(body).digest())
    read_compiled(compiled)


def compiled(data: bytes) -> None:
    """A compiled folder: length of the plan (2 bytes), plan, weights file with its digests."""
    import hashlib

    from radiopaque.engine.weights_file import MAGIC, PLAN_FILE, WEIGHTS_FILE, read_compiled
    from radiopaque.graph.plan import plan_digest

    length = int.from_bytes(data[:2], "big")
    public, private = data[2 : 2 + length], data[2 + length :]
    body = MAGIC + plan_digest(public) + private
    _file(f"both/{PLAN_FILE}", public)
    _file(f"both/{WEIGHTS_FILE}", body + hashlib.sha256(body).digest())
    read_compiled(folder() / "both")


@cache
def _material() -> tuple[object, object, bytes, object, Path, bytes]:
    import numpy as np

    from model_owner.material import MaterialStore
    from radiopaque.engine.material import region_frames, region_sizes
    from radiopaque.prg import SecretKey
    from radiopaque.wire.frames import Kind
    from radiopaque.wire.plans import decode_plan

    plan = decode_plan((CORPUS / "plan" / "smallest").read_bytes())
    store = MaterialStore(folder() / "material")
    key, session = SecretKey(bytes(32)), bytes(16)
    for kind in (Kind.CORRECTION, Kind.OFFLINE):
        with store.writer(plan, session, kind, key) as writer:
            for gate, size in region_sizes(plan, kind).items():
                for one in region_frames(session, gate, kind, np.zeros(size, np.uint8)):
                    writer.accept(one)
            writer.finish()
    path = folder() / "material" / f"{session.hex()}.correction"
    return plan, store, session, key, path, path.read_bytes()


def material(data: bytes) -> None:
    """A file of prepared material; what is damaged must not be taken."""
    plan, store, session, key, path, good = _material()
    path.write_bytes(data)
    loaded = store.load(plan, session, key)  # type: ignore[attr-defined]
    for message in (loaded.corrections, loaded.offline):
        for _ in message:
            pass
    _same(good, data)


def registered(data: bytes) -> None:
    """A file of the crypto provider on an artefact: as it is, and with its checksum put right."""
    from crypto_provider import artefacts

    known = bytes(16)
    with suppress(RadiopaqueError):
        artefacts._parse(_file("one.artefact", data), known)
    whole = data + artefacts._checksum(known, data)
    artefacts._parse(_file("one.artefact", whole), known)


def masked(data: bytes) -> None:
    """F, after its digest was found right."""
    from radiopaque.engine.artefact import MaskedWeights
    from radiopaque.wire.plans import decode_plan

    plan = decode_plan((CORPUS / "plan" / "smallest").read_bytes())
    MaskedWeights.parse(plan, data)


def journal(data: bytes) -> None:
    """The journal of a submission."""
    from data_owner.journal import Journal

    with Journal(_file("journal.jsonl", data)):
        pass


def audit(data: bytes) -> None:
    """An audit log: its head up to the first empty line, and one segment."""
    from radiopaque.audit import chain

    head, _, lines = data.partition(b"\n\n")
    _file("audit/head", head + b"\n" if head else b"")
    path = _file(f"audit/{chain.segment_name(1)}", lines)
    chain.verify(path.parent)


# --- models ------------------------------------------------------------------------------------


def onnx(data: bytes) -> None:
    """A model, through import, passes and lowering to a plan."""
    from radiopaque.graph.compile import compile_model

    compile_model(_file("model.onnx", data), ring_bits=64)


def manifest(data: bytes) -> None:
    """What stands beside a model."""
    from radiopaque.graph.manifest import Manifest

    Manifest.parse(data, folder())


# --- images ------------------------------------------------------------------------------------

MOST_PIXELS = 1 << 18


def dicom(data: bytes) -> None:
    """A DICOM file, to the network's input."""
    from data_owner.dicom import read_dicom

    _preprocessed(read_dicom(data, max_pixels=MOST_PIXELS))


def image(data: bytes) -> None:
    """A file of any of the formats, to the network's input."""
    from data_owner.images import read_image

    _preprocessed(read_image(_file("image", data), max_pixels=MOST_PIXELS))


def _preprocessed(picture: object) -> None:
    from data_owner.preprocess import preprocess
    from radiopaque.graph.plan import Preprocessing

    for resize in ("stretch", "fit", "crop"):
        spec = Preprocessing(1, 8, 12, resize, "bilinear", (0.5,), (0.25,))  # type: ignore[arg-type]
        found = preprocess(picture, spec)  # type: ignore[arg-type]
        if found.shape != (1, 8, 12) or not abs(found).max() <= 2.0:
            raise Defect(f"input {found.shape}, up to {abs(found).max()}")


# --- configuration and certificates ------------------------------------------------------------


def config(data: bytes) -> None:
    """The file of a party, read as that of each."""
    from radiopaque import config as files

    path = _file("party.toml", data)
    refusals = []
    for load in (files.load_crypto_provider, files.load_model_owner, files.load_data_owner):
        try:
            load(path)
        except RadiopaqueError as error:
            refusals.append(error)
    if len(refusals) == 3:
        raise refusals[0]


_PEM = (b"CERTIFICATE", b"PRIVATE KEY", b"CERTIFICATE", b"X509 CRL")
_NAMES = ("one.crt", "one.key", "ca.crt", "ca.crl")


@cache
def _pair() -> tuple[bytes, ...]:
    """DER of a clinic's certificate and key, its authority and a revocation list."""
    from cryptography import x509
    from cryptography.hazmat.primitives import serialization as serial

    from radiopaque.certificates import Role, authority

    made = folder() / "made"
    files = authority.init_directory(made)[Role.DATA_OWNER]
    other = authority.issue(made, Role.DATA_OWNER, "other")
    crl = x509.load_pem_x509_crl(authority.revoke(made, other.certificate).read_bytes())
    key = serial.load_pem_private_key(files.key.read_bytes(), None)
    return (
        x509.load_pem_x509_certificate(files.certificate.read_bytes()).public_bytes(
            serial.Encoding.DER
        ),
        key.private_bytes(serial.Encoding.DER, serial.PrivateFormat.PKCS8, serial.NoEncryption()),
        x509.load_pem_x509_certificate(files.ca.read_bytes()).public_bytes(serial.Encoding.DER),
        crl.public_bytes(serial.Encoding.DER),
    )


def certificates(data: bytes) -> None:
    """One of a party's four files: the first byte says which, and whether in PEM or bare."""
    import base64

    from radiopaque.certificates import Role, load_identity

    good = _pair()
    which = (data[0] if data else 0) % 4
    bare = bool(data and data[0] & 0x80)
    paths = []
    for i, der in enumerate(good):
        body = data[1:] if i == which else der
        if not (bare and i == which):
            lines = base64.encodebytes(body)
            label = _PEM[i]
            body = b"-----BEGIN " + label + b"-----\n" + lines + b"-----END " + label + b"-----\n"
        paths.append(_file(f"tls/{_NAMES[i]}", body))
    certificate, key, ca, crl = paths
    load_identity(certificate, key, ca, Role.DATA_OWNER, crl)


def caller(data: bytes) -> None:
    """The certificate of a caller: who it is, and whether it still stands."""
    from cryptography import x509

    from radiopaque.certificates.identity import peer_identity
    from radiopaque.certificates.parsing import MALFORMED

    try:
        certificate = x509.load_der_x509_certificate(data)
    except MALFORMED:
        return  # TLS has refused it
    peer_identity(certificate)


def _certificate_seeds() -> list[bytes]:
    good = _pair()
    return [bytes([i]) + der for i, der in enumerate(good)] + [b"\x83" + good[3]]


TARGETS = {
    target.name: target
    for target in (
        Target("frame", frame),
        Target("control", control),
        Target("plan", plan),
        Target("versions", versions),
        Target("refusal", refusal),
        Target("weights", weights),
        Target("compiled", compiled),
        Target("material", material, lambda: [_material()[-1]]),
        Target("registered", registered),
        Target("masked", masked),
        Target("journal", journal),
        Target("audit", audit),
        Target("onnx", onnx),
        Target("manifest", manifest),
        Target("dicom", dicom),
        Target("image", image),
        Target("config", config),
        Target("certificates", certificates, _certificate_seeds),
        Target("caller", caller, lambda: [_pair()[0], _pair()[2]]),
    )
}
