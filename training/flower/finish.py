"""What a run across machines ends in: curves, and a model folder like that of one process."""

from __future__ import annotations

from collections.abc import Callable, Mapping
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
        report("not all sites trained privately, so the card promises no privacy")
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
    """The settings with the privacy that the sites report, if every site that trained does.

    The coordinator sets no site's privacy and cannot check what is reported.
    """
    by_site: dict[str, Mapping[str, float]] = {}
    trained = {name for record in records for name in record.sites}
    for record in records:
        by_site |= {name: metrics for name, metrics in record.metrics.items() if name in trained}
    stated = {name: privacy_of(metrics) for name, metrics in by_site.items()}
    sites = {name: privacy for name, privacy in stated.items() if privacy is not None}
    if not trained or set(sites) != trained:
        return settings
    common: PrivacySettings = next(iter(sites.values()))
    own = {
        name: SitePrivacy.model_validate(privacy.model_dump(include=set(SitePrivacy.model_fields)))
        for name, privacy in sites.items()
    }
    return settings.model_copy(update={"privacy": common.model_copy(update={"sites": own})})


def _reports_privacy(record: RoundRecord) -> bool:
    return any("epsilon_prv" in metrics for metrics in record.metrics.values())
