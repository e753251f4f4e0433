"""Reports: complete, escaped, self-contained, private, never overwritten."""

from __future__ import annotations

import base64
import json
import os
import re
import stat
from dataclasses import fields, replace
from html.parser import HTMLParser
from typing import Any

import pytest

from data_owner.report import InferenceReport, to_html, to_json, write_report
from radiopaque.errors import InputError, StoreError

PNG = b"\x89PNG\r\n\x1a\n not really"
REPORT = InferenceReport(
    image="chest.dcm",
    model="pneumonia-resnet18",
    version="1",
    statement="Chest radiographs of children.",
    task="multiclass",
    classes=("normal", "bacterial", "viral"),
    probabilities=(0.0004, 0.9123, 0.0873),
    logits=(-4.25, 3.5, 1.153),
    warnings=("The image does not state its view; the model was made for AP or PA.",),
    online_seconds=0.434,
    prepare_seconds=0.12,
    offline_seconds=3.2,
    round_trips=44,
    online_bytes={
        "data_owner_to_model_owner": 12_345_678,
        "model_owner_to_data_owner": 14_100_000,
    },
    offline_bytes={
        "crypto_provider_to_model_owner": 202_000_000,
        "crypto_provider_to_data_owner": 98,
        "data_owner_to_model_owner": 1500,
    },
    plan_digest="ab" * 32,
    session_id="0123456789abcdef" * 2,
    created="2026-11-21T08:15:30+00:00",
    picture_png=PNG,
)


class Page(HTMLParser):
    """Text, tags and attribute values of a page; fails where tags do not close."""

    VOID = frozenset({"meta", "img", "br", "rect"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.words.append(data)

    def bars(self) -> list[float]:
        return [
            float(attrs["width"] or "nan")
            for tag, attrs in self.tags
            if tag == "rect" and "fill" in (attrs["class"] or "").split()
        ]


def test_json_has_all_fields_but_the_picture() -> None:
    document = json.loads(to_json(REPORT))
    names = {item.name for item in fields(InferenceReport)} - {"picture_png"}
    assert set(document) == names | {"format", "not_for_diagnosis"}
    for name in names:
        value = getattr(REPORT, name)
        assert document[name] == (list(value) if isinstance(value, tuple) else value)
    assert "Not for diagnosis" in document["not_for_diagnosis"]
    assert document["format"] == "radiopaque-report/1"


def test_page_says_everything() -> None:
    text = Page(to_html(REPORT)).text
    for words in (
        "Not for diagnosis.",
        "chest.dcm",
        "2026-11-21 08:15:30 UTC",
        "pneumonia-resnet18, version 1",
        "Chest radiographs of children.",
        "bacterial has the highest probability, 91.2 %, of 3 classes.",
        "does not state its view",
        "Round trips 44",
        "Inference 0.43 s",
        "Clinic to vendor 12.3 MB 1.5 kB",
        "Vendor to clinic 14.1 MB -",
        "Dealer to vendor - 202.0 MB",
        "Dealer to clinic - 98 B",
        "ab" * 32,
        REPORT.session_id,
    ):
        assert words in text


@pytest.mark.parametrize("party", ["Clinic data owner", "Vendor model owner", "Dealer crypto"])
def test_page_says_what_was_revealed_to_whom(party) -> None:
    text = Page(to_html(REPORT)).text
    assert party in text[text.index("What was revealed to whom") :]


def test_classes_come_in_order_of_probability_with_bars_to_scale() -> None:
    page = Page(to_html(REPORT))
    positions = [page.text.rindex(f" {name} ") for name in ("bacterial", "viral", "normal")]
    assert positions == sorted(positions)
    assert page.bars() == [912.3, 87.3, 0.4]
    assert "< 0.1 %" in page.text
    assert "+3.500" in page.text


def test_findings_of_a_multilabel_model_have_no_winner() -> None:
    result = replace(REPORT, task="multilabel", probabilities=(0.2, 0.9999, 0.6))
    text = Page(to_html(result)).text
    assert "highest" not in text
    assert "Each finding is judged for itself." in text
    assert "> 99.9 %" in text


def test_raw_outputs_have_no_probabilities() -> None:
    page = Page(to_html(replace(REPORT, task="raw", probabilities=())))
    assert page.bars() == []
    assert "%" not in page.text
    assert "+3.500" in page.text


def test_many_classes_stay_on_one_sheet() -> None:
    count = 1000
    result = replace(
        REPORT,
        classes=tuple(f"class {i}" for i in range(count)),
        probabilities=(1 / count,) * count,
        logits=tuple(float(-i) for i in range(count)),
    )
    page = Page(to_html(result))
    assert len(page.bars()) == 15
    assert "985 more, all lower, are in the JSON file." in page.text
    assert len(json.loads(to_json(result))["classes"]) == count


def test_page_loads_nothing_and_embeds_the_picture_alone() -> None:
    html = to_html(REPORT)
    page = Page(html)
    uris = [
        value for _, attrs in page.tags for key, value in attrs.items() if key in ("src", "href")
    ]
    assert uris == ["data:image/png;base64," + base64.b64encode(PNG).decode()]
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "link", "iframe", "object"})
    assert re.findall(r"https?:|url\(|@import|\son\w+=", html) == []
    assert "default-src 'none'" in html


def test_page_prints_on_a4_and_follows_dark_mode() -> None:
    html = to_html(REPORT)
    assert "@page { size: A4;" in html
    assert "prefers-color-scheme: dark" in html


