"""The model card, filled in with the figures of the manifest."""

from __future__ import annotations

from typing import Any

from training.evaluate import Evaluation

_TITLES = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "mcc": "Matthews correlation coefficient",
    "macro_auc": "macro AUC (one versus rest)",
}

_TEMPLATE = """\
---
license: apache-2.0
library_name: onnx
pipeline_tag: image-classification
tags:
- medical-imaging
- chest-x-ray
- pediatrics
- private-inference
metrics:
- accuracy
- matthews_correlation
- roc_auc
model-index:
- name: {name}
  results:
  - task:
      type: image-classification
    dataset:
      name: Chest X-ray images (Kermany et al., v2), part of the test folder
      type: chest_xray
      split: test
    metrics:
    - type: accuracy
      value: {accuracy}
    - type: roc_auc
      name: macro one-versus-rest AUC
      value: {macro_auc}
---

# {name} {version}

A ResNet-18 (He et al., CVPR 2016) that sorts frontal chest radiographs of small children into
*normal*, *bacterial pneumonia* and *viral pneumonia*. It exists to show private inference on a
real task. **It is not a medical device and must not be used for diagnosis.**

## Intended use

{statement}
Modalities {modalities}; views {views}; ages {age_low} to {age_high} years. Anything else, adults
above all, is outside what it was trained and measured on; the product warns about it.

## Input and output

One channel of 224x224 pixels: stretched to the square, bilinear, scaled to 0..1, minus {mean},
divided by {std}. Output: three logits; softmax gives the probabilities. Largest logit on the test
images: {largest_logit:.1f}. `model.onnx` is opset 17 with the batch norms folded; weights are
stored as float16 and widened by Cast nodes, all arithmetic is float32.

## Training data

{title}, by {authors}, doi [{doi}](https://doi.org/{doi}); {article}. Licence: {data_licence}.
Population: {population}. Changes: {changes}.

| split | images | use |
|---|---|---|
| training folder, part | {training_images} ({counts}) | training |
| training folder, rest, other patients | {validation_images} | reported, chose nothing |
| test folder, part ({test_images} of the official 624) | {test_images} | reported, chose nothing |

Training and validation are cut by the patient in the file name (`personN`, `IM-NNNN`). The network
is trained from random weights with SGD, class weights, label smoothing, growing image sizes and
small affine and brightness changes, no mirror images. The last epoch is shipped; the validation
folder of the data set is too small for that and was left out. Repeat it with `python -m training`.

## Figures

Measured with onnxruntime on the shipped file. 95 % intervals: bootstrap over patients.

| | test | 95 % interval | validation | 95 % interval |
|---|---|---|---|---|
{figure_rows}

AUC by class on the test images: {class_auc}.

Confusion on the test images (rows: truth, columns: top class):

| | {class_header} |
|---|---|---|---|
{confusion_rows}

Nothing was chosen by either set; how far the two columns lie apart shows how much such figures
depend on which images are measured. Another hospital's images can be much further away.

{fresh_paragraph}{unused_paragraph}

## Known shortcut

The originals of the normal cases are larger and squarer (median 1654x1353 pixels) than those of
the bacterial ones (1136x760). Squeezing both to 224x224 stretches them by different amounts, so the
proportions of the chest give away part of the label without any pathology. Training stretches
images at random by up to 15 % to weaken this; it is not removed. Figures on images of another
origin can be much lower.

## Limits

- One hospital, one age group, labels from one reading process; no external validation.
- Bacterial and viral pneumonia look alike on many radiographs; expect one taken for the other.
- No other finding is known to the model: every image is called one of three classes.
- The probabilities are not calibrated (label smoothing makes them cautious).
- Text, markers and tubes in an image can influence the result.
- Trained without differential privacy: the weights may reveal something about the training images,
  which are public.
"""


def render_card(
    manifest: dict[str, Any],
    fresh: Evaluation | None,
    unused: list[list[int]] | None,
    largest_logit: float,
) -> str:
    """Return the card, Markdown with a YAML header in the style of Hugging Face.

    `fresh` has the figures on test images whose patient number does not occur in the training
    folder, where there are any; `unused` the confusion counts on the data set's own validation
    folder; `largest_logit` is the largest absolute one on the test images.
    """
    metrics, use = manifest["metrics"], manifest["intended_use"]
    data, preprocessing = manifest["training_data"], manifest["preprocessing"]
    validation = metrics["validation"]
    classes = manifest["classes"]
    return _TEMPLATE.format(
        name=manifest["name"],
        version=manifest["version"],
        accuracy=metrics["accuracy"],
        macro_auc=metrics["macro_auc"],
        statement=use["statement"],
        modalities=", ".join(use["modalities"]),
        views=", ".join(use["views"]),
        age_low=use["age_years"][0],
        age_high=use["age_years"][1],
        mean=preprocessing["mean"][0],
        std=preprocessing["std"][0],
        largest_logit=largest_logit,
        title=data["title"],
        authors=", ".join(data["authors"]),
        doi=data["doi"],
        article=data["article"],
        data_licence=data["licence"],
        population=data["population"],
        changes=data["changes"],
        training_images=sum(data["images"].values()),
        counts=", ".join(f"{count} {name}" for name, count in data["images"].items()),
        validation_images=validation["images"],
        test_images=metrics["images"],
        figure_rows="\n".join(_figure_row(key, metrics, validation) for key in _TITLES),
        class_auc=", ".join(f"{name} {area:.3f}" for name, area in metrics["auc_by_class"].items()),
        class_header=" | ".join(classes),
        confusion_rows="\n".join(
            f"| {name} | " + " | ".join(str(count) for count in row) + " |"
            for name, row in zip(classes, metrics["confusion"], strict=True)
        ),
        fresh_paragraph=_fresh_paragraph(fresh),
        unused_paragraph=_unused_paragraph(unused, classes),
    )


def _figure_row(key: str, test: dict[str, Any], validation: dict[str, Any]) -> str:
    cells = [_TITLES[key]]
    for figures in (test, validation):
        low, high = figures[f"{key}_interval95"]
        cells += [f"{figures[key]:.3f}", f"{low:.3f} to {high:.3f}"]
    return "| " + " | ".join(cells) + " |"


def _fresh_paragraph(fresh: Evaluation | None) -> str:
    opening = (
        "The authors publish the test folder as images of other patients. Many patient numbers "
        "nevertheless occur in both folders, and the names alone cannot tell whether that is a "
        "second numbering or the same child."
    )
    if fresh is None:
        return opening
    area = fresh.intervals["macro_auc"]
    return (
        f"{opening} On the {fresh.images} test images whose number does not occur in the training "
        f"folder, accuracy is {fresh.values['accuracy']:.3f} and macro AUC "
        f"{fresh.values['macro_auc']:.3f} ({area[0]:.3f} to {area[1]:.3f})."
    )


def _unused_paragraph(unused: list[list[int]] | None, classes: list[str]) -> str:
    if unused is None:
        return ""
    rows = [
        f"{name} {row[label]} of {sum(row)}"
        for label, (name, row) in enumerate(zip(classes, unused, strict=True))
        if sum(row)
    ]
    return (
        f"\n\nThe data set's own validation folder ({sum(map(sum, unused))} images, used for "
        f"nothing) is too small for a rate. Right there: {', '.join(rows)}."
    )
