"""No patient field leaves the file: a canary in every place where one could sit."""

from __future__ import annotations

import logging
import subprocess
import sys
import traceback
import warnings
from datetime import date

import numpy as np
import pytest

from data_owner.dicom import read_dicom
from data_owner.images import GreyImage, ImageMeta, read_image
from data_owner.intended_use import check
from data_owner.preprocess import picture_png, preprocess
from data_owner.report import InferenceReport, write_report
from radiopaque.errors import DicomError, ImageError
from radiopaque.graph.plan import IntendedUse, Preprocessing

PICTURE = np.arange(600, dtype=np.uint16).reshape(20, 30)
CANARY = "Zebrafinch"
PATIENT = {
    "PatientName": f"{CANARY}^Anna",
    "PatientID": f"{CANARY}-4711",
    "PatientBirthDate": "20200229",
    "PatientAddress": f"{CANARY} Lane 5",
    "PatientComments": CANARY,
    "InstitutionName": CANARY,
    "ReferringPhysicianName": CANARY,
    "AccessionNumber": CANARY,
    "OtherPatientIDs": CANARY,
    "StudyDate": "20231105",
    "StudyDescription": CANARY,
    "PatientAge": "003Y",
}
CARD = IntendedUse(("CR",), ("CHEST",), ("PA",), (1.0, 5.0), "Chest radiographs of children.")
SPEC = Preprocessing(1, 8, 8, "stretch", "bilinear", (0.5,), (0.25,))


def leaks(text: str) -> list[str]:
    """Everything about the patient that ``text`` gives away."""
    secrets = (CANARY, CANARY.upper(), "4711", "20200229", "2020-02-29", "20231105", "003Y")
    return [secret for secret in secrets if secret in text]


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2", "1.2.840.10008.1.2.1"])
def test_nothing_of_the_patient_is_kept_or_reported(make_dicom, tmp_path, syntax, recwarn) -> None:
    path = tmp_path / "a.dcm"
    data = make_dicom(PICTURE, syntax=syntax, **PATIENT)
    assert data.count(CANARY.encode()) == 9
    path.write_bytes(data)
    image = read_image(path)
    assert image.meta.age_years == 3
    assert leaks(repr(image) + repr(image.meta) + str(vars(image.meta))) == []
    assert "age_years" not in repr(image.meta)
    deviations = check(image.meta, CARD)
    tensor = preprocess(image, SPEC)
    written = write_report(
        tmp_path / "out",
        InferenceReport(
            image=path.name,
            model="m",
            version="1",
            statement=CARD.statement,
            task="multiclass",
            classes=("a", "b"),
            probabilities=(0.5, 0.5),
            logits=(0.0, 0.0),
            warnings=tuple(deviations),
            online_seconds=1.0,
            prepare_seconds=1.0,
            offline_seconds=1.0,
            round_trips=44,
            online_bytes={},
            offline_bytes={},
            plan_digest="00",
            session_id="00",
            created=date(2026, 1, 1).isoformat(),
            picture_png=picture_png(tensor, SPEC),
        ),
    )
    assert leaks(" ".join(deviations)) == []
    for file in written:
        assert leaks(file.read_text()) == []
        assert leaks(file.read_bytes().decode("latin-1")) == []
    assert leaks(" ".join(str(warning.message) for warning in recwarn)) == []


def test_the_fields_that_are_kept_are_these() -> None:
    assert set(ImageMeta.__dataclass_fields__) == {
        "source",
        "modality",
        "body_part",
        "view",
        "age_years",
        "photometric",
        "grey_scale",
    }


def test_text_typed_into_a_code_is_not_quoted(make_dicom) -> None:
    fields = ("Modality", "BodyPartExamined", "ViewPosition", "PatientAge")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        data = make_dicom(PICTURE, **dict.fromkeys(fields, f"{CANARY}, Anna"))
    meta = read_dicom(data).meta
    assert (meta.modality, meta.body_part, meta.view, meta.age_years) == (None,) * 4
    assert leaks(" ".join(check(meta, CARD))) == []


@pytest.mark.parametrize(
    "keyword",
    [
        "NumberOfFrames",
        "WindowCenter",
        "RescaleSlope",
        "PhotometricInterpretation",
        "VOILUTFunction",
    ],
)
def test_text_typed_into_another_field_is_not_quoted(make_dicom, keyword) -> None:
    others = {"WindowCenter": 9, "WindowWidth": 9, "VOILUTFunction": "LINEAR"}
    placeholder = {"PhotometricInterpretation": "MONOCHROME1", "VOILUTFunction": "LINEAR_EXACT"}
    data = make_dicom(PICTURE, **(others | {keyword: placeholder.get(keyword, 1234567890)}))
    old = str(placeholder.get(keyword, 1234567890)).encode()
    old = next(text for text in (old + b".0", old) if text in data)
    damaged = data.replace(old, CANARY.encode().ljust(len(old))[: len(old)])
    assert CANARY.encode() in damaged
    with pytest.raises(ImageError) as caught:
        read_dicom(damaged)
    assert leaks(str(caught.value)) == []


