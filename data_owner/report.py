"""The report of one inference: a JSON file for machines and a one-page HTML file for people.

Both stay at the clinic. They name the image file without its folder and hold no patient field; the
page embeds the preprocessed picture, which is what the network saw.
"""

from __future__ import annotations

import base64
import html
import itertools
import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path, PurePath
from typing import Any

import radiopaque
from data_owner.report_template import PAGE
from radiopaque.engine.names import EngineName
from radiopaque.errors import InputError, StoreError
from radiopaque.files import write_atomically
from radiopaque.graph.plan import Task

REPORT_FORMAT = "radiopaque-report/1"
NOT_FOR_DIAGNOSIS = "Not for diagnosis: the output of a research model, reviewed by no one."

_IMAGE_SUFFIXES = frozenset({".dcm", ".dicom", ".png", ".jpg", ".jpeg"})
_LONGEST_NAME = 120
"""Bytes, of the 255 that a file system takes: digits, suffixes and a temporary name come to it."""
_SHOWN_CLASSES = 15
_PARTIES = {"data_owner": "Clinic", "model_owner": "vendor", "crypto_provider": "dealer"}


@dataclass(frozen=True)
class InferenceReport:
    """One inference in plain values. These are also the keys of the JSON file.

    ``image``: file name without folder. ``model``, ``version``: as the vendor offers it.
    ``statement``: the model card's line on intended use. ``task``: "multiclass" (probabilities add
    up to 1), "multilabel" (each finding for itself) or "raw" (no probabilities). ``classes``,
    ``probabilities`` (0..1, empty for raw) and ``logits`` are in the same order. ``warnings``:
    deviations from the model card, and what the engine does not promise. ``online_seconds``:
    preprocessed tensor to logits; ``prepare_seconds``: loading the material; ``offline_seconds``:
    making it. ``round_trips``: online, between clinic and vendor. ``online_bytes`` and
    ``offline_bytes``: serialised messages for each direction, keys such as
    "data_owner_to_model_owner". ``plan_digest`` (SHA-256) and ``session_id``: hexadecimal.
    ``created``: ISO 8601 in UTC. ``engine``: "compiled" or "crypten". ``picture_png``: the
    preprocessed picture, for the page only. The JSON has ``format`` and ``not_for_diagnosis`` in
    addition.

    Raises ``InputError`` where the numbers do not fit together or are not finite.
    """

    image: str
    model: str
    version: str
    statement: str
    task: Task
    classes: tuple[str, ...]
    probabilities: tuple[float, ...]
    logits: tuple[float, ...]
    warnings: tuple[str, ...]
    online_seconds: float
    prepare_seconds: float
    offline_seconds: float
    round_trips: int
    online_bytes: Mapping[str, int]
    offline_bytes: Mapping[str, int]
    plan_digest: str
    session_id: str
    created: str
    engine: EngineName = EngineName.COMPILED
    picture_png: bytes = field(default=b"", repr=False)

    def __post_init__(self) -> None:
        count = len(self.logits)
        if count == 0 or len(self.classes) != count or len(self.probabilities) not in (0, count):
            raise InputError(
                f"{len(self.classes)} classes, {len(self.probabilities)} probabilities and {count} "
                "logits cannot be one result; give one of each per class"
            )
        seconds = (self.online_seconds, self.prepare_seconds, self.offline_seconds)
        if not all(map(math.isfinite, (*self.logits, *self.probabilities, *seconds))):
            raise InputError("a result or a time is not finite; do not report this inference")
        if any(not 0 <= probability <= 1 for probability in self.probabilities):
            raise InputError("a probability lies outside 0..1; do not report this inference")
        if not all(re.fullmatch("[0-9a-f]*", name) for name in (self.plan_digest, self.session_id)):
            raise InputError(
                "the plan digest or the session id is not hexadecimal; use bytes.hex()"
            )


def make_folder(directory: str | Path) -> None:
    """Make the folder for reports, for its owner alone, or check that one can write there.

    Raises ``StoreError`` otherwise.
    """
    folder = Path(directory)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        writable = os.access(folder, os.W_OK | os.X_OK)
    except OSError as error:
        raise StoreError(
            f"cannot make the folder {folder} for reports: {error.strerror or 'unknown reason'}; "
            "choose another"
        ) from None
    if not writable:
        raise StoreError(f"cannot write reports into {folder}; choose another folder")


