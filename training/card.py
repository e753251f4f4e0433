"""The model card, Markdown with a YAML header in the style of Hugging Face.

It says what the manifest says and nothing else, so that the two cannot contradict each other.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from training.card_training import privacy_section, training_section
from training.evaluate import TITLES
from training.markdown import bullets, paragraph, table
from training.metrics import BY_CLASS, SCALARS

_SETS = ("test", "validation")


def render_card(manifest: Mapping[str, Any], pictures: Sequence[str] = ()) -> str:
    """Return the card of a model; `pictures` are files beside it that it shows."""
    sections = [
        _header(manifest),
        _opening(manifest),
        _section("Intended use", _use(manifest)),
        _section("Input and output", _input(manifest)),
        _section("Training data", _data(manifest)),
        _section("Training", training_section(manifest)),
        _section("Privacy", privacy_section(manifest)),
        _section("Figures", _figures(manifest, pictures)),
        _section("Known shortcut", [paragraph(_shortcut(manifest))]),
        _section("Limits", [bullets(_limits(manifest))]),
        _section("Licence", _licence(manifest)),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _section(title: str, parts: Sequence[str]) -> str:
    kept = [part for part in parts if part]
    return "\n\n".join([f"## {title}", *kept]) if kept else ""


def _header(manifest: Mapping[str, Any]) -> str:
    tags = ["medical-imaging", "chest-x-ray", "private-inference"]
    training = manifest.get("training", {})
    tags += ["federated-learning"] if training.get("mode") == "federated" else []
    tags += ["differential-privacy"] if training.get("private") else []
    lines = [
        "---",
        f"license: {manifest['licence'].lower()}",
        "library_name: onnx",
        "pipeline_tag: image-classification",
        "tags:",
        *(f"- {tag}" for tag in tags),
        "metrics:",
        *(f"- {metric}" for metric in ("accuracy", "matthews_correlation", "roc_auc")),
    ]
    results = [name for name in _SETS if name in manifest["metrics"]]
    if results:
        lines += ["model-index:", f"- name: {_quoted(manifest['name'])}", "  results:"]
    for name in results:
        lines += _result(manifest, name)
    return "\n".join([*lines, "---"])


def _result(manifest: Mapping[str, Any], name: str) -> list[str]:
    """One set of images in the form of the model index."""
    figures = manifest["metrics"][name]
    lines = [
        "  - task:",
        "      type: image-classification",
        "    dataset:",
        f"      name: {_quoted(manifest['training_data']['title'])}",
        "      type: chest_xray",
        f"      split: {name}",
        "    metrics:",
    ]
    for key, kind in (
        ("accuracy", "accuracy"),
        ("mcc", "matthews_correlation"),
        ("macro_auc", "roc_auc"),
    ):
        if figures[key] is not None:
            lines += [
                f"    - type: {kind}",
                f"      name: {TITLES[key]}",
                f"      value: {figures[key]}",
            ]
    return lines


def _quoted(text: str) -> str:
    """A string of YAML; every string of JSON is one."""
    return json.dumps(text, ensure_ascii=False)


def _opening(manifest: Mapping[str, Any]) -> str:
    network = manifest["training"]["network"]
    classes = [f"*{title}*" for title in manifest["classes"]]
    article = "An" if network["title"][0] in "AEIOU" else "A"
    text = (
        f"{article} {network['title']} ({network['source']}) that sorts frontal chest radiographs "
        f"into {', '.join(classes[:-1])} and {classes[-1]}, made for private inference. "
        "**It is not a medical device and must not be used for diagnosis.**"
    )
    title = f"# {manifest['name']} {manifest['version']}"
    parts = [title, paragraph(manifest.get("description", "")), paragraph(text)]
    return "\n\n".join(part for part in parts if part)


def _use(manifest: Mapping[str, Any]) -> list[str]:
    use = manifest["intended_use"]
    facts = [f"Modalities {', '.join(use['modalities'])}", f"views {', '.join(use['views'])}"]
    if use.get("age_years"):
        facts.append("ages {:g} to {:g} years".format(*use["age_years"]))
    return [
        paragraph(
            f"{use['statement']} {'; '.join(facts)}. Anything else is outside what it was trained "
            "and measured on; the product warns about it."
        )
    ]


def _input(manifest: Mapping[str, Any]) -> list[str]:
    spec = manifest["preprocessing"]
    weights = manifest["training"].get("weights")
    text = (
        f"One channel of {spec['height']}x{spec['width']} pixels: stretched to the square, "
        f"{spec['interpolation']}, scaled to 0..1, minus {spec['mean'][0]:.6g}, divided by "
        f"{spec['std'][0]:.6g}. Output: {len(manifest['classes'])} logits; softmax gives the "
        f"probabilities. `{manifest['onnx']}` is opset 17 with all norms folded into the "
        "convolutions; all arithmetic is float32."
    )
    if weights is not None and weights["stored_as"] == "float16":
        text += (
            f" Weights are stored as float16 and widened by Cast nodes; this {weights['reason']}."
        )
    elif weights is not None:
        text += f" Weights are stored as float32: {weights['reason']}."
    measured = [name for name in _SETS if name in manifest["metrics"]]
    if measured:
        logit = manifest["metrics"][measured[0]]["max_abs_logit"]
        text += f" Largest logit on the {measured[0]} images: {logit:.1f}."
    return [paragraph(text)]


def _data(manifest: Mapping[str, Any]) -> list[str]:
    data, metrics = manifest["training_data"], manifest["metrics"]
    text = data["title"][0].upper() + data["title"][1:]
    if "authors" in data:
        text += f", by {', '.join(data['authors'])}"
    if "doi" in data:
        text += f", doi [{data['doi']}](https://doi.org/{data['doi']})"
    text += "".join(
        f". {title}{data[key]}"
        for key, title in (
            ("article", "Described in "),
            ("licence", "Licence: "),
            ("population", "Population: "),
            ("changes", "Changes: "),
        )
        if key in data
    )
    rows = [["split", "images", "use"]]
    if "images" in data:
        shares = data.get("images_by_class", {}).items()
        by_class = ", ".join(f"{count} {title}" for title, count in shares)
        rows.append(
            ["training", f"{data['images']}{f' ({by_class})' if by_class else ''}", "training"]
        )
    for name in reversed(_SETS):
        if name in metrics:
            whole = data.get("test_folder") if name == "test" else None
            count = metrics[name]["images"]
            of = f" of the official {whole}" if whole and whole > count else ""
            rows.append([name, f"{count}{of}", metrics[name]["note"]])
    return [paragraph(f"{text}."), table(rows) if len(rows) > 1 else ""]


def _figures(manifest: Mapping[str, Any], pictures: Sequence[str]) -> list[str]:
    metrics, classes = manifest["metrics"], manifest["classes"]
    sets = [name for name in _SETS if name in metrics]
    if not sets:
        return ["Not measured on any image: there was none."]
    definitions = metrics["definitions"]
    parts = [
        paragraph(
            "Measured with onnxruntime on the file that ships. Intervals: "
            f"{definitions['intervals']}."
        ),
        table(_figure_rows(metrics, sets)),
        paragraph(f"Expected calibration error: {definitions['ece']}."),
    ]
    for name in sets:
        header = [f"truth, {name}", *(f"called {title}" for title in classes)]
        rows = zip(classes, metrics[name]["confusion"], strict=True)
        parts.append(table([header, *([title, *map(str, row)] for title, row in rows)]))
    parts += [f"![{picture.split('.')[0]}]({picture})" for picture in pictures]
    if len(sets) == len(_SETS):
        parts.append(
            paragraph(
                "How far the two columns lie apart shows how much such figures depend on which "
                "images are measured. Another hospital's images can be much further away."
            )
        )
    parts.append(_unseen(manifest))
    return parts


def _figure_rows(metrics: Mapping[str, Any], sets: Sequence[str]) -> list[list[str]]:
    header = [""]
    for name in sets:
        header += [name, "95 % interval"]
    rows = [header]
    for key in SCALARS:
        row = [TITLES[key]]
        for name in sets:
            row += _cells(metrics[name][key], metrics[name][f"{key}_interval95"])
        rows.append(row)
    for key in BY_CLASS:
        for title in metrics[sets[0]][f"{key}_by_class"]:
            row = [f"{TITLES[key]}, {title}"]
            for name in sets:
                values = metrics[name][f"{key}_by_class"]
                bounds = metrics[name][f"{key}_by_class_interval95"]
                row += _cells(values[title], bounds[title])
            rows.append(row)
    return rows


def _cells(value: float | None, bounds: Sequence[float | None]) -> list[str]:
    if value is None or bounds[0] is None:
        return ["undefined", ""]
    return [f"{value:.3f}", f"{bounds[0]:.3f} to {bounds[1]:.3f}"]


def _unseen(manifest: Mapping[str, Any]) -> str:
    """The test images whose patient number does not occur in the training folder."""
    text: str = manifest["training_data"].get("patients", "")
    found = manifest["metrics"].get("test", {}).get("unseen_numbers", {})
    if text and found.get("images") and found["macro_auc"] is not None:
        low, high = found["macro_auc_interval95"]
        text += (
            f" On the {found['images']} test images whose number does not occur in the training "
            f"folder, accuracy is {found['accuracy']:.3f} and macro AUC {found['macro_auc']:.3f} "
            f"({low:.3f} to {high:.3f})."
        )
    return paragraph(text)


def _shortcut(manifest: Mapping[str, Any]) -> str:
    """What gives the label away without any pathology, and what was done against it."""
    text: str = manifest["training_data"].get("known_shortcut", "")
    stretch = manifest["training"]["settings"].get("augmentation", {}).get("stretch", 0.0)
    if text and stretch:
        text += (
            f" Training stretched images at random by up to {100 * stretch:g} % to weaken this; it "
            "is not removed."
        )
    return text


def _limits(manifest: Mapping[str, Any]) -> list[str]:
    limits = list(manifest["training_data"].get("limits", ()))
    limits.append(
        "No other finding is known to the model: every image is called one of "
        f"{len(manifest['classes'])} classes."
    )
    measured = [name for name in _SETS if name in manifest["metrics"]]
    if measured:
        error = manifest["metrics"][measured[0]]["ece"]
        limits.append(
            "The probabilities were not calibrated after training; their expected calibration "
            f"error is {error:.3f} on the {measured[0]} images."
        )
    limits.append("Text, markers and tubes in an image can influence the result.")
    return limits


def _licence(manifest: Mapping[str, Any]) -> list[str]:
    parts = [f"Model: {manifest['licence']}.", f"Images: {manifest['training_data']['licence']}."]
    origin = manifest["training"]["network"].get("pretrained")
    if origin is not None:
        parts.append(
            f"Weights that training started from: {origin['package']}, {origin['licence']}."
        )
    return [paragraph(" ".join(parts))]
