"""Failures that training reports on purpose. Every message says what to do; none has pixels."""

from __future__ import annotations


class TrainingError(Exception):
    """Base of the expected failures of training."""


class SettingsError(TrainingError):
    """The configuration, or what it says about the data, cannot be trained with."""


class DivergedError(TrainingError):
    """A loss or an update is no longer a finite number."""


class SiteLostError(TrainingError):
    """A site does not answer any more; the round may go on without it."""


class TooFewSitesError(TrainingError):
    """So many sites are lost or refused that the sum cannot, or must not, be opened.

    `spent` are those among them whose privacy budget is used up.
    """

    def __init__(self, message: str, spent: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.spent = spent


class BudgetSpentError(TrainingError):
    """A site's privacy budget does not allow the next step."""


class RefusedMessageError(TrainingError):
    """A message of secure aggregation breaks the protocol. `site` is the sender it is blamed on."""

    def __init__(self, site: str, reason: str) -> None:
        super().__init__(f"the message of site {site!r} is refused: {reason}")
        self.site = site
        self.reason = reason


class DisagreementError(TrainingError):
    """A coordinator proposes something else than what a site has agreed to."""


class RepeatedRoundError(TrainingError):
    """A coordinator asks for a round, or an attempt at one, that a site has been through."""


class CheckpointError(TrainingError):
    """A checkpoint cannot be read, or belongs to another configuration."""
