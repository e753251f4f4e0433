"""The attack on a whole round at toy size, the masks it meets, and the command."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("torch")
pytest.importorskip("scipy")
pytest.importorskip("opacus")

import torch
from torch.nn import functional

from training.attack import __main__ as command
from training.attack.inversion import InversionSettings
from training.attack.network import SmallNetwork
from training.attack.scenario import (
    MASKED,
    MEAN_IMAGE,
    PLAIN,
    PRIVATE,
    Outcome,
    ScenarioSettings,
    deal,
    problems,
    run_scenario,
    sum_of,
)
from training.attack.steps import LEARNING_RATE, plain_update, secure_round
from training.errors import SettingsError

REPOSITORY = Path(__file__).resolve().parents[3]
SIZE = 24
SETTINGS = ScenarioSettings(
    sites=3,
    attacked=1,
    sums=(3,),
    size=SIZE,
    priors=(0.03,),
    inversion=InversionSettings(iterations=160),
)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def blobs(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Discs of several places and sizes on slopes, float [count, 1, SIZE, SIZE], and labels."""
    rows, columns = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    images = []
    for number in range(count):
        image = 0.2 + 0.4 * (columns if number % 2 else rows) / SIZE
        centre = 6 + 5 * (number % 3), 7 + 4 * (number // 3 % 3)
        near = (rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 < 16 + 5 * (number % 4)
        images.append(torch.where(near, 0.95 - 0.1 * (number % 3), image))
    return torch.stack(images)[:, None], torch.arange(count) % 3


def test_one_round_in_every_setting() -> None:
    lines: list[str] = []
    originals, outcomes = run_scenario(*blobs(3), None, SETTINGS, report=lines.append)
    found = {outcome.setting: outcome for outcome in outcomes}
    assert list(found) == [MEAN_IMAGE, PLAIN, MASKED, sum_of(3), PRIVATE]
    assert len(lines) == 5
    assert [outcome.observed_images for outcome in outcomes] == [0, 1, 1, 3, 1]
    assert torch.equal(originals, blobs(3)[0][:1])
    assert found[PLAIN].mean_ssim > 0.5
    assert found[MASKED].mean_ssim < 0.3
    assert found[PRIVATE].mean_ssim < 0.3
    assert found[MASKED].cosine_distance > 0.5 > 0.05 > found[PLAIN].cosine_distance
    mean = blobs(3)[0][1:].mean(dim=0, keepdim=True)
    assert torch.equal(found[MEAN_IMAGE].images, mean)


def test_one_local_step_is_the_gradient() -> None:
    torch.manual_seed(0)
    model = SmallNetwork(3, SIZE, 4)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    images, labels = blobs(2)
    update = plain_update(model, images, labels)
    loss = functional.cross_entropy(model(images), labels)
    gradient = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])
    assert update.samples == 2
    assert np.allclose(update.delta, -LEARNING_RATE * gradient.numpy(), atol=1e-7)
    assert float(gradient.norm()) > 0.1
    after = list(model.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_the_aggregator_opens_the_mean_and_sees_uniform_vectors() -> None:
    torch.manual_seed(0)
    model = SmallNetwork(3, SIZE, 8)
    images, labels = blobs(6)
    updates = [plain_update(model, images[i : i + 2], labels[i : i + 2]) for i in (0, 2, 4)]
    seen = secure_round(updates)
    mean = np.mean([update.delta for update in updates], axis=0)
    assert np.abs(seen.mean - mean).max() < 2.0**-24
    for masked in seen.masked:
        shares, _ = np.histogram(masked, bins=16, range=(-(2.0**63), 2.0**63))
        expected = len(masked) / 16
        # Chi-squared with 15 degrees of freedom: beyond 60 once in three million.
        assert ((shares - expected) ** 2 / expected).sum() < 60
    again = secure_round(updates)
    assert abs(np.corrcoef(seen.masked[0], again.masked[0])[0, 1]) < 0.1


def test_sites_get_different_images() -> None:
    settings = replace(SETTINGS, sites=3, images_per_site=2)
    assert deal(7, settings) == [[0, 3], [1, 4], [2, 5]]
    with pytest.raises(SettingsError, match="need 6 images, but there are 5"):
        deal(5, settings)


def outcome(setting: str, ssim: float, psnr: float = 10.0, images: int = 1) -> Outcome:
    return Outcome(setting, torch.zeros(0), images, (ssim,), (psnr,), 0.0, 0.0, 0.0)


def test_what_counts_as_a_problem() -> None:
    fine = [
        outcome(MEAN_IMAGE, 0.4, 15.0),
        outcome(PLAIN, 0.8, 25.0),
        outcome(MASKED, 0.1),
        outcome(sum_of(3), 0.7, 20.0, images=3),
        outcome(sum_of(24), 0.39, 14.0, images=24),
        outcome(PRIVATE, 0.2),
    ]
    assert problems(fine) == []
    for changed, word in (
        (outcome(PLAIN, 0.49), "proves nothing"),
        (outcome(MASKED, 0.41), "masked: SSIM"),
        (outcome(sum_of(24), 0.39, 15.1, images=24), "sum of 24: SSIM"),
        (outcome(PRIVATE, 0.2, 16.0), "private: SSIM"),
    ):
        found = problems([changed if each.setting == changed.setting else each for each in fine])
        assert len(found) == 1
        assert word in found[0]


def test_rounds_that_make_no_sense_are_refused() -> None:
    for wrong in (
        {"attacked": 4},
        {"attacked": 0},
        {"sums": (2,)},
        {"sums": (4,)},
        {"sites": 9, "attacked": 5, "sums": (3,)},
        {"priors": ()},
    ):
        with pytest.raises(SettingsError):
            replace(SETTINGS, **wrong)


def write_images(folder: Path, count: int) -> None:
    images, labels = blobs(count)
    kinds = ("NORMAL/IM-{:04d}-0001.png", "PNEUMONIA/person{}_bacteria_1.png")
    for number, image in enumerate(images):
        kind = kinds[int(labels[number] > 0)]
        path = folder / kind.format(number)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((image[0].numpy() * 255).astype(np.uint8)).save(path)


TOY = ["--sites", "3", "--attacked", "1", "--sums", "3", "--size", "24", "--iterations", "20"]


def test_the_command_writes_report_and_pictures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_images(tmp_path / "images", 6)
    folders = ["--images", str(tmp_path / "images"), "--output", str(tmp_path / "out")]
    code = command.main(["inversion", *TOY, *folders, "--threads", "1", "--json"])
    printed = json.loads(capsys.readouterr().out)
    # Twenty iterations are too few: the command must say so, and not claim protection.
    assert code == 1
    assert "proves nothing" in printed["problems"][0]
    assert json.loads((tmp_path / "out" / "inversion.json").read_text()) == printed
    assert [entry["setting"] for entry in printed["outcomes"]][-1] == PRIVATE
    assert printed["settings"]["inversion"]["iterations"] == 20
    with Image.open(tmp_path / "out" / "inversion.png") as picture:
        width, height = picture.size
        assert width == 6 * (2 * 24 + 4) + 4
        assert height == 1 * (2 * 24 + 4) + 34
        pixels = np.asarray(picture)
    first = (blobs(1)[0][0, 0].numpy() * 255).astype(np.uint8)
    assert np.array_equal(pixels[30 : 30 + 48 : 2, 4 : 4 + 48 : 2], first)


def test_the_mean_of_a_background_folder_is_the_guess(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_images(tmp_path / "images", 3)
    write_images(tmp_path / "others", 3)
    folders = ["--images", str(tmp_path / "images"), "--background", str(tmp_path / "others")]
    command.main(["inversion", *TOY, *folders, "--threads", "1", "--json"])
    figures = json.loads(capsys.readouterr().out)["outcomes"][0]
    original, mean = blobs(1)[0], blobs(3)[0].mean(dim=0, keepdim=True)
    error = float((original - mean).square().mean())
    assert figures["mean_psnr"] == pytest.approx(-10 * np.log10(error), abs=0.05)


def test_mistakes_are_explained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["inversion", "--images", str(tmp_path / "nowhere")]) == 2
    assert "nowhere" in capsys.readouterr().err
    write_images(tmp_path / "images", 2)
    assert command.main(["inversion", *TOY, "--images", str(tmp_path / "images")]) == 2
    assert "need 3 images, but there are 2" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        command.main(["inversion", "--sums", "a,b"])
    assert "write 3,6,24" in capsys.readouterr().err


def test_radiopaque_attack_is_the_same_command(tmp_path: Path) -> None:
    missing = tmp_path / "nowhere"
    done = subprocess.run(
        [sys.executable, "-m", "radiopaque", "attack", "audit", "--images", str(missing)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert str(missing) in done.stderr