def write_report(directory: str | Path, result: InferenceReport) -> tuple[Path, Path]:
    """Write ``NAME.json`` and ``NAME.html`` into ``directory`` and return their paths.

    NAME is the image's, cut to 120 bytes; where another report of that name exists, the session's
    first digits are added, and a number where that is taken, too, so nothing is overwritten; the
    same report again is written once. The folder is made
    where it is missing; files are written to a temporary name first, and are readable by their
    owner alone (mode 0600).
    Raises ``StoreError`` where that is not possible.
    """
    folder = Path(directory)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        name = _free_name(folder, result)
        paths = folder / f"{name}.json", folder / f"{name}.html"
        # A file name that is not UTF-8 has lone surrogates, which JSON may write as escapes.
        write_atomically(paths[0], to_json(result).encode("utf-8", "backslashreplace"))
        write_atomically(paths[1], to_html(result).encode("utf-8", "backslashreplace"))
    except OSError as error:
        raise StoreError(
            f"cannot write the report into {folder}: {error.strerror or 'unknown reason'}; "
            "choose another output folder"
        ) from None
    return paths


def to_json(result: InferenceReport) -> str:
    """The report as a JSON object with the keys of :class:`InferenceReport`, picture apart."""
    document: dict[str, Any] = {"format": REPORT_FORMAT, "not_for_diagnosis": NOT_FOR_DIAGNOSIS}
    for item in fields(result):
        if item.name != "picture_png":
            value = getattr(result, item.name)
            document[item.name] = dict(value) if isinstance(value, Mapping) else value
    document["image"] = PurePath(result.image).name
    return json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def to_html(result: InferenceReport) -> str:
    """The report as one self-contained HTML page that prints on one A4 sheet."""
    order = sorted(range(len(result.logits)), key=lambda i: -result.logits[i])
    shown = order[:_SHOWN_CLASSES]
    hidden = len(order) - len(shown)
    more = f"{hidden} more, all lower, are in the JSON file." if hidden else ""
    return PAGE.substitute(
        image=_text(PurePath(result.image).name),
        model=_text(result.model),
        version=_text(result.version),
        created=_text(result.created.replace("T", " ").replace("+00:00", " UTC")),
        picture=_picture(result.picture_png),
        verdict=_verdict(result, order),
        bars=_bars(result, shown),
        more=f'<p class="soft">{more}</p>' if more else "",
        warnings=_warnings(result),
        statement=_text(result.statement or "The vendor states no intended use."),
        times=_times(result),
        traffic=_traffic(result),
        plan_digest=_text(result.plan_digest),
        session_id=_text(result.session_id),
        software=_text(radiopaque.__version__),
    )


def _text(value: str) -> str:
    return html.escape(value, quote=True)


def _picture(png: bytes) -> str:
    if not png:
        return "<figcaption>The picture was not kept.</figcaption>"
    encoded = base64.b64encode(png).decode("ascii")
    return (
        f'<img alt="The picture as the network saw it" src="data:image/png;base64,{encoded}">'
        "<figcaption>As the network saw it, after preprocessing.</figcaption>"
    )


def _verdict(result: InferenceReport, order: list[int]) -> str:
    if result.task != "multiclass" or not result.probabilities:
        each = "Each finding is judged for itself." if result.task == "multilabel" else ""
        return f'<p class="soft">{each}</p>' if each else ""
    best = order[0]
    return (
        f'<p class="verdict">{_text(result.classes[best])}</p>'
        f'<p class="soft">has the highest probability, '
        f"{_percent(result.probabilities[best])}, of {len(order)} classes.</p>"
    )


def _bars(result: InferenceReport, shown: list[int]) -> str:
    rows = [_bar(result, index, top=index == shown[0]) for index in shown]
    share, logit = ("probability", "logit") if result.probabilities else ("", "output")
    head = (
        f'<td class="name"></td><td></td><td class="number">{share}</td>'
        f'<td class="number">{logit}</td>'
    )
    return f"<thead><tr>{head}</tr></thead><tbody>\n" + "\n".join(rows) + "\n</tbody>"


