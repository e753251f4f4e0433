"""A whole training run in one process: sites, rounds, validation, best weights, checkpoints.

Local training is the same with one site. The validation set is cut by patient before the sites
are, and is the only thing that chooses; the test folder is not read.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from training import checkpoint
from training.budget import Allowance, Budget
from training.checkpoint import Progress, RoundRecord
from training.config import TrainingSettings
from training.data import CLASSES, labels_of
from training.dp import PrivacySettings as PrivateSteps
from training.dp import PrivateSite, refuse_mixing
from training.errors import (
    BudgetSpentError,
    DivergedError,
    SettingsError,
    TooFewSitesError,
    TrainingError,
)
from training.features import FeatureStore
from training.files import prepare_folder, write_atomically
from training.intake import Cohort, Intake
from training.local import LocalSite
from training.networks import PIXEL_STATISTICS, build
from training.partition import sites_of
from training.progress import Watch, unwatched
from training.rounds import RoundResult, RoundRunner
from training.site import Site, Weights, load_weights, weights_of
from training.tensorboard import EventLog
from training.validator import Validator

LOG_FILE = "log.json"
Report = Callable[[str], None]
Keep = Callable[[RoundRecord], None]
Play = Callable[[int, Sequence[str], Weights], RoundResult]
"""Play a round, from 0, with sites of these names, from these weights."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The network with its best weights, in evaluation mode, and how it came about.

    `failed` is why there are no more rounds, if something went wrong after the best one.
    """

    model: nn.Module
    progress: Progress
    stopped: str
    failed: TrainingError | None = None


def build_network(settings: TrainingSettings) -> nn.Module:
    """The network of a configuration, initialised from its seed.

    Raises:
        SettingsError: it cannot be built, or not trained privately though it should be.
    """
    torch.manual_seed(settings.seed)
    model = build(settings.model.name, **settings.model.options)
    _see_that_it_takes_images(model, settings)
    if settings.privacy is not None:
        refuse_mixing(model)
        return model
    channels_last: nn.Module = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return channels_last


def _see_that_it_takes_images(model: nn.Module, settings: TrainingSettings) -> None:
    size = min(stage.size for stage in settings.stages)
    model.eval()
    try:
        with torch.no_grad():
            model(torch.zeros(1, 1, size, size))
    except (RuntimeError, ValueError) as error:
        raise SettingsError(
            f"network {settings.model.name!r} with options {settings.model.options} does not take "
            f"grey images of {size} pixels ({error}); change data.image_size or model.options"
        ) from error


def build_sites(
    settings: TrainingSettings,
    training: Cohort,
    watch: Watch = unwatched,
    store: FeatureStore | None = None,
) -> list[Site]:
    """Cut the training images into sites; give each its step, private or plain.

    Raises:
        SettingsError: a site has no images, or its budget cannot be read.
    """
    return [
        build_site(name, training.select(samples), settings, watch, store)
        for name, samples in sites_of(settings, training.samples).items()
    ]


def build_site(
    name: str,
    cohort: Cohort,
    settings: TrainingSettings,
    watch: Watch = unwatched,
    store: FeatureStore | None = None,
) -> Site:
    """Give one site its step, private or plain.

    Raises:
        SettingsError: the site has no images, or its budget cannot be read.
        BudgetSpentError: its budget does not allow a single round.
    """
    if settings.privacy is None:
        labels = labels_of(cohort.samples)
        return LocalSite(name, cohort.images, labels, len(CLASSES), settings, watch, store)
    return _private_site(name, cohort, settings, watch, store)


def _private_site(
    name: str,
    cohort: Cohort,
    settings: TrainingSettings,
    watch: Watch,
    store: FeatureStore | None,
) -> PrivateSite:
    if settings.privacy is None:
        raise SettingsError("a private site needs the section [privacy]")
    own = settings.privacy.of(name)
    mean, std = PIXEL_STATISTICS[settings.model.name]
    steps = PrivateSteps(
        noise_multiplier=own.noise_multiplier,
        clip_norm=own.clip_norm,
        sample_rate=own.sample_rate,
        steps=settings.training.local_steps,
        learning_rate=settings.training.learning_rate,
        momentum=settings.training.momentum,
        weight_decay=settings.training.weight_decay,
    )
    budget = open_budget(name, settings)
    images = (torch.from_numpy(cohort.images).float() / 255.0 - mean) / std
    labels = torch.from_numpy(labels_of(cohort.samples))
    return PrivateSite(name, images, labels, steps, budget, watch=watch, store=store)


def open_budget(name: str, settings: TrainingSettings) -> Budget:
    """The privacy budget of a site, which must allow one more round.

    Raises:
        SettingsError: it cannot be read, or nothing is private here.
        BudgetSpentError: it does not.
    """
    if settings.privacy is None:
        raise SettingsError("a budget needs the section [privacy]")
    own, steps = settings.privacy.of(name), settings.training.local_steps
    budget = Budget(
        name, Allowance(own.epsilon, own.delta, own.accountant), own.budget_folder / f"{name}.json"
    )
    if budget.remaining(own.noise_multiplier, own.sample_rate, steps) < steps:
        raise BudgetSpentError(
            f"the budget of site {name!r} does not allow one more round (epsilon "
            f"{budget.spent().epsilon_prv:.3f} of {own.epsilon:g} is spent, see "
            f"{own.budget_folder}); its images cannot be trained on any further"
        )
    return budget


def run(
    settings: TrainingSettings,
    intake: Intake,
    folder: Path,
    *,
    resume: bool = False,
    report: Report = print,
    sites: list[Site] | None = None,
    watch: Watch = unwatched,
    store: FeatureStore | None = None,
) -> Outcome:
    """Train; `folder` gets a checkpoint and a log after every round.

    `sites` replaces those that `build_sites` makes; `store` keeps features for the next run. An
    interruption loses the round it falls into and nothing before it: call again with `resume`.

    Raises:
        TrainingError: see the messages; rounds that are done are in the checkpoint.
        DivergedError: before any round could be the best one; later it is in the outcome.
    """
    torch.set_num_threads(settings.threads)
    model = build_network(settings)
    fingerprint = f"{settings.digest()}/{intake.fingerprint()}"
    progress = first_progress(model, folder, fingerprint, resume)
    if resume:
        report(f"resumed after round {len(progress.records)}")
    validator = Validator(intake.validation, model, settings, watch, store)
    everyone = build_sites(settings, intake.training, watch, store) if sites is None else sites
    runner = RoundRunner(
        settings.federation_or_default(),
        [site.name for site in everyone],
        settings.training.rounds,
    )
    by_name = {site.name: site for site in everyone}

    def play(number: int, names: Sequence[str], weights: Weights) -> RoundResult:
        return runner.run(number, [by_name[name] for name in names], model, weights)

    with keeping(settings, progress, folder, fingerprint, report) as kept:
        return lead(settings, progress, play, tuple(by_name), model, validator, kept)


def lead(
    settings: TrainingSettings,
    progress: Progress,
    play: Play,
    names: Sequence[str],
    model: nn.Module,
    validator: Validator | None,
    kept: Sequence[Keep],
) -> Outcome:
    """Play the rounds that are left (`run_rounds`), and put the best weights into the network.

    Raises:
        DivergedError: before any round could be the best one; later it is in the outcome.
    """
    failed: DivergedError | None = None
    try:
        stopped = run_rounds(settings, progress, play, names, model, validator, kept)
    except DivergedError as error:
        if not progress.best_round:
            raise
        stopped, failed = f"training diverged after round {len(progress.records)}", error
    load_weights(model, progress.best)
    model.eval()
    return Outcome(model, progress, stopped, failed)


@contextmanager
def keeping(
    settings: TrainingSettings, progress: Progress, folder: Path, fingerprint: str, report: Report
) -> Iterator[list[Keep]]:
    """What is to be kept after every round: checkpoint, log, a line, and figures if asked for."""
    with ExitStack() as stack:
        kept: list[Keep] = [
            lambda record: checkpoint.save(folder, progress, fingerprint),
            lambda record: _write_log(folder, settings, progress),
            lambda record: report(_line(record, settings)),
        ]
        if settings.output.tensorboard:
            kept.append(stack.enter_context(EventLog(folder, progress.records)).add)
        yield kept


def first_progress(model: nn.Module, folder: Path, fingerprint: str, resume: bool) -> Progress:
    """What a run starts from: the weights of `model`, or those of the checkpoint, put into it."""
    if checkpoint.rounds_done(folder, resume):
        progress = checkpoint.load(folder, fingerprint)
        load_weights(model, progress.weights)
        return progress
    prepare_folder(folder)
    initial = weights_of(model)
    return Progress(initial, initial)


def run_rounds(
    settings: TrainingSettings,
    progress: Progress,
    play: Play,
    names: Sequence[str],
    model: nn.Module,
    validator: Validator | None,
    kept: Sequence[Keep],
) -> str:
    """Play the rounds that are left with the sites `names`, `kept` after each.

    Returns why there are no more. Without a validator the last round is the best one.
    """
    for number in range(len(progress.records), settings.training.rounds):
        active = [name for name in names if name not in progress.retired]
        reason = _reason_to_stop(settings, progress, len(active))
        if reason:
            return reason
        started = time.monotonic()
        try:
            result = play(number, active, progress.weights)
        except TooFewSitesError as error:
            if not error.spent:
                raise
            progress.retired += error.spent
            return f"the privacy budget of {', '.join(error.spent)} is spent"
        load_weights(model, result.weights)
        loss, auc = None, None
        if validator is not None:
            loss, auc = validator.score(model, settings.size_in(number))
        record = _record(number + 1, result, loss, auc, time.monotonic() - started)
        progress.weights = dict(result.weights)
        progress.records.append(record)
        progress.retired += result.spent
        # A network of an earlier stage is not one for the size that is exported.
        if number >= _first_candidate(settings) and (auc is None or auc > progress.best_auc):
            progress.best, progress.best_round = dict(result.weights), number + 1
            progress.best_auc = progress.best_auc if auc is None else auc
        for keep in kept:
            keep(record)
    return "all rounds done"


def _first_candidate(settings: TrainingSettings) -> int:
    """The first round, counted from 0, that may be the best one: where the last stage begins."""
    return settings.training.rounds - settings.stages[-1].rounds


def _reason_to_stop(settings: TrainingSettings, progress: Progress, active: int) -> str:
    """Why there is no next round, or nothing."""
    patience = settings.training.patience
    best = max(progress.best_round, _first_candidate(settings))
    if patience and len(progress.records) - best >= patience:
        return f"no better validation AUC for {patience} rounds"
    secure = settings.mode == "federated" and settings.federation_or_default().secure_aggregation
    needed = 3 if secure else 1
    if active < needed:
        return f"the privacy budget of {', '.join(progress.retired) or 'a site'} is spent"
    return ""


def _record(
    number: int, result: RoundResult, loss: float | None, auc: float | None, seconds: float
) -> RoundRecord:
    losses = [metrics["loss"] for metrics in result.metrics.values() if "loss" in metrics]
    return RoundRecord(
        number=number,
        loss=float(np.mean(losses)) if losses else None,
        validation_loss=loss,
        validation_auc=auc,
        samples=result.samples,
        seconds=seconds,
        sites=list(result.sites),
        lost=list(result.lost),
        spent=list(result.spent),
        metrics=result.metrics,
    )


def _line(record: RoundRecord, settings: TrainingSettings) -> str:
    parts = [f"round {record.number}/{settings.training.rounds}"]
    if settings.training.stages:
        parts.append(f"{settings.size_in(record.number - 1)} px")
    if record.loss is not None:
        parts.append(f"loss {record.loss:.4f}")
    if record.validation_loss is not None and record.validation_auc is not None:
        figures = f"loss {record.validation_loss:.4f} AUC {record.validation_auc:.4f}"
        parts.append(f"validation {figures}")
    epsilons = [
        f"{name} {metrics['epsilon_prv']:.2f} (RDP {metrics['epsilon_rdp']:.2f})"
        for name, metrics in sorted(record.metrics.items())
        if "epsilon_prv" in metrics
    ]
    if epsilons:
        parts.append(f"epsilon {', '.join(epsilons)}")
    parts += [f"lost {name}" for name in record.lost]
    parts += [f"budget of {name} spent" for name in record.spent]
    parts.append(f"{record.seconds:.1f} s")
    return "  ".join(parts)


def _write_log(folder: Path, settings: TrainingSettings, progress: Progress) -> None:
    content = {
        "settings": settings.model_dump(mode="json"),
        "best_round": progress.best_round,
        "best_validation_auc": progress.best_auc if math.isfinite(progress.best_auc) else None,
        "rounds": [asdict(record) for record in progress.records],
    }
    text = json.dumps(content, indent=1, allow_nan=False)
    write_atomically(folder / LOG_FILE, (text + "\n").encode())
