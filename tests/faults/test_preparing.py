"""What `data-owner prepare` says of the sessions that it made before something ended it."""

from __future__ import annotations

import json
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from radiopaque.errors import RadiopaqueError, ResourceError, UnknownModelError
from tests.e2e.networks import lungs
from tests.e2e.parties import radiopaque
from tests.faults.inside import Inside, Lie


def only_the_first(made: int, error: RadiopaqueError) -> Lie:
    """A model owner that prepares so many sessions and then refuses."""
    calls = count(1)

    def prepare(honest: Any, *arguments: Any) -> Any:
        if next(calls) > made:
            raise error
        return honest(*arguments)

    return prepare


@pytest.mark.parametrize(
    ("error", "stock"), [(ResourceError("no room"), 2), (UnknownModelError("not hosted"), 0)]
)
def test_what_was_made_before_the_end_is_told(
    tmp_path: Path, error: RadiopaqueError, stock: int
) -> None:
    with Inside(tmp_path, lungs()) as inside:
        inside.lies["Prepare"] = only_the_first(2, error)
        words = ("data-owner", "prepare", "--count", 40, "--config", inside.clinic())
        done = radiopaque(*words, "--json")
        answer = json.loads(done.stdout)
        assert done.returncode == error.exit_code
        assert len({item["session"] for item in answer["prepared"]}) == 2
        assert (answer["stock"], answer["message"]) == (stock, str(error))
        assert answer["error"] == type(error).__name__
        assert done.stderr.strip() == f"{type(error).__name__}: {error}"

        inside.lies["Prepare"] = only_the_first(1, error)
        told = radiopaque(*words)
        assert told.returncode == error.exit_code
        assert told.stdout.startswith("1 of 40 session(s) prepared")
        assert told.stderr.strip() == f"{type(error).__name__}: {error}"


def test_an_error_before_the_first_session_is_all_there_is(tmp_path: Path) -> None:
    with Inside(tmp_path, lungs()) as inside:
        inside.lies["Prepare"] = only_the_first(0, ResourceError("no room"))
        done = radiopaque("data-owner", "prepare", "--config", inside.clinic(), "--json")
        assert done.returncode == ResourceError.exit_code
        assert json.loads(done.stdout) == {"error": "ResourceError", "message": "no room"}
