"""Attack our own training: `python -m training.attack inversion` and `... audit`.

Exit codes: 0 the attack works and the protections hold; 1 they do not, or the attack is too weak
to tell; 2 usage or data.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.data import DataError, Sample, index_folder, labels_of, load_images
from training.errors import TrainingError
from training.files import write_atomically

if TYPE_CHECKING:
    from torch import Tensor

SAMPLES = Path(__file__).resolve().parents[2] / "samples" / "labelled"
MOST_BACKGROUND = 500


def build_parser() -> argparse.ArgumentParser:
    """Return the parser; the attacks' own defaults are in their settings."""
    parser = argparse.ArgumentParser(
        prog="radiopaque attack", description="Attack our own training."
    )
    kinds = parser.add_subparsers(dest="kind", required=True)
    inversion = kinds.add_parser(
        "inversion",
        help="reconstruct training images from updates: plain, masked, summed, private",
    )
    inversion.add_argument("--sites", type=int, help="sites in the round (24)")
    inversion.add_argument("--per-site", type=int, help="images in each site's step (1)")
    inversion.add_argument("--attacked", type=int, help="sites under attack (6)")
    inversion.add_argument("--sums", type=_counts, help="sums of so many sites (3,6,24)")
    inversion.add_argument("--size", type=int, help="pixels along each side (64)")
    inversion.add_argument("--width", type=int, help="channels of the first convolution (12)")
    inversion.add_argument("--iterations", type=int, help="steps of each reconstruction (800)")
    inversion.add_argument("--noise-multiplier", type=float, help="of the private step (0.5)")
    inversion.add_argument("--clip-norm", type=float, help="of the private step (1.0)")
    inversion.add_argument("--seed", type=int, help="of network and reconstruction (0)")
    inversion.add_argument(
        "--background",
        type=Path,
        help="folder of images whose mean is the guess without an attack "
        "(default: the images of the other sites)",
    )
    audit = kinds.add_parser("audit", help="bound the privacy loss from below, in one run")
    audit.add_argument("--canaries", type=int, help="images that may be trained on (2000)")
    audit.add_argument("--guesses", type=int, help="even number of guesses (200)")
    audit.add_argument("--epsilon", type=float, help="claimed epsilon of the whole run (2)")
    audit.add_argument("--delta", type=float, help="claimed delta (1e-5)")
    audit.add_argument("--sample-rate", type=float, help="of Poisson sampling (0.25)")
    audit.add_argument("--steps", type=int, help="private steps (40)")
    audit.add_argument("--confidence", type=float, help="of the bound (0.95)")
    for command in (inversion, audit):
        command.add_argument(
            "--images", type=Path, default=SAMPLES, help="folder with NORMAL and PNEUMONIA"
        )
        command.add_argument("--output", type=Path, help="folder for report and pictures")
        command.add_argument("--threads", type=int, default=1, help="CPU threads of torch (1)")
        command.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run an attack; return the exit code."""
    options = build_parser().parse_args(arguments)
    try:
        samples = index_folder(options.images)
        attack = _inversion if options.kind == "inversion" else _audit
        report, pictures, failures = attack(options, samples)
    except ModuleNotFoundError as error:
        print(
            f"error: {error.name} is missing; install the extra with "
            "pip install 'radiopaque[training]'",
            file=sys.stderr,
        )
        return 2
    except (DataError, TrainingError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    report["problems"] = failures
    text = json.dumps(report, indent=2)
    if options.output is not None:
        write_atomically(options.output / f"{options.kind}.json", f"{text}\n".encode())
        for name, content in pictures.items():
            write_atomically(options.output / name, content)
    if options.json:
        print(text)
    else:
        for failure in failures:
            print(f"PROBLEM: {failure}")
        print("not shown" if failures else "holds")
    return 1 if failures else 0


PRIVACY = ("noise_multiplier", "clip_norm")

Report = dict[str, object]


def _inversion(
    options: argparse.Namespace, samples: Sequence[Sample]
) -> tuple[Report, dict[str, bytes], list[str]]:
    from dataclasses import asdict, replace

    import torch

    from training.attack.pictures import side_by_side
    from training.attack.scenario import ScenarioSettings, problems, run_scenario, sum_of

    torch.set_num_threads(options.threads)
    chosen = _given(options, "sites", "attacked", "sums", "size", "width", *PRIVACY)
    if options.per_site is not None:
        chosen["images_per_site"] = options.per_site
    settings = ScenarioSettings()
    effort = replace(settings.inversion, **_given(options, "iterations", "seed"))
    settings = replace(settings, inversion=effort, **chosen)
    images, labels = _pixels(_alternating(samples), settings.size)
    mean_image = None
    if options.background is not None:
        others = index_folder(options.background)
        others = others[:: -(-len(others) // MOST_BACKGROUND)]
        mean_image = _pixels(others, settings.size)[0].mean(dim=0, keepdim=True)
    quiet = options.json
    originals, outcomes = run_scenario(
        images, labels, mean_image, settings, report=_ignore if quiet else _print
    )
    named = {outcome.setting: outcome for outcome in outcomes}
    shown = {name: named[name] for name in named if name not in map(sum_of, settings.sums[:-1])}
    columns = {"original": originals, **{name: found.images for name, found in shown.items()}}
    captions = {name: f"SSIM {found.mean_ssim:.2f}" for name, found in shown.items()}
    report: Report = {
        "settings": asdict(settings),
        "outcomes": [outcome.as_dict() for outcome in outcomes],
    }
    return report, {"inversion.png": side_by_side(columns, captions)}, problems(outcomes)


def _audit(
    options: argparse.Namespace, samples: Sequence[Sample]
) -> tuple[Report, dict[str, bytes], list[str]]:
    from dataclasses import asdict

    import torch

    from training.attack.audit import REAL_SIZE, AuditSettings, problems, run_audit
    from training.attack.steps import calibrate, private_site

    torch.set_num_threads(options.threads)
    names = ("canaries", "guesses", "epsilon", "delta", "sample_rate", "steps", "confidence")
    settings = AuditSettings(**_given(options, *names))
    images, labels = _pixels(samples, REAL_SIZE)
    noise_multiplier, nominal = calibrate(settings)
    results = {}
    for name, noise in (("private", noise_multiplier), ("noise left out", 0.0)):
        result = run_audit(images, labels, noise, private_site(settings), settings)
        results[name] = result
        if not options.json:
            print(
                f"{name:<15} noise {result.noise_multiplier:.3f}   {result.correct} of "
                f"{result.guesses} guesses right   epsilon >= {result.lower_bound:.3f} "
                f"(claimed {nominal:.3f})   {result.seconds:.0f} s",
                flush=True,
            )
    report: Report = {
        "settings": asdict(settings),
        "nominal_epsilon": nominal,
        "results": {name: result.as_dict() for name, result in results.items()},
    }
    return report, {}, problems(results["private"], results["noise left out"], nominal)


def _given(options: argparse.Namespace, *names: str) -> dict[str, Any]:
    values = {name: getattr(options, name) for name in names}
    return {name: value for name, value in values.items() if value is not None}


def _counts(text: str) -> tuple[int, ...]:
    parts = text.split(",")
    if not all(part.isdigit() for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of numbers; write 3,6,24")
    return tuple(sorted(int(part) for part in parts))


def _alternating(samples: Sequence[Sample]) -> list[Sample]:
    """One image of each class in turn, so that every site gets some of all while they last."""
    by_class: dict[int, list[Sample]] = {}
    for sample in samples:
        by_class.setdefault(sample.label, []).append(sample)
    ranked = [
        (rank, label, sample)
        for label, members in by_class.items()
        for rank, sample in enumerate(members)
    ]
    return [sample for _, _, sample in sorted(ranked, key=lambda entry: entry[:2])]


def _pixels(samples: Sequence[Sample], size: int) -> tuple[Tensor, Tensor]:
    """Images, float [n, 1, size, size] from 0 to 1, and labels, int64 [n]."""
    import torch

    images = torch.from_numpy(load_images(samples, size)).float() / 255.0
    return images, torch.from_numpy(labels_of(samples))


def _print(line: str) -> None:
    print(line, flush=True)


def _ignore(line: str) -> None:
    """For runs whose standard output is one JSON object."""


if __name__ == "__main__":
    sys.exit(main())