def _stretched(data: bytes, element: bytes, length: int) -> bytes:
    """``data`` with a short element made to swallow the ``length`` bytes that follow."""
    start = data.index(element) + len(element)
    return data[:start] + length.to_bytes(2, "little") + data[start + 2 :]


@pytest.mark.parametrize(
    "element",
    [b"\x02\x00\x10\x00UI", b"\x08\x00\x05\x00CS", b"\x08\x00\x60\x00CS", b"\x10\x00\x10\x10AS"],
    ids=["transfer syntax", "character set", "modality", "age"],
)
def test_damaged_lengths_make_nobody_quote_the_patient(make_dicom, caplog, capfd, element) -> None:
    """pydicom quotes such values in full, in a warning and in a log record."""
    data = make_dicom(PICTURE, SpecificCharacterSet="ISO_IR 100", **PATIENT)
    caplog.set_level(logging.DEBUG)
    found: list[str] = []
    for length in range(10, 700, 6):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                image = read_dicom(_stretched(data, element, length))
                found.append(repr(image) + repr(image.meta))
            except ImageError as error:
                found.append(str(error))
        found += [str(warning.message) for warning in caught]
    assert len(found) >= 115
    assert leaks("".join(found) + caplog.text + "".join(capfd.readouterr())) == []


def test_what_a_decoder_says_of_a_file_is_not_passed_on(make_dicom, monkeypatch) -> None:
    """Whatever it raises may quote any part of the file, as may what it was raised from."""

    def quoting(*_: object, **__: object) -> None:
        raise ValueError(f"cannot make sense of {CANARY}")

    monkeypatch.setattr("data_owner.dicom.read_dataset", quoting)
    monkeypatch.setattr("data_owner.dicom.dcmread", quoting)
    with pytest.raises(DicomError, match=r"\(ValueError\)") as caught:
        read_dicom(make_dicom(PICTURE, **PATIENT))
    assert leaks("".join(traceback.format_exception(caught.value))) == []


def test_pydicom_speaks_again_afterwards(make_dicom) -> None:
    logger = logging.getLogger("pydicom")
    logger.setLevel(logging.INFO)
    filters = list(warnings.filters)
    read_dicom(make_dicom(PICTURE))
    with pytest.raises(ImageError):
        read_dicom(make_dicom(PICTURE)[:200])
    assert logger.level == logging.INFO
    assert warnings.filters == filters
    logger.setLevel(logging.NOTSET)


@pytest.mark.parametrize(
    ("elements", "age"),
    [
        ({"PatientAge": "005Y"}, 5),
        ({"PatientAge": "018M"}, 1.5),
        ({"PatientAge": "026W"}, 26 * 7 / 365.25),
        ({"PatientAge": "010D"}, 10 / 365.25),
        ({"PatientAge": "81"}, None),
        ({"PatientAge": "5 years"}, None),
        ({}, None),
        ({"PatientBirthDate": "20200229", "StudyDate": "20250228"}, 4),
        ({"PatientBirthDate": "20200229", "StudyDate": "20250301"}, 5),
        ({"PatientBirthDate": "20230115", "StudyDate": "20240714"}, 17 / 12),
        ({"PatientBirthDate": "20230115", "StudyDate": "20240715"}, 1.5),
        ({"PatientBirthDate": "20230115", "StudyDate": "20230114"}, None),
        ({"PatientBirthDate": "20230115"}, None),
        ({"PatientBirthDate": "", "StudyDate": "20230114"}, None),
        ({"PatientBirthDate": "20231315", "StudyDate": "20240114"}, None),
        ({"PatientBirthDate": "20200101", "StudyDate": "20250101", "PatientAge": "004Y"}, 4),
    ],
)
@pytest.mark.filterwarnings("ignore:Invalid value for VR:UserWarning")
def test_age(make_dicom, elements, age) -> None:
    found = read_dicom(make_dicom(PICTURE, **elements)).meta.age_years
    assert found == (None if age is None else pytest.approx(age, rel=1e-12))


def test_repr_of_a_picture_is_its_shape() -> None:
    image = GreyImage(np.full((2, 3), 0.123, np.float32), ImageMeta("png"))
    assert repr(image) == "GreyImage([2, 3])"
    assert not image.pixels.flags.writeable


def test_reading_code_loads_no_decoder_before_it_is_used() -> None:
    modules = "data_owner, data_owner.images, data_owner.preprocess, data_owner.report"
    code = (
        f"import sys, {modules}, data_owner.intended_use\n"
        "print([m for m in ('pydicom', 'PIL', 'gdcm', 'onnx', 'torch') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
