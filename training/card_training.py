"""The parts of the card on how a model was trained, and on what that keeps private."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from training.markdown import bullets, paragraph, table

_SPLITS = {
    "iid": "at random",
    "class": "so that each has more of one class (skew {skew:g})",
    "size": "of different sizes (skew {skew:g})",
}


def training_section(manifest: Mapping[str, Any]) -> list[str]:
    """Network, course, sites and choice, as paragraphs."""
    training = manifest["training"]
    parts = [paragraph(f"{_network(training)} {_course(training)}")]
    if training["mode"] == "federated":
        parts += [paragraph(_federation(training)), _sites(manifest)]
    return [*parts, paragraph(_choice(training)), *map(paragraph, training.get("notes", ()))]


def _network(training: Mapping[str, Any]) -> str:
    network = training["network"]
    given = ", ".join(f"{key} = {value}" for key, value in network["options"].items())
    text = f"{network['title']}{f' with {given}' if given else ''}"
    origin = network.get("pretrained")
    if origin is None:
        return f"{text}, trained from random weights."
    part = "only the last layer was trained" if network["trained"] == "head" else "all was trained"
    return f"{text}, started from {origin['data']} weights ({origin['package']}); {part}."


def _course(training: Mapping[str, Any]) -> str:
    settings = training["settings"]
    chosen = settings["training"]
    steps = chosen["local_steps"]
    length = f"of {steps} steps" if steps else "once through the images"
    text = (
        f"{training['rounds']} rounds, each {length}; SGD with learning rate "
        f"{chosen['learning_rate']:g}, momentum {chosen['momentum']:g} and weight decay "
        f"{chosen['weight_decay']:g}"
    )
    extras = []
    stages = chosen.get("stages") or ()
    if stages:
        extras.append(f"image sizes {', '.join(str(stage['size']) for stage in stages)}")
    if chosen.get("class_weights"):
        extras.append("class weights")
    if chosen.get("label_smoothing"):
        extras.append(f"label smoothing {chosen['label_smoothing']:g}")
    if any(settings.get("augmentation", {}).values()):
        extras.append("random changes of the images, none of which mirrors them")
    text += f"; {', '.join(extras)}" if extras else ""
    return f"{text}. Seed {settings['seed']}. The manifest has all settings."


def _federation(training: Mapping[str, Any]) -> str:
    federation = training["settings"].get("federation", {})
    count = len(training["sites"])
    text = (
        f"{count} sites trained together by federated averaging (McMahan et al., AISTATS 2017): "
        "each trains on its own images and hands over the change of the weights. "
    )
    if training["secure_aggregation"]:
        text += (
            "The changes were summed under masks (Bonawitz et al., CCS 2017), so that nobody saw "
            "that of one site. "
        )
    else:
        text += "They were summed without masks: whoever summed saw that of each site. "
    if training["placement"] == "one process":
        how = _SPLITS[federation.get("split", "iid")].format(skew=federation.get("skew", 0.0))
        return text + (
            f"The sites are a simulation: one process cut one folder by patient, {how}, and held "
            "all images."
        )
    return f"{text}The images of a site stayed on its machines."


def _sites(manifest: Mapping[str, Any]) -> str:
    """Images of the sites; of a private one, their number alone."""
    sites, classes = manifest["training"]["sites"], manifest["classes"]
    if manifest["training"]["private"] or not any("images" in site for site in sites):
        return ""
    rows = [["site", "images", *classes]]
    for site in sites:
        counts = site.get("images_by_class", {})
        rows.append(
            [
                site["name"],
                str(site.get("images", "")),
                *(str(counts.get(title, "")) for title in classes),
            ]
        )
    return table(rows)


def _choice(training: Mapping[str, Any]) -> str:
    if training["chosen_by"] == "validation":
        return (
            f"The weights are those of round {training['chosen_round']} of {training['rounds']}, "
            "the one with the largest macro AUC on the validation images; the test images chose "
            "nothing."
        )
    return "The weights are those of the last round: neither validation nor test images chose them."


def privacy_section(manifest: Mapping[str, Any]) -> list[str]:
    """Epsilon and delta of each site, and what they leave out; or that there is no such bound."""
    training = manifest["training"]
    if not training["private"]:
        public = ", which are public" if "doi" in manifest["training_data"] else ""
        return [
            paragraph(
                "Trained without differential privacy: the weights may reveal something about the "
                f"training images{public}."
            )
        ]
    rows = [
        [
            "site",
            "images",
            "epsilon (PRV)",
            "epsilon (Rényi)",
            "delta",
            "noise multiplier",
            "clip norm",
            "sample rate",
            "steps",
        ]
    ]
    rows += [_loss_row(site) for site in training["sites"]]
    return [
        paragraph(
            "Every site trained with differential privacy for each of its images (DP-SGD, Abadi "
            "et al., CCS 2016): gradients of single images are clipped, and normal noise is added "
            "to their sum. Neighbouring data sets differ by one image more or less. Both "
            "accountants, numerical composition (PRV) and Rényi, give upper bounds; all rounds of "
            "this training count, not those up to the chosen one alone."
        ),
        table(rows),
        _earlier(training["sites"]),
        "What these figures do not cover:",
        bullets(_not_covered(training)),
    ]


def _loss_row(site: Mapping[str, Any]) -> list[str]:
    loss = site.get("privacy")
    images = str(site.get("images", ""))
    if loss is None:
        return [site["name"], images, "took no part", *([""] * 6)]
    return [
        site["name"],
        images,
        f"{loss['epsilon_prv']:.2f}",
        f"{loss['epsilon_rdp']:.2f}",
        f"{loss['delta']:g}",
        f"{loss['noise_multiplier']:g}",
        f"{loss['clip_norm']:g}",
        f"{loss['sample_rate']:g}",
        str(loss["steps"]),
    ]


def _earlier(sites: Sequence[Mapping[str, Any]]) -> str:
    earlier = [
        f"{site['name']} {site['privacy']['steps'] - site['privacy']['steps_of_run']}"
        for site in sites
        if "privacy" in site and site["privacy"]["steps"] > site["privacy"]["steps_of_run"]
    ]
    if not earlier:
        return ""
    return paragraph(
        "Steps and epsilon include what the budgets had counted for other trainings on the same "
        f"images, and for rounds that were lost: {', '.join(earlier)} steps."
    )


def _not_covered(training: Mapping[str, Any]) -> list[str]:
    items = [
        "Several images of a child are several neighbours: for a child with k images epsilon is k "
        "times as large, and delta grows as well.",
        "Settings: if learning rate, rounds or network were chosen by earlier runs on the same "
        "images, those runs have cost privacy, too; it is counted only if they shared the budget.",
        "The number of images of a site, which counts as public. How they fall to the classes is "
        "not told.",
    ]
    if training["chosen_by"] == "validation":
        items.append(
            "The validation images are not protected: they chose the round and how weights are "
            "stored, value ranges can come from them, and the figures below are measured on them."
        )
    if training["placement"] == "several machines":
        items.append(
            "Sites that say what they do not do: each sets and accounts its own privacy, and "
            "nobody can check what it reports."
        )
    if "pretrained" in training["network"]:
        items.append("The weights that training started from, and the images behind them.")
    return items
