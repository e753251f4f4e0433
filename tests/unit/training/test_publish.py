"""From a trained network to a folder that the product compiles and serves."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("torch")
pytest.importorskip("matplotlib")

import torch

from data_owner.images import read_image
from data_owner.preprocess import preprocess
from radiopaque.cli.calibrate import calibrate_model
from radiopaque.graph.compile import compile_model
from radiopaque.graph.manifest import Manifest
from tests.unit.training.pictures import SIZE, private_settings, read, settings_of
from training import evaluate
from training import publish as publishing
from training.checkpoint import Progress, RoundRecord
from training.config import TrainingSettings
from training.data import CLASSES, index_folder, load_images
from training.errors import SettingsError
from training.evaluate import normalise, run_on
from training.federated import build_network
from training.intake import Intake
from training.networks import PIXEL_STATISTICS, export_ready
from training.partition import sites_of
from training.provenance import Provenance, provenance_of
from training.publish import (
    Publication,
    patients_of,
    publish,
    publish_again,
    read_test,
)

REPOSITORY = Path(__file__).resolve().parents[3]
SAMPLES = REPOSITORY / "samples" / "labelled"
PIXELS = PIXEL_STATISTICS["resnet18"]
FILES = [
    "calibration.png",
    "card.md",
    "confusion.png",
    "evaluation.json",
    "manifest.json",
    "model.onnx",
    "roc.png",
]
OUTPUT = {"name": "lungs", "version": "2.1", "description": "A try.", "data_set": "kermany"}
torch.set_num_threads(1)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, folder: Path) -> Path:
    """A folder with train/ and test/; of the test images, two patients are not in train/."""
    root = tmp_path_factory.mktemp("xrays")
    (root / "train").symlink_to(folder / "train")
    for number in (1, 2, 3, 98, 99):
        for kind, name in (
            ("NORMAL", f"IM-{number:04d}-0009.png"),
            ("PNEUMONIA", f"person{number}_bacteria_9.png"),
            ("PNEUMONIA", f"person{number}_virus_9.png"),
        ):
            path = root / "test" / kind / name
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.random.default_rng(number).integers(0, 256, (SIZE, SIZE))
            Image.fromarray(pixels.astype(np.uint8)).save(path)
    return root


def progress_of(settings: TrainingSettings, rounds: int = 2) -> Progress:
    """A run of some rounds, of which the first was the best one."""
    metrics = {"epsilon_prv": 1.5, "epsilon_rdp": 1.75, "private_steps": 4.0}
    names = list(settings.site_names)
    records = [
        RoundRecord(
            number=number + 1,
            loss=None,
            validation_loss=1.0,
            validation_auc=0.5,
            samples=60,
            seconds=0.1,
            sites=names,
            lost=[],
            spent=[],
            metrics={name: dict(metrics) if settings.privacy else {"loss": 1.0} for name in names},
        )
        for number in range(rounds)
    ]
    return Progress({}, {}, best_round=1, best_auc=0.5, records=records)


def with_samples(records: list[RoundRecord], samples: tuple[int, ...]) -> list[RoundRecord]:
    return [replace(record, samples=n) for record, n in zip(records, samples, strict=True)]


def provenance(settings: TrainingSettings, intake: Intake) -> Provenance:
    samples = sites_of(settings, intake.training.samples)
    return provenance_of(settings, progress_of(settings), "all rounds done", samples)


def published(settings: TrainingSettings, data: Path, folder: Path) -> Publication:
    intake = read(data, settings)
    test, _ = read_test(data, settings.data)
    return publish(
        export_ready(build_network(settings)),
        provenance(settings, intake),
        PIXELS,
        folder,
        validation=intake.validation,
        test=test,
        patients=patients_of(intake.training, intake.validation),
    )


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Publication:
    folder = tmp_path_factory.mktemp("models") / "plain"
    return published(settings_of(output=OUTPUT), data, folder)


@pytest.fixture(scope="module")
def private(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Publication:
    folder = tmp_path_factory.mktemp("models") / "private"
    settings = private_settings(folder / "secret", output={"data_set": "kermany"})
    return published(settings, data, folder)


def test_the_folder_is_complete_and_the_product_reads_it(plain: Publication) -> None:
    assert sorted(path.name for path in plain.folder.iterdir()) == FILES
    manifest = Manifest.load(plain.folder)
    assert (manifest.name, manifest.version) == ("lungs", "2.1")
    assert manifest.description == "A try."
    spec = manifest.preprocessing
    assert (spec.channels, spec.height, spec.width) == (1, SIZE, SIZE)
    assert (spec.mean, spec.std) == ((PIXELS[0],), (PIXELS[1],))
    for name in ("roc.png", "confusion.png", "calibration.png"):
        with Image.open(plain.folder / name) as picture:
            assert picture.size[0] > 800  # two panels
            assert len(np.unique(np.asarray(picture.convert("L")))) > 20


def test_it_compiles_once_it_has_ranges(plain: Publication, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("model.onnx", "manifest.json"):
        (folder / name).write_bytes((plain.folder / name).read_bytes())
    done = calibrate_model(folder, sorted(SAMPLES.rglob("*.jpeg"))[:4])
    manifest = Manifest.load(folder)
    assert len(manifest.ranges) == done.tensors > 10
    assert manifest.training == plain.manifest["training"]
    assert compile_model(manifest.onnx_path, manifest=manifest).report.calibrated


@pytest.mark.parametrize("size", [SIZE, 128])
def test_the_product_prepares_images_as_training_does(size: int, plain: Publication) -> None:
    """Training resizes 8-bit images, in two passes that round; the product does it in floats."""
    spec = replace(Manifest.load(plain.folder).preprocessing, height=size, width=size)
    samples = index_folder(SAMPLES)[::6]
    ours = normalise(load_images(samples, size), *PIXELS)
    theirs = np.stack([preprocess(read_image(sample.path), spec) for sample in samples])
    assert theirs.shape == ours.shape == (4, 1, size, size)
    one_level = 1.0 / 255.0 / PIXELS[1]
    assert 0.0 < np.abs(theirs - ours).max() <= one_level


def test_figures_are_those_of_the_file(plain: Publication, data: Path) -> None:
    settings = settings_of()
    test, message = read_test(data, settings.data)
    assert test is not None
    assert message == ""
    logits = run_on(plain.folder / "model.onnx", test.images, *PIXELS)
    labels = np.array([sample.label for sample in test.samples])
    metrics = plain.manifest["metrics"]
    assert metrics["test"]["accuracy"] == pytest.approx(
        (logits.argmax(axis=1) == labels).mean(), abs=1e-6
    )
    assert metrics["test"]["images"] == 15
    assert "chose nothing" in metrics["test"]["note"]
    assert "chose the round" in metrics["validation"]["note"]
    assert "15 bins" in metrics["definitions"]["ece"]
    assert metrics["test"]["unseen_numbers"]["images"] == 6
    written = json.loads((plain.folder / "evaluation.json").read_text())
    assert written["test"] == metrics["test"]
    bins = written["reliability"]["validation"]
    assert sum(entry["images"] for entry in bins) == metrics["validation"]["images"]


def test_what_is_known_of_the_sites_is_told(plain: Publication) -> None:
    training, data = plain.manifest["training"], plain.manifest["training_data"]
    counts = [site["images_by_class"] for site in training["sites"]]
    assert [sum(c.values()) for c in counts] == [site["images"] for site in training["sites"]]
    assert data["images_by_class"] == {title: sum(c[title] for c in counts) for title in CLASSES}
    assert data["images"] == sum(data["images_by_class"].values())
    assert training["chosen_round"] == 1
    assert training["secure_aggregation"] is True
    assert (training["weights"]["stored_as"], training["private"]) == ("float16", False)
    assert training["settings"]["training"]["rounds"] == 3


def test_a_private_model_tells_epsilon_and_not_the_classes(private: Publication) -> None:
    training = private.manifest["training"]
    for site in training["sites"]:
        assert set(site) == {"name", "images", "privacy"}
        loss = site["privacy"]
        assert (loss["epsilon_prv"], loss["epsilon_rdp"]) == (1.5, 1.75)
        assert (loss["steps"], loss["steps_of_run"]) == (4, 4)
        assert (loss["delta"], loss["noise_multiplier"], loss["clip_norm"]) == (1e-5, 1.0, 1.0)
    assert "images_by_class" not in private.manifest["training_data"]
    # which test patients have a number that a site trains on would be un-noised, too
    assert "unseen_numbers" not in private.manifest["metrics"]["test"]
    text = (private.folder / "manifest.json").read_text() + (private.folder / "card.md").read_text()
    assert "secret" not in text  # the folder of the budgets is a path of somebody's machine
    assert Manifest.load(private.folder).training["private"] is True


def test_without_images_nothing_is_claimed(tmp_path: Path) -> None:
    """As a coordinator has it that sums updates and holds no image."""
    settings = settings_of()
    record = provenance_of(
        settings,
        progress_of(settings),
        "all rounds done",
        chosen_by="last round",
        placement="several machines",
    )
    (tmp_path / "roc.png").write_bytes(b"of an earlier model")
    done = publish(export_ready(build_network(settings)), record, PIXELS, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "card.md",
        "evaluation.json",
        "manifest.json",
        "model.onnx",
    ]
    assert done.manifest["metrics"] == {}
    assert done.manifest["training"]["weights"]["stored_as"] == "float32"
    assert done.manifest["training"]["chosen_round"] == 2
    assert done.manifest["training_data"]["images"] == 60
    assert [set(site) for site in done.manifest["training"]["sites"]] == [{"name"}] * 3
    card = (tmp_path / "card.md").read_text()
    assert "Not measured on any image" in card
    assert "roc.png" not in card
    assert Manifest.load(tmp_path).metrics == {}


def test_of_images_at_sites_nothing_is_inferred_from_those_of_the_coordinator(
    data: Path, tmp_path: Path
) -> None:
    settings = settings_of()
    progress = progress_of(settings, 3)
    progress.best_round = 2
    progress.records = with_samples(progress.records, (60, 40, 20))
    record = provenance_of(settings, progress, "all rounds done", placement="several machines")
    validation = read(data, settings).validation
    network = export_ready(build_network(settings))
    done = publish(network, record, PIXELS, tmp_path, validation=validation)
    used = done.manifest["training_data"]
    assert "stored with" not in used["changes"]
    assert f"stretched to {SIZE}x{SIZE}" in used["changes"]
    assert used["images"] == 40
    note = done.manifest["metrics"]["validation"]["note"]
    assert note.startswith("the coordinator's own images, of no site; chose the round")
    card = (tmp_path / "card.md").read_text()
    assert note in card
    assert "cut from the training folder" not in card
    with pytest.raises(SettingsError, match="across machines"):
        publish_again(tmp_path, data)


@pytest.mark.parametrize(
    ("samples", "images"), [((60, 0), 60), ((60, 40), 40), ((0, 40), 40), ((0, 0), None)]
)
def test_a_round_whose_sum_did_not_come_out_has_no_images(
    samples: tuple[int, int], images: int | None
) -> None:
    settings = settings_of()
    progress = progress_of(settings)
    progress.records = with_samples(progress.records, samples)
    made = provenance_of(settings, progress, "all rounds done", chosen_by="last round")
    assert made.images == images


def test_ranges_stay_with_the_file_they_were_measured_on(
    plain: Publication, data: Path, tmp_path: Path
) -> None:
    again = publish_again(plain.folder, data)
    assert again.manifest == plain.manifest
    path = plain.folder / "manifest.json"
    with_ranges = {**plain.manifest, "ranges": {"image": [-2.0, 2.0]}}
    path.write_text(json.dumps(with_ranges))
    assert publish_again(plain.folder, data).manifest["ranges"] == {"image": [-2.0, 2.0]}
    settings = settings_of(output=OUTPUT)
    assert "ranges" in published(settings, data, plain.folder).manifest
    other = settings_of(output=OUTPUT, seed=6)
    assert "ranges" not in published(other, data, plain.folder).manifest


def test_a_failure_leaves_the_old_folder(
    plain: Publication, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "model"
    settings = settings_of(output=OUTPUT)
    published(settings, data, folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def fail(*rest: Any) -> str:
        raise RuntimeError("the card")

    monkeypatch.setattr(publishing, "render_card", fail)
    with pytest.raises(RuntimeError, match="the card"):
        published(settings_of(output=OUTPUT, seed=7), data, folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_the_manifest_is_written_last(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []

    def note(path: Path, content: bytes) -> None:
        written.append(path.name)

    monkeypatch.setattr(publishing, "write_atomically", note)
    published(settings_of(), data, tmp_path)
    assert sorted(written) == FILES
    assert (written[0], written[-1]) == ("model.onnx", "manifest.json")


def test_a_full_disk_is_explained(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*rest: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(publishing, "write_atomically", fail)
    with pytest.raises(SettingsError, match=r"No space left.*resume"):
        published(settings_of(), data, tmp_path)


def test_a_test_folder_that_cannot_be_used_is_no_failure(
    data: Path, folder: Path, tmp_path: Path
) -> None:
    settings = settings_of().data
    assert read_test(folder, settings) == (None, f"there is no folder {folder / 'test'}")
    (tmp_path / "train").symlink_to(data / "train")
    (tmp_path / "test" / "NORMAL").mkdir(parents=True)
    (tmp_path / "test" / "NORMAL" / "IM-0001-0001.png").write_bytes(b"no image")
    assert "PNEUMONIA" in read_test(tmp_path, settings)[1]
    (tmp_path / "test" / "PNEUMONIA").mkdir()
    (tmp_path / "test" / "PNEUMONIA" / "person1_virus_1.png").write_bytes(b"no image")
    assert "no image in" in read_test(tmp_path, settings)[1]


def test_a_class_missing_in_the_test_folder_is_undefined(data: Path, tmp_path: Path) -> None:
    (tmp_path / "train").symlink_to(data / "train")
    for path in (data / "test").rglob("*.png"):
        if "virus" not in path.name:
            kept = tmp_path / path.relative_to(data)
            kept.parent.mkdir(parents=True, exist_ok=True)
            kept.symlink_to(path)
    done = published(settings_of(), tmp_path, tmp_path / "model")
    assert done.manifest["metrics"]["test"]["macro_auc"] is None
    assert done.manifest["metrics"]["test"]["auc_by_class"]["viral pneumonia"] is None
    assert any("macro AUC undefined" in line for line in done.lines())
    assert "| AUC, viral pneumonia | undefined |" in (done.folder / "card.md").read_text()
    assert Manifest.load(done.folder).name == "pneumonia-resnet18"


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda content: content.pop("training"), "does not say how"),
        (lambda content: content.update(sha256="0" * 64), "not the file"),
        (lambda content: content.update(onnx="gone.onnx"), "does not say how"),
    ],
)
def test_a_folder_that_cannot_be_measured_again_is_explained(
    change: Any, text: str, plain: Publication, data: Path, tmp_path: Path
) -> None:
    content = json.loads((plain.folder / "manifest.json").read_text())
    (tmp_path / "model.onnx").write_bytes((plain.folder / "model.onnx").read_bytes())
    change(content)
    (tmp_path / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(SettingsError, match=text):
        publish_again(tmp_path, data)
    with pytest.raises(SettingsError, match="cannot be read"):
        publish_again(tmp_path / "nowhere", data)


def test_a_folder_without_images_is_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["evaluate", str(tmp_path), str(tmp_path / "nowhere")])
    with pytest.raises(SystemExit) as ended:
        evaluate.main()
    assert ended.value.code == 2
    assert "nowhere" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["publish", str(tmp_path), str(tmp_path)])
    assert publishing.main() == 2
    assert "name a folder that training wrote" in capsys.readouterr().err


def test_figures_need_no_torch_and_nothing_of_training_the_product() -> None:
    script = (
        "import sys; import training.data, training.metrics, training.evaluate;"
        "light = [n for n in ('torch', 'onnx', 'onnxruntime') if n in sys.modules];"
        "import training.publish, training.command, training.export, training.make_samples;"
        "banned = ('radiopaque', 'data_owner', 'model_owner', 'crypto_provider');"
        "print(light, [n for n in banned if n in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[] []"