@pytest.mark.parametrize(
    "field", ["image", "model", "version", "statement", "created", "classes", "warnings"]
)
def test_every_text_is_escaped(field) -> None:
    evil = '<script>alert("x")</script>&\' $model ${model}'
    value = getattr(REPORT, field)
    changed: Any = (evil, *value[1:]) if isinstance(value, tuple) else evil.replace("/", "")
    html = to_html(replace(REPORT, **{field: changed}))
    assert "<script" not in html
    assert "&lt;script&gt;alert(&quot;x&quot;)" in html
    assert "$model ${model}" in html
    Page(html)


def test_links_of_other_names_are_escaped() -> None:
    html = to_html(replace(REPORT, online_bytes={"<b>_to_x": 1}))
    assert "&lt;b&gt; to x" in html


def test_folders_of_the_image_are_not_named() -> None:
    result = replace(REPORT, image="/ward/Zebrafinch/chest.dcm")
    assert "Zebrafinch" not in to_html(result) + to_json(result)


def test_no_warnings() -> None:
    text = Page(to_html(replace(REPORT, warnings=()))).text
    assert "states nothing that deviates from the model card" in text
    silent = Page(to_html(replace(REPORT, warnings=(), statement=""))).text
    assert "deviates" not in silent
    assert "The vendor states no intended use." in silent


def test_without_a_picture() -> None:
    page = Page(to_html(replace(REPORT, picture_png=b"")))
    assert "img" not in {tag for tag, _ in page.tags}


def test_repr_has_no_picture() -> None:
    assert "PNG" not in repr(REPORT)


@pytest.mark.parametrize(
    "change",
    [
        {"classes": ("a", "b")},
        {"probabilities": (0.5,)},
        {"classes": (), "probabilities": (), "logits": ()},
        {"logits": (1.0, float("nan"), 2.0)},
        {"probabilities": (0.5, 0.5, 1.5)},
        {"probabilities": (0.5, float("inf"), 0.0)},
        {"online_seconds": float("inf")},
        {"session_id": "../../etc"},
        {"plan_digest": "XY"},
    ],
    ids=str,
)
def test_numbers_that_are_no_result_are_refused(change) -> None:
    with pytest.raises(InputError):
        replace(REPORT, **change)


def test_files(tmp_path) -> None:
    folder = tmp_path / "new" / "reports"
    json_path, html_path = write_report(folder, REPORT)
    assert (json_path, html_path) == (folder / "chest.json", folder / "chest.html")
    assert json_path.read_text() == to_json(REPORT)
    assert html_path.read_text() == to_html(REPORT)
    assert sorted(os.listdir(folder)) == ["chest.html", "chest.json"]
    for path in (json_path, html_path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_nothing_is_overwritten(tmp_path) -> None:
    (tmp_path / "chest.json").write_text("mine")
    other = replace(REPORT, session_id="fe" * 16)
    first = write_report(tmp_path, REPORT)
    second = write_report(tmp_path, other)
    assert (tmp_path / "chest.json").read_text() == "mine"
    assert [path.name for path in first] == ["chest-01234567.json", "chest-01234567.html"]
    assert second[0].name == "chest-fefefefe.json"
    assert len(os.listdir(tmp_path)) == 5


def test_images_of_one_session_with_one_name_have_a_report_each(tmp_path) -> None:
    """Also where two differ in their pictures alone; and a second run writes no more."""
    (tmp_path / "chest-01234567-2.html").write_text("mine")
    reports = [replace(REPORT, logits=(float(n), 0.0, 0.0)) for n in range(4)]
    reports.append(replace(reports[3], picture_png=PNG + b"another"))
    written = [write_report(tmp_path, report) for report in reports]
    assert [path.stem for path, _ in written] == [
        "chest",
        *(f"chest-01234567{more}" for more in ("", "-3", "-4", "-5")),
    ]
    for (path, page), report in zip(written, reports, strict=True):
        assert (path.read_text(), page.read_text()) == (to_json(report), to_html(report))
    # one that was lost, and one of which a crash left the first file alone
    for path in (*written[1], written[3][1]):
        path.unlink()
    assert [write_report(tmp_path, report) for report in reports] == written
    assert len(os.listdir(tmp_path)) == 11
    assert (tmp_path / "chest-01234567-2.html").read_text() == "mine"


@pytest.mark.parametrize(
    ("image", "name"),
    [
        ("1.2.840.113619.dcm", "1.2.840.113619.json"),
        ("IM.0001", "IM.0001.json"),
        ("a.PNG", "a.json"),
        ("../../etc/passwd", "passwd.json"),
        ("C:\\ward\\x.dcm", "x.json"),
        ("..", "image.json"),
        ("", "image.json"),
        ("x" * 300 + ".dcm", "x" * 120 + ".json"),
        ("胸" * 78 + ".png", "胸" * 40 + ".json"),
        ("xx" + "\U00020000" * 62 + ".png", "xx" + "\U00020000" * 29 + ".json"),
        ("\udcff" * 250 + ".png", "\udcff" * 40 + ".json"),
        ("\udcff.dcm", "\udcff.json"),
    ],
)
def test_names_stay_in_the_folder(tmp_path, image, name) -> None:
    path, _ = write_report(tmp_path, replace(REPORT, image=image))
    assert path == tmp_path / name
    assert json.loads(path.read_bytes())["round_trips"] == 44


def test_a_folder_that_cannot_be_made(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="output folder"):
        write_report(tmp_path / "file" / "reports", REPORT)
