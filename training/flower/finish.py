"""What a run across machines ends in: curves, and a model folder like that of one process."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

from training.checkpoint import RoundRecord
from training.config import PrivacySettings, SitePrivacy, TrainingSettings
from training.curves import draw
from training.errors import TrainingError
from training.federated import Outcome
from training.flower.figures import privacy_of
from training.intake import Cohort
from training.networks import PIXEL_STATISTICS, export_ready
from training.provenance import provenance_of
from training.publish import publish

CURVES_FILE = "curves.png"


def finish(
    settings: TrainingSettings,
    outcome: Outcome,
    validation: Cohort | None,
    output: Path,
    report: Callable[[str], None],
) -> dict[str, Any]:
    """Write curves, network, manifest and card; return what the command prints as JSON.

    Raises:
        TrainingError: no round was finished, or the network cannot be exported; or the run went
            wrong after the round that was published.
    """
    progress = outcome.progress
    report(outcome.stopped)
    if not progress.best_round:
        raise TrainingError(
            f"no round was finished, so there is nothing to export: {outcome.stopped}"
        )
    draw(progress.records, output / CURVES_FILE)
    stated = with_privacy(settings, progress.records)
    if stated.privacy is None and any(_reports_privacy(record) for record in progress.records):
        report(
            "not every site reports privacy in all its rounds, on one budget that counts on: the "
            "card promises no privacy"
        )
    changed = _changed(stated, progress.records)
    if changed:
        report(
            f"{', '.join(changed)} changed the settings of privacy between rounds; the card states "
            "the weakest"
        )
    chosen_by = "last round" if validation is None else "validation"
    publication = publish(
        export_ready(outcome.model),
        provenance_of(
            stated,
            progress,
            outcome.stopped,
            chosen_by=chosen_by,  # type: ignore[arg-type]
            placement="several machines",
        ),
        PIXEL_STATISTICS[settings.model.name],
        output,
        validation=validation,
    )
    for line in publication.lines():
        report(line)
    report(
        f"wrote the network of round {progress.best_round} with manifest.json and card.md to "
        f"{output}; before compiling run: radiopaque calibrate {output} DIR, with public images"
    )
    if outcome.failed is not None:
        raise outcome.failed
    return {
        "output": str(output),
        "rounds": len(progress.records),
        "best_round": progress.best_round,
        "best_validation_auc": None if validation is None else progress.best_auc,
        "stopped": outcome.stopped,
        "private": stated.privacy is not None,
    }


def with_privacy(settings: TrainingSettings, records: list[RoundRecord]) -> TrainingSettings:
    """The settings with the privacy that the sites report, if every site does in all its rounds.

    Where a site changed its settings between rounds, the weakest of them are stated. The
    coordinator sets no site's privacy and cannot check what is reported.
    """
    trained = {name for record in records for name in record.sites}
    stated = {name: _stated(name, records) for name in sorted(trained)}
    sites = {name: privacy for name, privacy in stated.items() if privacy is not None}
    if not trained or set(sites) != trained:
        return settings
    common: PrivacySettings = next(iter(sites.values()))
    own = {
        name: SitePrivacy.model_validate(privacy.model_dump(include=set(SitePrivacy.model_fields)))
        for name, privacy in sites.items()
    }
    return settings.model_copy(update={"privacy": common.model_copy(update={"sites": own})})


def _stated(name: str, records: list[RoundRecord]) -> PrivacySettings | None:
    """The weakest settings that a site reports, or None if its last figures do not cover all.

    They do if it reports in every round whose sum it is in, on one budget that counts on. Without
    that, its last epsilon says nothing about the earlier rounds.
    """
    figures = [record.metrics.get(name, {}) for record in records if name in record.sites]
    reported = [privacy_of(each) for each in figures]
    settings = [privacy for privacy in reported if privacy is not None]
    if len(settings) < len(figures):
        return None
    steps = [each["private_steps"] for each in figures]
    budgets = {(each.epsilon, each.delta, each.accountant) for each in settings}
    if len(budgets) > 1 or any(later <= earlier for earlier, later in pairwise(steps)):
        return None
    return settings[-1].model_copy(
        update={
            "noise_multiplier": min(each.noise_multiplier for each in settings),
            "clip_norm": max(each.clip_norm for each in settings),
            "sample_rate": max(each.sample_rate for each in settings),
        }
    )


def _changed(stated: TrainingSettings, records: list[RoundRecord]) -> list[str]:
    """The sites whose reported settings are not those that are stated, in some round."""
    if stated.privacy is None:
        return []
    changed = set()
    for record in records:
        for name in record.sites:
            reported, own = privacy_of(record.metrics[name]), stated.privacy.of(name)
            if reported is None or any(
                getattr(reported, key) != getattr(own, key)
                for key in ("noise_multiplier", "clip_norm", "sample_rate")
            ):
                changed.add(name)
    return sorted(changed)


def _reports_privacy(record: RoundRecord) -> bool:
    return any("epsilon_prv" in metrics for metrics in record.metrics.values())
