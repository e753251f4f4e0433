"""Train, export, measure and describe the pneumonia model.

python -m training --data chest_xray --output models/pneumonia-resnet18
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from training.data import (
    CLASSES,
    DataError,
    Sample,
    index_folder,
    labels_of,
    load_images,
    split_by_patient,
)

if TYPE_CHECKING:
    from training.train import Stage, TrainingResult

VALIDATION_FRACTION = 0.1
EXPORT_CHECK_IMAGES = 32


def parse_stages(text: str) -> tuple[Stage, ...]:
    """Read `112x26,224x5`: 26 epochs at 112 pixels, then 5 at 224."""
    from training.train import Stage

    stages: list[Stage] = []
    for part in text.split(","):
        size, separator, epochs = part.partition("x")
        if not (separator and size.isdigit() and epochs.isdigit() and int(size) and int(epochs)):
            raise argparse.ArgumentTypeError(
                f"{part!r} is not SIZExEPOCHS; write for instance 112x26,224x5"
            )
        stages.append(Stage(int(size), int(epochs)))
    return tuple(stages)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of `python -m training`."""
    parser = argparse.ArgumentParser(
        prog="python -m training",
        description="Train the pneumonia ResNet-18; write model.onnx, manifest.json and card.md.",
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with train/ and test/")
    parser.add_argument("--output", type=Path, required=True, help="folder to write the model to")
    parser.add_argument("--seed", type=int, default=None, help="seed of split and training")
    parser.add_argument("--threads", type=int, default=None, help="CPU threads of torch")
    parser.add_argument("--width", type=int, default=None, help="channels of the stem")
    parser.add_argument(
        "--stages", type=parse_stages, default=None, help="SIZExEPOCHS,... (progressive resizing)"
    )
    return parser


def publish(
    result: TrainingResult,
    training: Sequence[Sample],
    validation: Sequence[Sample],
    test: Sequence[Sample],
    unused: Sequence[Sample],
    output: Path,
) -> None:
    """Export a trained network and write its manifest and card with figures of the ONNX file.

    `unused` is the data set's own validation folder: reported in the card, may be empty.
    """
    from training.card import render_card
    from training.evaluate import evaluate_logits, normalise
    from training.export import export, run
    from training.files import write_atomically
    from training.manifest import ONNX_FILE, build_manifest, write_manifest
    from training.metrics import confusion_matrix

    # As the manifest states them, so that the figures are those of a reader of the manifest.
    mean, std = round(result.mean, 6), round(result.std, 6)
    validation_pixels = normalise(load_images(validation), mean, std)
    onnx_path = output / ONNX_FILE
    _, error = export(result.model, validation_pixels[:EXPORT_CHECK_IMAGES], onnx_path)
    print(
        f"wrote {onnx_path} ({onnx_path.stat().st_size / 1e6:.1f} MB); "
        f"float16 weights move a logit by at most {error:.4f}"
    )

    test_pixels = normalise(load_images(test), mean, std)
    test_logits = run(onnx_path, test_pixels)
    on_test = evaluate_logits(test_logits, test)
    on_validation = evaluate_logits(run(onnx_path, validation_pixels), validation)
    known = {sample.patient for sample in (*training, *validation)}
    fresh = [index for index, sample in enumerate(test) if sample.patient not in known]
    on_fresh = (
        evaluate_logits(test_logits[fresh], [test[index] for index in fresh]) if fresh else None
    )
    on_unused = None
    if unused:
        # Too few images, and a class missing: counts say all that can be said.
        unused_logits = run(onnx_path, normalise(load_images(unused), mean, std))
        on_unused = confusion_matrix(unused_logits, labels_of(unused)).tolist()
    counts = Counter(CLASSES[sample.label] for sample in training)
    manifest = build_manifest(
        onnx_path, mean, std, on_test, on_validation, dict(sorted(counts.items()))
    )
    write_manifest(manifest, output / "manifest.json")
    card = render_card(manifest, on_fresh, on_unused, float(abs(test_logits).max()))
    write_atomically(output / "card.md", card.encode("utf-8"))
    for name, evaluation in (("validation", on_validation), ("test", on_test)):
        figures = "  ".join(f"{key} {value:.4f}" for key, value in evaluation.values.items())
        print(f"{name}: {evaluation.images} images  {figures}")


def main() -> None:
    """Run training from the command line."""
    parser = build_parser()
    arguments = parser.parse_args()
    from dataclasses import replace

    from training.train import LabelledImages, TrainingConfig, train

    chosen = {
        name: getattr(arguments, name)
        for name in ("seed", "threads", "width", "stages")
        if getattr(arguments, name) is not None
    }
    config = replace(TrainingConfig(), **chosen)
    try:
        test = index_folder(arguments.data / "test")
        own_validation = arguments.data / "val"
        unused = index_folder(own_validation) if own_validation.is_dir() else []
        training, validation = split_by_patient(
            index_folder(arguments.data / "train"), VALIDATION_FRACTION, config.seed
        )
        print(f"{len(training)} images to train on, {len(validation)} to validate on")
        result = train(
            LabelledImages(load_images(training), labels_of(training)),
            LabelledImages(load_images(validation), labels_of(validation)),
            config,
            report=lambda line: print(line, flush=True),
        )
        print(f"trained in {result.seconds:.0f} s")
        publish(result, training, validation, test, unused, arguments.output)
    except DataError as error:
        parser.exit(2, f"error: {error}\n")


if __name__ == "__main__":
    main()