def _bar(result: InferenceReport, index: int, top: bool) -> str:
    """One class: name, bar, probability, logit; the first one set apart where classes exclude."""
    mark = " top" if top and result.task == "multiclass" else ""
    bar = share = ""
    if result.probabilities:
        probability = result.probabilities[index]
        share = _percent(probability)
        fill = "fill" if mark or result.task == "multilabel" else "fill other"
        bar = (
            '<svg viewBox="0 0 1000 10" preserveAspectRatio="none" aria-hidden="true">'
            '<rect class="track" width="1000" height="10"/>'
            f'<rect class="{fill}" width="{1000 * probability:.1f}" height="10"/></svg>'
        )
    return (
        f'<tr><td class="name{mark}">{_text(result.classes[index])}</td><td>{bar}</td>'
        f'<td class="number{mark}">{share}</td>'
        f'<td class="number logit">{result.logits[index]:+.3f}</td></tr>'
    )


def _percent(probability: float) -> str:
    if 0 < probability < 0.001:
        return "&lt; 0.1 %"
    if 0.999 < probability < 1:
        return "&gt; 99.9 %"
    return f"{100 * probability:.1f} %"


def _warnings(result: InferenceReport) -> str:
    items = "".join(f"<li>{_text(warning)}</li>" for warning in result.warnings)
    if not items and not result.statement:
        return ""
    if not items:
        return '<p class="good">The file states nothing that deviates from the model card.</p>'
    return (
        '<div class="warn" role="alert"><strong>Outside the model card, or unknown</strong>'
        f"<ul>{items}</ul></div>"
    )


def _times(result: InferenceReport) -> str:
    rows = (
        ("Inference", f"{result.online_seconds:.2f} s"),
        ("Round trips", str(result.round_trips)),
        ("Loading the material", f"{result.prepare_seconds:.2f} s"),
        ("Making it, before the image", f"{result.offline_seconds:.2f} s"),
    )
    return "\n".join(
        f'<tr><td>{name}</td><td class="number">{value}</td></tr>' for name, value in rows
    )


def _traffic(result: InferenceReport) -> str:
    links = list(dict.fromkeys((*result.online_bytes, *result.offline_bytes)))
    return "\n".join(
        f'<tr><td>{_text(_link(link))}</td><td class="number">'
        f'{_size(result.online_bytes.get(link))}</td><td class="number">'
        f"{_size(result.offline_bytes.get(link))}</td></tr>"
        for link in links
    )


def _link(key: str) -> str:
    """ "data_owner_to_model_owner" as "Clinic to vendor"."""
    words = (_PARTIES.get(party, party.replace("_", " ")) for party in key.split("_to_"))
    return " to ".join(words).capitalize()


def _size(count: int | None) -> str:
    if count is None:
        return "-"
    if count >= 100_000:
        return f"{count / 1e6:.1f} MB"
    return f"{count / 1e3:.1f} kB" if count >= 1000 else f"{count} B"


def _free_name(folder: Path, result: InferenceReport) -> str:
    file = PurePath(result.image.replace("\\", "/")).name
    stem, suffix = os.path.splitext(file)
    name = _shortened(stem if suffix.lower() in _IMAGE_SUFFIXES else file).strip(". ") or "image"
    longer = f"{name}-{result.session_id[:8]}"
    # images of one session may have one file name: those of a batch, from several folders
    more = (f"{longer}-{number}" for number in itertools.count(2))
    free = None
    for known in itertools.chain([name, longer], more):
        if _is_this(folder, known, result):
            return known
        if not any((folder / f"{known}{suffix}").exists() for suffix in (".json", ".html")):
            free = free or known
            if known != name:
                break
    return free or name


def _shortened(name: str) -> str:
    """As many characters as ``_LONGEST_NAME`` bytes hold."""
    name = name[:_LONGEST_NAME]
    while len(name.encode("utf-8", "surrogatepass")) > _LONGEST_NAME:
        name = name[:-1]
    return name


def _is_this(folder: Path, name: str, result: InferenceReport) -> bool:
    """Whether it is this report already: a submission that goes on writes it again.

    Two images of a batch may have the same text, and then other pictures.
    """
    path, page = folder / f"{name}.json", folder / f"{name}.html"
    data = to_json(result).encode("utf-8", "backslashreplace")
    if not path.is_file() or path.stat().st_size != len(data) or path.read_bytes() != data:
        return False
    return not page.exists() or _picture(result.picture_png).encode() in page.read_bytes()
