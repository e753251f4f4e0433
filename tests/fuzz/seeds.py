"""Makes the committed corpus anew: ``python -m tests.fuzz seeds``. Small, and of every kind."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    UID,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    RLELossless,
)

from radiopaque.engine.warm_up import miniature
from radiopaque.graph import plan as p
from radiopaque.wire import frames, messages
from radiopaque.wire.frames import Frame, Kind
from radiopaque.wire.plans import encode_plan
from radiopaque.wire.v1 import services_pb2 as pb
from tests.fuzz.targets import CORPUS, message_types

ID, DIGEST = bytes(range(16)), bytes(range(32))
Seed = tuple[str, bytes]


def write() -> int:
    """Write every seed; returns how many there are."""
    count = 0
    for name, data in seeds():
        path = CORPUS / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        count += 1
    return count


def seeds() -> Iterator[Seed]:
    """(folder/name, bytes) of the whole corpus."""
    for kind in Kind:
        yield f"frame/{kind.name.lower()}", frames.encode(Frame(ID, 3, kind, 1, bytes(range(9))))
    yield "frame/no-fields", frames.encode(Frame(ID, 0, Kind.DONE))
    yield "frame/largest-numbers", frames.encode(Frame(ID, 0xFFFFFFFF, Kind.SHARE, 0xFFFFFFFF))
    yield from _control()
    yield from _plans()
    yield "versions/stated", b"3\n0.2.0\n1763740800.000"
    yield "refusal/limit", b"8\nResourceError\n5\na limit is reached"
    yield "refusal/state", b"9\nSessionStateError\n\nit is BURNT"
    smallest = _smallest()
    body = DIGEST[:16] + DIGEST
    words = np.arange(6, dtype="<u4").tobytes()
    head = b"RPQWGT01" + hashlib.sha256(smallest).digest()
    whole = head + body + words
    yield "weights/whole", whole + hashlib.sha256(whole).digest()
    yield "compiled/whole", len(smallest).to_bytes(2, "big") + smallest + body + words
    name = b"vendor"
    yield (
        "registered/whole",
        b"RPQART01"
        + DIGEST
        + hashlib.sha256(smallest).digest()
        + len(name).to_bytes(2, "big")
        + name
        + smallest,
    )
    yield "masked/whole", words[:16]
    yield from _logs()
    yield from _models()
    yield from _images()
    yield from _configurations()


def _control() -> Iterator[Seed]:
    frame = messages.from_frame(Frame(ID, 3, Kind.OFFLINE, 1, b"payload"))
    header = pb.PrepareHeader(session=ID, plan_digest=DIGEST, artefact=ID, binding=DIGEST)
    entry = pb.ModelEntry(name="lungs", version="1", plan_digest=DIGEST, artefact=ID)
    offered = pb.FetchPlanReply(
        plan=_smallest(),
        plan_digest=DIGEST,
        artefact=ID,
        weights_digest=DIGEST,
        name="lungs",
        version="1",
    )
    reserve = pb.ReserveRequest(session=ID, plan_digest=DIGEST, artefact=ID, key_d=DIGEST, epoch=ID)
    register = pb.RegisterRequest(plan=_smallest(), plan_digest=DIGEST, artefact=ID, key_b=DIGEST)
    samples = {
        "Chunk": pb.Chunk(offset=300, data=b"weights"),
        "DealRequest": pb.DealRequest(session=ID, artefact=ID, key_o=DIGEST),
        "FetchMaskedWeightsRequest": pb.FetchMaskedWeightsRequest(artefact=ID),
        "FetchPlanReply": offered,
        "FetchPlanRequest": pb.FetchPlanRequest(name="lungs", version="1"),
        "Frame": frame,
        "ListModelsReply": pb.ListModelsReply(models=[entry, entry]),
        "ModelEntry": entry,
        "PrepareHeader": header,
        "PrepareReply": pb.PrepareReply(
            crypto_provider_to_model_owner_bytes=300, dealer_seconds=0.5
        ),
        "PrepareRequest": pb.PrepareRequest(header=header),
        "RegisterRequest": register,
        "ReserveReply": pb.ReserveReply(mark=bytes(48)),
        "ReserveRequest": reserve,
    }
    for kind in message_types():
        message = samples.get(kind.__name__, kind())
        yield (
            f"control/{kind.__name__}",
            kind.__name__.encode() + b"\n" + message.SerializeToString(),
        )
    data = pb.PrepareRequest(frame=frame).SerializeToString()
    yield "control/PrepareRequest-frame", b"PrepareRequest\n" + data
    first, second = (
        pb.DealRequest(**one).SerializeToString() for one in ({"session": ID}, {"artefact": ID})
    )
    yield "control/out-of-order", b"DealRequest\n" + second + first


def _smallest() -> bytes:
    """Two pixels, a matrix product, a constant: 6 words of weights."""
    shape = (1, 2)
    steps = (
        p.Step(p.Input(), (), shape, 4, limit=1 << 8),
        p.Step(p.MatrixProduct(2), (0,), shape, 8, limit=1 << 12),
        p.Step(p.AddConstant((2,)), (1,), shape, 8, limit=1 << 12),
        p.Step(p.Output(16, 0), (2,), shape, 8),
    )
    return encode_plan(p.Plan(32, "small", "1", steps, ("a", "b"), "multiclass"))


def _plans() -> Iterator[Seed]:
    yield "plan/smallest", _smallest()
    for ring_bits, compared in ((32, 18), (64, 30)):
        yield f"plan/every-gate-{ring_bits}", encode_plan(miniature(ring_bits, compared))
    from tests.protocol.network import small_plan

    yield "plan/small-network", encode_plan(small_plan())
    described = p.Plan(
        32,
        "described",
        "1",
        (
            p.Step(p.Input(), (), (1, 1, 2, 2), 8, limit=1 << 12),
            p.Step(p.Reshape(), (0,), (1, 4), 8, limit=1 << 12),
            p.Step(p.Output(16, 0), (1,), (1, 4), 8),
        ),
        ("a", "b", "c", "d"),
        "multilabel",
        p.Preprocessing(1, 2, 2, "fit", "bilinear", (0.5,), (0.25,)),
        p.IntendedUse(("CR", "DX"), ("CHEST",), ("PA",), (18.0, 99.0), "adults"),
    )
    yield "plan/described", encode_plan(described)
    kernel: Any = ((1 << 32) - 1,) * 500
    long = p.Convolution(1, kernel, (1, 1), (0, 0, 0, 0), (1, 1))
    steps = (
        p.Step(p.Input(), (), (1, 1, 4, 4), 8, limit=1 << 12),
        p.Step(long, (0,), (1, 1, 4, 4), 8, limit=1 << 12),
        p.Step(p.Output(16, 0), (1,), (1, 1, 4, 4), 8),
    )
    yield "plan/long-kernel", encode_plan(p.Plan(32, "long", "1", steps))
    from radiopaque.engine.crypten import encoding
    from tests.unit.crypten.test_plan import PLAN as crypten_plan

    yield "plan/crypten", encoding.encode_plan(crypten_plan)


def _logs() -> Iterator[Seed]:
    line = {
        "image": "folder/image.png",
        "sha256": DIGEST.hex(),
        "artefact": ID.hex(),
        "created": "2026-11-21T12:00:00+00:00",
        "session": ID.hex(),
        "outputs": [0.5, -1.0],
        "online_seconds": 0.1,
        "prepare_seconds": 0.2,
        "round_trips": 4,
        "online_bytes": {"sent": 5},
        "offline_seconds": 1.0,
        "offline_bytes": {"sent": 7},
    }
    text = json.dumps(line).encode() + b"\n"
    yield "journal/two-lines", text + text.replace(b'"sent": 7', b'"sent": 8')
    yield "journal/deep", b'{"image": ' + b"[" * 4000 + b"\n"
    previous, lines = "0" * 64, b""
    for number in (1, 2, 3):
        entry = {"number": number, "time": "t", "event": "call", "previous": previous}
        one = json.dumps(entry).encode() + b"\n"
        previous, lines = hashlib.sha256(one).hexdigest(), lines + one
    yield "audit/three-lines", f"{3:012d} {previous}\n\n".encode() + lines
    yield "audit/damaged-head", f"{3:012d} none\n\n".encode() + lines
    yield "audit/deep", b"\n\n" + b"[" * 4000 + b"\n"


def _models() -> Iterator[Seed]:
    shape = [1, 1, 4, 4]
    rng = np.random.default_rng(1)

    def constant(name: str, *size: int) -> TensorProto:
        return numpy_helper.from_array(rng.normal(size=size).astype(np.float32), name)

    def model(nodes: list[onnx.NodeProto], constants: list[TensorProto], out: list[int]) -> bytes:
        graph = helper.make_graph(
            nodes,
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, out)],
            constants,
        )
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        return made.SerializeToString()

    node = helper.make_node
    yield (
        "onnx/convolution",
        model(
            [
                node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1]),
                node("BatchNormalization", ["c", "s", "s", "s", "v"], ["b"]),
                node("Relu", ["b"], ["r"]),
                node("MaxPool", ["r"], ["m"], kernel_shape=[2, 2], strides=[2, 2]),
                node("GlobalAveragePool", ["m"], ["a"]),
                node("Flatten", ["a"], ["f"]),
                node("Gemm", ["f", "k"], ["y"]),
            ],
            [
                constant("w", 2, 1, 3, 3),
                constant("s", 2),
                numpy_helper.from_array(np.ones(2, np.float32), "v"),
                constant("k", 2, 2),
            ],
            [1, 2],
        ),
    )
    yield (
        "onnx/shapes",
        model(
            [
                node("Shape", ["x"], ["s"]),
                node("Slice", ["s", "zero", "one"], ["n"]),
                node("Concat", ["n", "rest"], ["to"], axis=0),
                node("Reshape", ["x", "to"], ["f"]),
                node("MatMul", ["f", "k"], ["p"]),
                node("Add", ["p", "k1"], ["q"]),
                node("Clip", ["q", "low", "six"], ["y"]),
            ],
            [
                numpy_helper.from_array(np.array([0]), "zero"),
                numpy_helper.from_array(np.array([1]), "one"),
                numpy_helper.from_array(np.array([-1]), "rest"),
                constant("k", 16, 2),
                constant("k1", 2),
                numpy_helper.from_array(np.array(0, np.float32), "low"),
                numpy_helper.from_array(np.array(6, np.float32), "six"),
            ],
            [1, 2],
        ),
    )
    yield (
        "onnx/constants",
        model(
            [
                node("ConstantOfShape", ["shape"], ["z"]),
                node("Expand", ["one", "shape"], ["e"]),
                node("Tile", ["e", "times"], ["t"]),
                node("NonZero", ["t"], ["i"]),
                node("Cast", ["i"], ["j"], to=TensorProto.FLOAT),
                node("ReduceSum", ["j"], ["k"], keepdims=0),
                node("Mul", ["x", "k"], ["y"]),
            ],
            [
                numpy_helper.from_array(np.array([2, 3]), "shape"),
                numpy_helper.from_array(np.array([1, 2]), "times"),
                numpy_helper.from_array(np.array([1], np.float32), "one"),
            ],
            shape,
        ),
    )
    yield (
        "onnx/too-large",
        model(
            [node("ConstantOfShape", ["shape"], ["z"]), node("Add", ["x", "z"], ["y"])],
            [numpy_helper.from_array(np.array([1 << 14, 1 << 14]), "shape")],
            [1 << 14, 1 << 14],
        ),
    )
    document = {
        "schema": 1,
        "name": "lungs",
        "version": "1",
        "onnx": "model.onnx",
        "sha256": DIGEST.hex(),
        "licence": "Apache-2.0",
        "task": "multiclass",
        "classes": ["a", "b"],
        "preprocessing": {
            "channels": 1,
            "height": 4,
            "width": 4,
            "resize": "fit",
            "interpolation": "bilinear",
            "mean": [0.5],
            "std": [0.25],
        },
        "intended_use": {"modalities": ["CR"], "age_years": [18, 99], "statement": "adults"},
        "ranges": {"x": [-1.0, 1.0]},
    }
    yield "manifest/whole", json.dumps(document).encode()
    yield "manifest/deep", b'{"schema": ' + b"[" * 4000


def _images() -> Iterator[Seed]:
    grey = (np.arange(12 * 10) * 2).astype(np.uint8).reshape(12, 10)
    colour = np.stack([grey, grey.T.reshape(12, 10), 255 - grey], axis=-1)
    for name, array in (("grey", grey), ("colour", colour)):
        for kind in ("PNG", "JPEG"):
            stream = io.BytesIO()
            Image.fromarray(array).save(stream, kind)
            yield f"image/{name}.{kind.lower()}", stream.getvalue()
    stream = io.BytesIO()
    Image.fromarray(grey.astype(np.uint16) * 200).save(stream, "PNG")
    yield "image/deep.png", stream.getvalue()
    words = (np.arange(12 * 10) * 30).astype("<u2")
    native = words.tobytes()
    yield "dicom/explicit", _dicom(native, ExplicitVRLittleEndian)
    yield "dicom/implicit", _dicom(native, ImplicitVRLittleEndian)
    yield "dicom/big-endian", _dicom(words.astype(">u2").tobytes(), ExplicitVRBigEndian)
    for syntax, name, kind in (
        (JPEGBaseline8Bit, "jpeg", "JPEG"),
        (JPEG2000Lossless, "jpeg2000", "JPEG2000"),
    ):
        stream = io.BytesIO()
        Image.fromarray(grey).save(stream, kind, **({"no_jp2": True} if name != "jpeg" else {}))
        yield f"dicom/{name}", _dicom(encapsulate([stream.getvalue()]), syntax, bits=8)
    segments = [b"".join(bytes([9]) + row.tobytes() for row in grey)]
    head = np.array([1, 64, *[0] * 14], "<u4").tobytes()
    yield "dicom/rle", _dicom(encapsulate([head + segments[0]]), RLELossless, bits=8)
    yield "image/in-dicom", _dicom(native, ExplicitVRLittleEndian, table=True)


def _dicom(pixels: bytes, syntax: UID, bits: int = 16, table: bool = False) -> bytes:
    data = Dataset()
    data.SOPClassUID = UID("1.2.840.10008.5.1.4.1.1.1")
    data.SOPInstanceUID = UID("1.2.3")
    data.Modality = "CR"
    data.PatientName = "NOBODY"
    data.PatientAge = "051Y"
    data.StudyDate = "20261121"
    data.Rows, data.Columns, data.SamplesPerPixel = 12, 10, 1
    data.PhotometricInterpretation = "MONOCHROME1"
    data.BitsAllocated = bits
    data.BitsStored = min(bits, 12)
    data.HighBit = data.BitsStored - 1
    data.PixelRepresentation = 0
    data.WindowCenter, data.WindowWidth = "1000", "2000"
    data.RescaleSlope, data.RescaleIntercept = "2", "-100"
    if table:
        item = Dataset()
        item.LUTDescriptor = [4, 0, 16]
        item.LUTData = np.arange(4, dtype="<u2").tobytes()
        item["LUTDescriptor"].VR = "US"
        item["LUTData"].VR = "OW"
        data.VOILUTSequence = [item]
    data.PixelData = pixels
    data["PixelData"].VR = "OB" if syntax.is_compressed else "OW"
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = syntax
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID
    stream = io.BytesIO()
    data.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def _configurations() -> Iterator[Seed]:
    from radiopaque.certificates import Role
    from radiopaque.config import example

    for role in Role:
        yield f"config/{role}", example(role).encode()
    yield "config/deep", b"store = " + b"[" * 4000
