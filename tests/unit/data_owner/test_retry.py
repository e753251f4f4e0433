"""When a submission is tried again after a limit of a peer was reached."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest

from data_owner.artefacts import LocalModel
from data_owner.retry import Backoff
from data_owner.sessions import Sessions
from data_owner.submission import Failure, Submission, Wish
from radiopaque import errors
from radiopaque.errors import ConnectionLostError, RadiopaqueError, ResourceError

BACKOFF = Backoff(attempts=3, first_seconds=0.5, longest_seconds=30.0)


class Paused:
    """Stands for a clinic's sessions; keeps how long it was to wait."""

    def __init__(self) -> None:
        self.waits: list[float] = []

    def pause(self, seconds: float) -> None:
        self.waits.append(seconds)


def waits_after(error: RadiopaqueError) -> list[float]:
    """What a submission waits that meets this error each time."""
    paused = Paused()

    def fetch() -> LocalModel:
        raise error

    submission = Submission(cast(Sessions, paused), fetch, Wish(backoff=BACKOFF))
    with pytest.raises(type(error)):
        list(submission.run([]))
    return paused.waits


@pytest.mark.parametrize("error", [ConnectionLostError("gone"), ResourceError("full")])
def test_without_a_hint_waits_are_drawn(error: RadiopaqueError) -> None:
    first, second = waits_after(error)
    assert 0.25 <= first <= 0.5 <= second <= 1.0


def test_what_the_peer_asks_for_comes_first() -> None:
    """Then what is drawn: clinics that were told the same do not come back in step."""
    first, second = waits_after(ResourceError("full", retry_seconds=7.0))
    assert 7.25 <= first <= 7.5 <= second <= 8.0


TRIED_AGAIN = {
    "TransportError",
    "PeerUnavailableError",
    "DeadlineError",
    "ConnectionLostError",
    "ResourceError",
    "RestoredLedgerError",
    "SessionStateError",
    "UnknownSessionError",
}


def test_what_is_tried_again_and_what_is_not() -> None:
    """Of all errors there are; what is wrong with a message or an image stays wrong."""
    classes = [
        one
        for one in vars(errors).values()
        if isinstance(one, type) and issubclass(one, RadiopaqueError)
    ]
    tried = {one.__name__ for one in classes if waits_after(one("x"))}
    assert len(classes) > 30
    assert tried == TRIED_AGAIN


def test_attempts_count_anew_for_the_next_image() -> None:
    paused = Paused()
    submission = Submission(paused, lambda: None, Wish(backoff=BACKOFF))  # type: ignore[arg-type, return-value]

    def one_result_each_time() -> None:
        if len(paused.waits) < 6:
            submission._found[len(paused.waits)] = Failure(Path("x"), ConnectionLostError("gone"))
            raise ConnectionLostError("gone")

    submission._insist(one_result_each_time)
    assert len(paused.waits) == 6
    assert all(0.25 <= wait <= 0.5 for wait in paused.waits)


def test_no_attempt_is_made_that_must_be_in_vain() -> None:
    assert waits_after(ResourceError("quota", retry_seconds=30.0)) != []
    assert waits_after(ResourceError("quota", retry_seconds=31.0)) == []
