"""The figures that a site lets the coordinator see: its privacy, which depends on no image.

Epsilon follows from noise, sampling rate and steps. A training loss would tell of the images, and
is not among them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pydantic import ValidationError

from training.config import PrivacySettings

_ACCOUNTANTS = ("prv", "rdp")
_SPENT = ("epsilon_prv", "epsilon_rdp", "private_steps")
_OWN = ("noise_multiplier", "clip_norm", "sample_rate", "epsilon", "delta")


def shared_figures(
    metrics: Mapping[str, float], privacy: PrivacySettings | None
) -> dict[str, float]:
    """What is sent of a site's `metrics`, with its settings of privacy; nothing without them."""
    if privacy is None:
        return {}
    spent = {name: metrics[name] for name in _SPENT}
    own = {name: float(getattr(privacy, name)) for name in _OWN}
    return {**spent, **own, "accountant": float(_ACCOUNTANTS.index(privacy.accountant))}


def privacy_of(figures: Mapping[str, float]) -> PrivacySettings | None:
    """The settings that a site has sent; None if it sent none, or none that make sense."""
    accountant = figures.get("accountant", -1.0)
    complete = all(name in figures for name in (*_SPENT, *_OWN))
    if not complete or accountant not in range(len(_ACCOUNTANTS)):
        return None
    try:
        return PrivacySettings(
            **{name: figures[name] for name in _OWN},
            accountant=_ACCOUNTANTS[int(accountant)],
            budget_folder=Path(),
        )
    except ValidationError:
        return None
