"""The figures that a site lets the coordinator see: its privacy, which depends on no image.

Epsilon follows from noise, sampling rate and steps. A training loss would tell of the images, and
is not among them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pydantic import ValidationError

from training.config import PrivacySettings
from training.errors import RefusedMessageError

_ACCOUNTANTS = ("prv", "rdp")
_SPENT = ("epsilon_prv", "epsilon_rdp", "private_steps")
_OWN = ("noise_multiplier", "clip_norm", "sample_rate", "epsilon", "delta")
_ALL = frozenset((*_SPENT, *_OWN, "accountant"))
_LARGEST = 1e9
"""No honest figure is larger, and sums and means of such figures stay finite."""


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
    """The settings that a site has sent; None if it sent none, or figures that make no sense."""
    if set(figures) != _ALL or not all(0.0 <= value <= _LARGEST for value in figures.values()):
        return None
    accountant, steps = figures["accountant"], figures["private_steps"]
    if accountant not in range(len(_ACCOUNTANTS)) or steps < 1.0 or not steps.is_integer():
        return None
    try:
        return PrivacySettings(
            **{name: figures[name] for name in _OWN},
            accountant=_ACCOUNTANTS[int(accountant)],
            budget_folder=Path(),
        )
    except ValidationError:
        return None


def check_figures(name: str, figures: Mapping[str, float]) -> None:
    """See that site `name` sent what `shared_figures` makes: nothing, or all of it.

    Raises:
        RefusedMessageError: it sent something else; none of it is written down anywhere.
    """
    if figures and privacy_of(figures) is None:
        raise RefusedMessageError(name, "the figures before its update are not those of privacy")
