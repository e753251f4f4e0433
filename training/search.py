"""Looking for good settings: trials of one configuration, judged on the validation images.

Optuna (MIT) proposes what the section [search] leaves open, by its tree-structured Parzen
estimator (Bergstra et al., "Algorithms for Hyper-Parameter Optimization", NeurIPS 2011). A trial is
a run like any other, in a folder of its own, so that a search can be interrupted at any time.

A private trial is charged to the budgets of its sites like any other training on their images; a
trial that does not fit into them as a whole is not begun. What the accountants add up must not
depend on earlier results, so noise and sample rates cannot be searched for.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training import checkpoint
from training.config import TrainingSettings, read_values, settings_from
from training.errors import BudgetSpentError, CheckpointError, DivergedError, SettingsError
from training.estimate import describe_seconds, estimate_seconds
from training.features import FeatureStore
from training.federated import build_network, open_budget, run
from training.files import prepare_folder, write_atomically
from training.intake import Intake, read_folder
from training.progress import Watch, unwatched

if TYPE_CHECKING:
    import optuna

BEST_FILE = "best.toml"
STORAGE_FILE = "search.journal"
TRIALS_FOLDER = "trials"
_NEEDED = ("optuna", "tomli_w")
_SECTIONS = ("training", "augmentation", "model")
_PRIVATE_KEYS = ("privacy.clip_norm",)
_RANDOM_TRIALS = 8

Report = Callable[[str], None]
Chosen = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Search:
    """What to search: a configuration file, its content, and how many trials are wanted in all."""

    source: str
    values: dict[str, Any]
    settings: TrainingSettings
    trials: int

    def with_values(self, chosen: Chosen) -> dict[str, Any]:
        """The content of the file without [search], with some keys set."""
        values = {key: value for key, value in self.values.items() if key != "search"}
        for key, value in chosen.items():
            _set(values, key.split("."), value)
        return values

    def with_settings(self, chosen: Chosen) -> TrainingSettings:
        """The settings of a trial.

        Raises:
            SettingsError: they contradict each other.
        """
        named = ", ".join(f"{key} = {value}" for key, value in chosen.items())
        return settings_from(self.with_values(chosen), f"{self.source} with {named}")


def search(
    config: Path,
    data: Path,
    output: Path,
    trials: int,
    *,
    resume: bool = False,
    only_estimate: bool = False,
    report: Report = print,
    watch: Watch = unwatched,
) -> dict[str, Any]:
    """Make trials until there are `trials` in all; write the best settings to `output`/best.toml.

    Raises:
        TrainingError: see the message; trials that are done are kept.
        BudgetSpentError: the budgets do not allow a single trial.
    """
    wanted = plan(config, trials)
    if not only_estimate:
        prepare_folder(output)
    intake = read_folder(data, wanted.settings.data, wanted.settings.seed, watch)
    for line in intake.lines():
        report(line)
    study = None
    if not only_estimate or resume:
        study = _open_study(output, wanted, intake, resume)
    done = len(_finished(study)) if study is not None else 0
    left = _repeated(wanted.with_settings({}), max(0, trials - done))
    seconds = estimate_seconds(left, intake, watch)
    report(f"{done} of {trials} trials done; about {describe_seconds(seconds)} for the others")
    result: dict[str, Any] = {
        "output": str(output),
        "estimate_seconds": round(seconds, 3),
        "skipped_images": len(intake.skipped),
    }
    if study is None or only_estimate:
        return result
    if wanted.settings.privacy is not None:
        report(
            "every trial is charged to the privacy budgets of the sites, like any training on "
            "their images; the search ends when they allow no further trial"
        )
    store = FeatureStore()
    try:
        while len(_finished(study)) < trials:
            _trial(study, wanted, intake, output, store, report, watch)
    except BudgetSpentError as error:
        if not _complete(study):
            raise
        report(str(error))
    except KeyboardInterrupt:
        report(f"interrupted; go on with --search {trials} --resume --output {output}")
        raise
    if not _complete(study):
        raise DivergedError(
            f"all {trials} trials diverged; lower the range of training.learning_rate"
        )
    best = study.best_trial
    report(
        f"best of {len(_finished(study))}: {_described(best.params)}; validation AUC "
        f"{study.best_value:.4f}. To take over its network without training again: radiopaque "
        f"train --config {output / BEST_FILE} --data {data} --output {_folder(output, best)} "
        "--resume"
    )
    return {
        **result,
        "trials": len(_finished(study)),
        "best_trial": str(_folder(output, best)),
        "best_validation_auc": study.best_value,
        "best_config": str(output / BEST_FILE),
    }


def plan(config: Path, trials: int) -> Search:
    """Read a configuration with a section [search] and see that every value in it can be used.

    Raises:
        SettingsError: there is none, a key or value cannot be searched for, or a package is not
            installed.
    """
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise SettingsError(
            f"a search needs {', '.join(missing)}; install it with: "
            "pip install 'radiopaque[search]'"
        )
    if trials < 1:
        raise SettingsError(f"a search of {trials} trials finds nothing; ask for at least 1")
    values = read_values(config)
    wanted = Search(str(config), values, settings_from(values, str(config)), trials)
    if not wanted.settings.search:
        raise SettingsError(
            f"{config} has no section [search]; add one, such as: "
            '"training.learning_rate" = { low = 0.01, high = 1.0, log = true }'
        )
    for key, space in wanted.settings.search.items():
        if key.split(".")[0] not in _SECTIONS and key not in _PRIVATE_KEYS:
            raise SettingsError(
                f"search: {key} cannot be searched for; name keys of {', '.join(_SECTIONS)}, or "
                f"{', '.join(_PRIVATE_KEYS)}"
            )
        for value in space.extremes():
            settings = wanted.with_settings({key: value})
            if key.startswith("model."):
                build_network(settings)
    return wanted


def _trial(
    study: optuna.Study,
    wanted: Search,
    intake: Intake,
    output: Path,
    store: FeatureStore,
    report: Report,
    watch: Watch,
) -> None:
    """Make one trial and tell the study about it."""
    from optuna.trial import TrialState

    started = time.monotonic()
    trial = study.ask(_distributions(wanted.settings))
    title = f"trial {len(_finished(study)) + 1}/{wanted.trials}"
    twin = next((past for past in _finished(study) if past.params == trial.params), None)
    if twin is not None:
        study.tell(trial, twin.value, state=twin.state)
        report(f"{title}  as before: {_described(trial.params)}")
        return
    settings = wanted.with_settings(trial.params)
    folder = output / TRIALS_FOLDER / _name(settings)
    trial.set_user_attr("folder", folder.name)
    begun = (folder / checkpoint.FILE).exists()
    if not begun:
        _see_that_it_fits(settings)
    try:
        outcome = run(
            settings,
            intake,
            folder,
            resume=begun,
            report=lambda line: None,
            watch=lambda what, done, total: watch(f"{title}, {what}", done, total),
            store=store,
        )
        if outcome.failed is not None:
            raise outcome.failed
    except DivergedError as error:
        study.tell(trial, state=TrialState.PRUNED)
        report(f"{title}  {_described(trial.params)}: {error}")
        return
    if not outcome.progress.best_round:
        raise BudgetSpentError(f"{title} came to nothing: {outcome.stopped}")
    before = study.best_trial if _complete(study) else None
    study.tell(trial, outcome.progress.best_auc)
    now = study.best_trial
    if now.number == trial.number:
        _write_best(output, wanted, trial.params)
    report(
        f"{title}  validation AUC {outcome.progress.best_auc:.4f} (round "
        f"{outcome.progress.best_round})  {_described(trial.params)}  best {study.best_value:.4f}  "
        f"{time.monotonic() - started:.1f} s"
    )
    # Weights are kept of the best trial only.
    worse = trial if now.number != trial.number else before
    if worse is not None:
        (_folder(output, worse) / checkpoint.FILE).unlink(missing_ok=True)


def _open_study(output: Path, wanted: Search, intake: Intake, resume: bool) -> optuna.Study:
    """The study of a folder, in which no trial is under way.

    Raises:
        SettingsError: there is one already, and it is not to be gone on with.
        CheckpointError: there is none, or it is of another configuration or other images.
    """
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend
    from optuna.trial import TrialState

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    path = output / STORAGE_FILE
    if path.exists() and not resume:
        raise SettingsError(
            f"{path} is there already; add --resume to go on with it, or choose another folder"
        )
    if resume and not path.exists():
        raise CheckpointError(f"there is no search {path}; start without --resume")
    if not resume:
        checkpoint.refuse_model(output)
    prepare_folder(output)
    fingerprint = f"{wanted.settings.digest()}/{intake.fingerprint()}"
    try:
        study = optuna.create_study(
            storage=JournalStorage(JournalFileBackend(str(path))),
            study_name="search",
            direction="maximize",
            load_if_exists=True,
        )
        known = study.user_attrs.get("fingerprint", fingerprint)
    except (ValueError, KeyError, OSError) as error:
        raise CheckpointError(
            f"{path} cannot be read ({type(error).__name__}: {error}); search anew in another "
            "folder"
        ) from error
    if known != fingerprint:
        raise CheckpointError(
            f"{path} belongs to another configuration or other images; go on with the files it was "
            "made with, or search anew in another folder"
        )
    study.set_user_attr("fingerprint", fingerprint)
    for trial in study.get_trials(states=(TrialState.RUNNING,)):
        study.tell(trial.number, state=TrialState.FAIL)
        study.enqueue_trial(trial.params)
    # With the number of trials, so that a resumed search does not repeat its first proposals.
    study.sampler = optuna.samplers.TPESampler(
        seed=wanted.settings.seed + len(study.trials), n_startup_trials=_RANDOM_TRIALS
    )
    return study


def _distributions(settings: TrainingSettings) -> dict[str, Any]:
    from optuna.distributions import CategoricalDistribution as Categorical
    from optuna.distributions import FloatDistribution as Real
    from optuna.distributions import IntDistribution as Whole

    found: dict[str, Any] = {}
    for key, space in settings.search.items():
        if space.choices:
            found[key] = Categorical(space.choices)
        elif isinstance(space.low, int) and isinstance(space.high, int):
            found[key] = Whole(space.low, space.high, log=space.log)
        elif space.low is not None and space.high is not None:
            found[key] = Real(float(space.low), float(space.high), log=space.log)
    return found


def _repeated(settings: TrainingSettings, times: int) -> TrainingSettings:
    """A run as long as several, which like them computes features of a frozen base once."""
    training = settings.training
    stages = tuple(
        stage.model_copy(update={"rounds": stage.rounds * times}) for stage in training.stages
    )
    longer = training.model_copy(update={"rounds": training.rounds * times, "stages": stages})
    return settings.model_copy(update={"training": longer})


def _see_that_it_fits(settings: TrainingSettings) -> None:
    """See that the budgets of all sites allow a whole run.

    Raises:
        BudgetSpentError: that of some site does not.
    """
    if settings.privacy is None:
        return
    steps = settings.training.rounds * settings.training.local_steps
    for name in settings.site_names:
        own = settings.privacy.of(name)
        left = open_budget(name, settings).remaining(own.noise_multiplier, own.sample_rate, steps)
        if left < steps:
            raise BudgetSpentError(
                f"the budget of site {name!r} allows {left} of the {steps} steps of a trial, so "
                "none is begun; plan with fewer rounds or more noise"
            )


def _write_best(output: Path, wanted: Search, chosen: Chosen) -> None:
    import tomli_w

    text = f"# The best trial of a search over {Path(wanted.source).name}.\n"
    text += tomli_w.dumps(wanted.with_values(chosen))
    write_atomically(output / BEST_FILE, text.encode())


def _set(values: dict[str, Any], parts: list[str], value: Any) -> None:
    """Set a key in nested tables, which are copied on the way."""
    if len(parts) == 1:
        values[parts[0]] = value
        return
    inner = values.get(parts[0], {})
    values[parts[0]] = dict(inner) if isinstance(inner, dict) else {}
    _set(values[parts[0]], parts[1:], value)


def _finished(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    from optuna.trial import TrialState

    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))


def _complete(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    from optuna.trial import TrialState

    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))


def _name(settings: TrainingSettings) -> str:
    return settings.digest()[:12]


def _folder(output: Path, trial: optuna.trial.FrozenTrial | optuna.Trial) -> Path:
    return output / TRIALS_FOLDER / str(trial.user_attrs["folder"])


def _described(chosen: Chosen) -> str:
    return ", ".join(
        f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
        for key, value in chosen.items()
    )
