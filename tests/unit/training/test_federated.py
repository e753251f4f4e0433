"""Training as several sites: the same result with and without secure aggregation, and after breaks.

Pictures are those of `test_train`: stripes that a tiny network learns at once.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch")
pytest.importorskip("opacus")

from tests.unit.training.pictures import SIZE, STILL, read, settings_of  # noqa: E402
from training import checkpoint, command, federated  # noqa: E402
from training.accounting import Steps, rdp_epsilon  # noqa: E402
from training.config import TrainingSettings, load_settings  # noqa: E402
from training.errors import (  # noqa: E402
    BudgetSpentError,
    CheckpointError,
    DivergedError,
    SettingsError,
    SiteLostError,
    TooFewSitesError,
)
from training.local import LocalSite, rate_at  # noqa: E402
from training.partition import sites_of  # noqa: E402
from training.rounds import RoundRunner  # noqa: E402
from training.site import (  # noqa: E402
    Site,
    applied,
    flatten,
    load_weights,
    shared_names,
    unflatten,
    weights_of,
)

torch.set_num_threads(1)


def one_round(folder: Path, settings: TrainingSettings) -> tuple[Any, np.ndarray, np.ndarray]:
    model = federated.build_network(settings)
    sites = federated.build_sites(settings, read(folder, settings).training)
    before = weights_of(model)
    runner = RoundRunner(
        settings.federation_or_default(), [site.name for site in sites], settings.training.rounds
    )
    result = runner.run(0, sites, model, before)
    names = shared_names(model)
    return result, flatten(before, names), flatten(result.weights, names)


@pytest.mark.parametrize("split", ["class", "size"])
def test_secure_aggregation_changes_no_weight(folder: Path, split: str) -> None:
    plain, before, without = one_round(
        folder, settings_of(federation={"split": split, "secure_aggregation": False})
    )
    secure, _, with_masks = one_round(folder, settings_of(federation={"split": split}))
    assert np.abs(without - before).max() > 1e-3
    assert np.abs(with_masks - without).max() <= 1e-4
    # Rounding to 2^-24 explains what is left, not the tolerance of the acceptance.
    assert np.abs(with_masks - without).max() <= 2.0**-23 + 1e-6 * np.abs(without).max()
    assert secure.samples == plain.samples
    assert secure.sites == plain.sites == ("site-1", "site-2", "site-3")


def test_the_mean_is_weighted_by_samples(folder: Path) -> None:
    settings = settings_of(federation={"split": "size", "secure_aggregation": False})
    result, before, after = one_round(folder, settings)
    sites = federated.build_sites(settings, read(folder, settings).training)
    model = federated.build_network(settings)
    initial = weights_of(model)
    weighted = 0.0
    for site in sites:
        site.begin(0, 3)
        update = site.step(model, initial)
        weighted = weighted + update.delta.astype(float) * len(site._images)  # type: ignore[attr-defined]
    assert len({site.samples for site in sites}) == 3
    assert np.abs(before + weighted / result.samples - after).max() <= 1e-6


def test_the_sites_learn_and_the_best_round_is_kept(folder: Path, tmp_path: Path) -> None:
    settings = settings_of(training={"rounds": 6, "local_steps": 8})
    intake = read(folder, settings)
    lines: list[str] = []
    outcome = federated.run(settings, intake, tmp_path, report=lines.append)
    areas = [record.validation_auc for record in outcome.progress.records]
    assert outcome.progress.best_auc == max(areas) >= 0.95
    assert outcome.progress.best_round == areas.index(max(areas)) + 1
    validator = federated.Validator(intake.validation, outcome.model, settings)
    assert validator.score(outcome.model)[1] == max(areas)
    assert len(lines) == 6
    log = json.loads((tmp_path / federated.LOG_FILE).read_text())
    assert len(log["rounds"]) == 6
    assert log["best_validation_auc"] == outcome.progress.best_auc


class Breaking:
    """A site that fails in one round in a way of its own."""

    def __init__(self, site: Site, number: int, error: BaseException) -> None:
        self._site, self._number, self._error, self._now = site, number, error, 0
        self.name, self.samples = site.name, site.samples

    def begin(self, number: int, rounds: int) -> None:
        self._now = number
        self._site.begin(number, rounds)

    def step(self, model: Any, weights: Any) -> Any:
        if self._now == self._number:
            raise self._error
        return self._site.step(model, weights)


def broken_run(
    folder: Path,
    output: Path,
    settings: TrainingSettings,
    breaks: dict[int, tuple[int, BaseException]],
    **options: Any,
) -> federated.Outcome:
    intake = read(folder, settings)
    sites = federated.build_sites(settings, intake.training)
    for place, (number, error) in breaks.items():
        sites[place] = Breaking(sites[place], number, error)
    options.setdefault("report", lambda line: None)
    return federated.run(settings, intake, output, sites=sites, **options)


@pytest.mark.parametrize("secure", [False, True])
def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(
    folder: Path, tmp_path: Path, secure: bool
) -> None:
    settings = settings_of(
        training={"rounds": 4}, federation={"secure_aggregation": secure}, augmentation={"mixup": 1}
    )
    whole = broken_run(folder, tmp_path / "whole", settings, {})
    with pytest.raises(KeyboardInterrupt):
        broken_run(folder, tmp_path / "broken", settings, {1: (2, KeyboardInterrupt())})
    saved = checkpoint.load(
        tmp_path / "broken", f"{settings.digest()}/{read(folder, settings).fingerprint()}"
    )
    assert len(saved.records) == 2
    lines: list[str] = []
    resumed = broken_run(
        folder, tmp_path / "broken", settings, {}, resume=True, report=lines.append
    )
    assert lines[0] == "resumed after round 2"
    assert len(resumed.progress.records) == 4
    assert resumed.progress.best_round == whole.progress.best_round
    for name, tensor in whole.progress.weights.items():
        assert torch.equal(resumed.progress.weights[name], tensor)


def test_a_run_is_not_overwritten_and_not_mixed_up(folder: Path, tmp_path: Path) -> None:
    settings = settings_of(training={"rounds": 1})
    broken_run(folder, tmp_path, settings, {})
    with pytest.raises(SettingsError, match="--resume"):
        broken_run(folder, tmp_path, settings, {})
    with pytest.raises(CheckpointError, match="another configuration"):
        broken_run(folder, tmp_path, settings_of(seed=6), {}, resume=True)
    with pytest.raises(CheckpointError, match="no checkpoint"):
        broken_run(folder, tmp_path / "elsewhere", settings, {}, resume=True)
    content = (tmp_path / checkpoint.FILE).read_bytes()
    for broken in (b"", content[:-100], b"PK" + content[2:200], b"\x80\x04c__main__\nx\n."):
        (tmp_path / checkpoint.FILE).write_bytes(broken)
        with pytest.raises(CheckpointError, match="is not a checkpoint"):
            broken_run(folder, tmp_path, settings, {}, resume=True)


def test_a_checkpoint_cannot_run_code(tmp_path: Path) -> None:
    torch.save({"version": 1, "fingerprint": "f", "weights": print}, tmp_path / checkpoint.FILE)
    with pytest.raises(CheckpointError, match="is not a checkpoint"):
        checkpoint.load(tmp_path, "f")


def test_a_site_lost_in_mid_round_is_left_out(folder: Path, tmp_path: Path) -> None:
    settings = settings_of(federation={"sites": 4, "split": "iid"})
    lines: list[str] = []
    outcome = broken_run(
        folder, tmp_path, settings, {2: (1, SiteLostError("gone"))}, report=lines.append
    )
    records = outcome.progress.records
    assert [record.lost for record in records] == [[], ["site-3"], []]
    assert records[1].sites == ["site-1", "site-2", "site-4"]
    assert records[1].samples < records[0].samples == records[2].samples
    assert "lost site-3" in lines[1]


@pytest.mark.parametrize("secure", [False, True])
def test_too_many_lost_sites_lose_the_round_only(
    folder: Path, tmp_path: Path, secure: bool
) -> None:
    settings = settings_of(federation={"secure_aggregation": secure, "split": "iid"})
    with pytest.raises(TooFewSitesError, match=r"site-2 was lost.*resume"):
        broken_run(folder, tmp_path, settings, {1: (1, SiteLostError("gone"))})
    outcome = broken_run(folder, tmp_path, settings, {}, resume=True)
    assert [record.number for record in outcome.progress.records] == [1, 2, 3]


def test_a_spent_budget_ends_training_with_what_there_is(folder: Path, tmp_path: Path) -> None:
    settings = settings_of(federation={"split": "iid"})
    outcome = broken_run(folder, tmp_path, settings, {0: (2, BudgetSpentError("spent"))})
    assert outcome.stopped == "the privacy budget of site-1 is spent"
    assert len(outcome.progress.records) == 2


def test_a_site_with_a_spent_budget_stays_out(folder: Path, tmp_path: Path) -> None:
    settings = settings_of(federation={"sites": 4, "split": "iid"})
    outcome = broken_run(folder, tmp_path, settings, {0: (1, BudgetSpentError("spent"))})
    used = [record.sites for record in outcome.progress.records]
    assert used[0] == ["site-1", "site-2", "site-3", "site-4"]
    assert used[1] == used[2] == ["site-2", "site-3", "site-4"]


def test_a_loss_that_is_not_a_number_stops_and_keeps_the_checkpoint(
    folder: Path, tmp_path: Path
) -> None:
    settings = settings_of(training={"learning_rate": 1e30, "warm_up": 0.0, "rounds": 2})
    with pytest.raises(DivergedError, match=r"site-1|not finite"):
        broken_run(folder, tmp_path, settings, {})
    good = settings_of(federation={"split": "iid"})
    with pytest.raises(DivergedError):
        broken_run(folder, tmp_path / "late", good, {1: (2, DivergedError("nan"))})
    assert len(broken_run(folder, tmp_path / "late", good, {}, resume=True).progress.records) == 3


def test_patience(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    areas = iter([0.6, 0.7, 0.7, 0.65, 0.9])
    monkeypatch.setattr(federated.Validator, "score", lambda *arguments: (1.0, next(areas)))
    settings = settings_of(training={"rounds": 5, "patience": 2, "local_steps": 1})
    outcome = broken_run(folder, tmp_path, settings, {})
    assert outcome.stopped == "no better validation AUC for 2 rounds"
    assert outcome.progress.best_round == 2
    assert len(outcome.progress.records) == 4


# -- splitting and reading --------------------------------------------------------------------


@pytest.mark.parametrize("split", ["iid", "class", "size"])
def test_no_patient_is_in_two_sites_and_no_image_is_lost(folder: Path, split: str) -> None:
    settings = settings_of(federation={"split": split})
    samples = read(folder, settings).training.samples
    parts = sites_of(settings, samples)
    assert sorted(s.path for part in parts.values() for s in part) == sorted(
        s.path for s in samples
    )
    patients = [{s.patient for s in part} for part in parts.values()]
    assert not patients[0] & patients[1]
    assert not patients[0] & patients[2]
    assert not patients[1] & patients[2]


def test_skews(folder: Path) -> None:
    settings = settings_of(federation={"split": "class", "skew": 1.0})
    samples = read(folder, settings).training.samples
    by_class = sites_of(settings, samples)
    assert [{s.label for s in part} for part in by_class.values()] == [{0}, {1}, {2}]
    by_size = sites_of(settings_of(federation={"split": "size", "skew": 1.0}), samples)
    sizes = [len(part) for part in by_size.values()]
    assert sizes[0] > 1.3 * sizes[1] > 1.3 * sizes[2]
    even = sites_of(settings_of(federation={"split": "class", "skew": 0.0}), samples)
    assert max(map(len, even.values())) - min(map(len, even.values())) <= 2


def test_a_site_without_images_is_explained(folder: Path) -> None:
    settings = settings_of(federation={"split": "class", "skew": 1.0, "sites": 4})
    with pytest.raises(SettingsError, match="no images for site-4"):
        federated.build_sites(settings, read(folder, settings).training)
    with pytest.raises(SettingsError, match="'lonely' has 0 images"):
        LocalSite("lonely", np.empty((0, 1, 8, 8), np.uint8), np.empty(0, np.int64), 3, settings)


def copy_of(folder: Path, target: Path) -> Path:
    for path in folder.rglob("*.png"):
        copied = target / path.relative_to(folder)
        copied.parent.mkdir(parents=True, exist_ok=True)
        copied.write_bytes(path.read_bytes())
    return target


def test_unreadable_images_are_named_and_skipped_or_refused(folder: Path, tmp_path: Path) -> None:
    root = copy_of(folder, tmp_path / "chest_xray")
    (root / "train/NORMAL/IM-0003-0001.png").write_bytes(b"")
    whole = root / "train/PNEUMONIA/person7_bacteria_1.png"
    whole.write_bytes(whole.read_bytes()[:200])
    settings = settings_of()
    intake = read(tmp_path, settings)
    assert len(intake.skipped) == 2
    assert "IM-0003-0001.png" in intake.skipped[0]
    assert "person7_bacteria_1.png" in intake.skipped[1]
    assert len(intake.training.samples) + len(intake.validation.samples) == 88
    with pytest.raises(SettingsError, match=r"IM-0003-0001\.png.*skip"):
        read(tmp_path, settings_of(data={"unreadable": "refuse"}))


def test_missing_folders_and_empty_classes_are_explained(folder: Path, tmp_path: Path) -> None:
    settings = settings_of()
    with pytest.raises(SettingsError, match="holds train/NORMAL"):
        read(tmp_path, settings)
    root = copy_of(folder, tmp_path / "copy")
    for path in root.rglob("*virus*"):
        path.unlink()
    with pytest.raises(SettingsError, match="no image of class viral pneumonia to train on"):
        read(root, settings)
    for path in root.rglob("*bacteria*"):
        path.unlink()
    with pytest.raises(SettingsError, match="PNEUMONIA holds no"):
        read(root, settings)


# -- site step --------------------------------------------------------------------------------


def test_flat_vectors_go_back_into_the_network(folder: Path) -> None:
    model = federated.build_network(settings_of())
    weights, names = weights_of(model), shared_names(model)
    assert len(names) == len(set(names))
    assert sum(name.endswith("running_var") for name in names) == 20
    flat = flatten(weights, names)
    back = unflatten(flat, weights, names)
    assert all(torch.equal(back[name], weights[name]) for name in names)
    moved = applied(weights, np.ones_like(flat), names)
    load_weights(model, moved)
    assert np.array_equal(flatten(weights_of(model), names), flat + 1)
    with pytest.raises(SettingsError, match="shape"):
        unflatten(flat[:-1], weights, names)
    with pytest.raises(SettingsError, match="do not belong"):
        load_weights(model, {"other": torch.zeros(1)})
    with pytest.raises(SettingsError, match="has shape"):
        load_weights(model, {**weights, names[0]: torch.zeros(1)})


def test_frozen_norms_are_not_shared() -> None:
    model = federated.build_network(
        settings_of(model={"name": "efficientnet-lite0", "options": {"pretrained": False}})
    )
    assert shared_names(model) == ("head.linear.weight", "head.linear.bias")


def test_kept_features_train_like_the_network_itself(folder: Path) -> None:
    model = {"name": "efficientnet-lite0", "options": {"pretrained": False}}
    still = settings_of(model=model)
    # Noise of no visible size switches the keeping of features off.
    moving = settings_of(model=model, augmentation={"noise": 1e-30})
    updates = []
    for settings in (still, moving):
        network = federated.build_network(settings)
        site = federated.build_sites(settings, read(folder, settings).training)[0]
        site.begin(0, 1)
        updates.append(site.step(network, weights_of(network)).delta)
        assert (site._features is None) == (settings is moving)  # type: ignore[attr-defined]
    assert np.abs(updates[0]).max() > 0
    assert np.abs(updates[0] - updates[1]).max() <= 1e-6


def test_the_learning_rate() -> None:
    settings = settings_of(
        training={"learning_rate": 0.1, "warm_up": 0.2, "schedule": "cosine"}
    ).training
    rates = [rate_at(progress, settings) for progress in (0.1, 0.2, 0.6, 1.0)]
    assert rates == pytest.approx([0.05, 0.1, 0.05, 0.0], abs=1e-12)
    constant = settings.model_copy(update={"schedule": "constant"})
    assert rate_at(0.9, constant) == 0.1


# -- configuration and command ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("colour = 1", "colour: Extra inputs"),
        ("[training]\nrounds = 0", "training.rounds"),
        ("[training]\nrouns = 5", "training.rouns"),
        ("[federation]\nsites = 3", "no effect in mode"),
        ('mode = "federated"\n[federation]\nsites = 2', "at least 3 sites"),
        ('mode = "federated"\n[federation]\nthreshold = 4', "exceeds the 3 sites"),
        ('mode = "federated"\n[federation]\nsites = 5\nthreshold = 2', "more than half"),
        ("[training]\nlearning_rate = nan", "learning_rate"),
        ("rounds = ", "TOML"),
        ("[privacy]\nnoise_multiplier = 1.0", "privacy.sample_rate"),
    ],
)
def test_wrong_configurations_are_explained(text: str, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "wrong.toml"
    path.write_text(text)
    with pytest.raises(SettingsError, match=reason):
        load_settings(path)
    with pytest.raises(SettingsError, match="no file"):
        load_settings(tmp_path / "missing.toml")


PRIVACY = {"noise_multiplier": 1.0, "sample_rate": 0.2, "epsilon": 8.0, "budget_folder": "b"}
STANDARDISED = {"options": {"width": 2, "normalisation": "standardised"}}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (
            {"training": {"local_steps": 1, "class_weights": True, "batch_size": 8}},
            r"training\.batch_size, training\.class_weights: no effect",
        ),
        ({"augmentation": STILL}, "augmentation"),
        ({"training": {"local_steps": 0}}, "local_steps"),
        ({"privacy": {**PRIVACY, "sites": {"site-9": {}}}}, "site-9"),
    ],
)
def test_settings_without_effect_on_private_training_are_refused(
    changes: dict[str, Any], reason: str
) -> None:
    base = {"privacy": PRIVACY, "mode": "federated", "training": {"local_steps": 1}}
    assert TrainingSettings.model_validate(base).privacy is not None
    with pytest.raises(ValueError, match=reason):
        TrainingSettings.model_validate({**base, **changes})


def private_settings(folder: Path, **privacy: Any) -> TrainingSettings:
    return TrainingSettings.model_validate(
        {
            "mode": "federated",
            "threads": 1,
            "data": {"image_size": SIZE, "validation_fraction": 0.2},
            "model": STANDARDISED,
            "training": {"rounds": 3, "local_steps": 2, "learning_rate": 0.1},
            "federation": {"sites": 3},
            "privacy": {**PRIVACY, "accountant": "rdp", "budget_folder": str(folder), **privacy},
        }
    )


def test_private_sites_report_and_keep_their_budgets(folder: Path, tmp_path: Path) -> None:
    settings = private_settings(
        tmp_path / "budgets", sites={"site-2": {"noise_multiplier": 4.0, "delta": 1e-6}}
    )
    lines: list[str] = []
    outcome = federated.run(settings, read(folder, settings), tmp_path / "run", report=lines.append)
    metrics = outcome.progress.records[-1].metrics
    assert set(metrics) == {"site-1", "site-2", "site-3"}
    assert metrics["site-2"]["epsilon_rdp"] < metrics["site-1"]["epsilon_rdp"]
    assert "epsilon site-1 " in lines[-1]
    kept = json.loads((tmp_path / "budgets" / "site-1.json").read_text())
    assert kept["steps"][0]["count"] == 6


def test_a_budget_survives_a_restart_and_stops(folder: Path, tmp_path: Path) -> None:
    # Two rounds are four steps; the third would make it six.
    epsilon = rdp_epsilon((Steps(1.0, 0.2, 5),), 1e-5)
    settings = private_settings(tmp_path / "budgets", epsilon=epsilon)
    intake = read(folder, settings)
    outcome = federated.run(settings, intake, tmp_path / "run", report=lambda line: None)
    assert outcome.stopped.startswith("the privacy budget of site-1")
    assert len(outcome.progress.records) == 2
    for name in ("run", "other"):
        with pytest.raises(BudgetSpentError, match=r"site-1.*does not allow one more round"):
            federated.run(
                settings, intake, tmp_path / name, resume=name == "run", report=lambda line: None
            )


def test_a_norm_with_statistics_is_not_trained_privately(folder: Path, tmp_path: Path) -> None:
    settings = private_settings(tmp_path).model_copy(update={"model": settings_of().model})
    with pytest.raises(SettingsError, match="batch norm"):
        federated.build_network(settings)


CONFIG = """
mode = "federated"
threads = 1
[data]
image_size = 32
[model]
options = { width = 2 }
[training]
rounds = 2
local_steps = 2
[federation]
sites = 3
"""


def test_the_command_trains_resumes_and_exports(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "config.toml"
    config.write_text(CONFIG)
    output = tmp_path / "run"
    lines: list[str] = []
    estimated = command.train(
        command.Request(config, folder, output, only_estimate=True), lines.append
    )
    assert not output.exists()
    assert float(estimated["estimate_seconds"]) > 0  # type: ignore[arg-type]

    train_round: Callable[..., Any] = RoundRunner.run

    def interrupted(self: Any, number: int, *rest: Any) -> Any:
        if number == 1:
            raise KeyboardInterrupt
        return train_round(self, number, *rest)

    monkeypatch.setattr(RoundRunner, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        command.train(command.Request(config, folder, output), lines.append)
    assert "--resume" in lines[-1]
    monkeypatch.undo()
    result = command.train(command.Request(config, folder, output, resume=True), lines.append)
    assert result["rounds"] == 2
    assert sorted(path.name for path in output.iterdir()) == [
        "checkpoint.pt",
        "curves.png",
        "log.json",
        "model.onnx",
    ]
    with Image.open(output / "curves.png") as curves:
        assert curves.size[0] > 500
    assert any(line.startswith("about ") for line in lines)
    assert any(line.startswith("site-3: ") for line in lines)
    assert math.isfinite(float(result["best_validation_auc"]))  # type: ignore[arg-type]


def radiopaque(*words: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "radiopaque.cli.main", "train", *words]
    script = f"from radiopaque.cli.main import main; main({line[3:]!r})"
    return subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )


def test_the_command_line_explains_what_is_wrong(folder: Path, tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text(CONFIG)
    done = radiopaque("--config", str(config), "--data", str(tmp_path / "none"), "--json")
    assert done.returncode == 2
    assert json.loads(done.stdout)["error"] == "SettingsError"
    assert "holds train/NORMAL" in done.stderr
    assert "Traceback" not in done.stderr
    assert "--resume" in radiopaque("--help").stdout


@pytest.mark.parametrize(
    ("error", "code"),
    [(BudgetSpentError("b"), 7), (DivergedError("d"), 1), (CheckpointError("c"), 2)],
)
def test_exit_codes(
    error: Exception,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*rest: Any) -> None:
        raise error

    monkeypatch.setattr(command, "train", fail)
    assert command.main(["--config", "a", "--data", "b"]) == code
    assert capsys.readouterr().err == f"{type(error).__name__}: {error}\n"
