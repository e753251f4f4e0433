"""Fixtures that several groups of tests share."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.e2e.parties import Deployment


Command = Callable[..., tuple[int, dict[str, Any]]]
"""Arguments of ``radiopaque`` to its exit code and the JSON object that it prints."""


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Iterator[Command]:
    """Runs the command line in this process, which spares a second each."""
    from radiopaque.cli.main import main

    names = ("", "radiopaque", "crypto_provider", "model_owner", "data_owner")
    levels = {name: logging.getLogger(name).level for name in names}
    handlers = list(logging.getLogger().handlers)

    def run(*arguments: object) -> tuple[int, dict[str, Any]]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([*map(str, arguments), "--json"])
        printed = capsys.readouterr()
        answer: dict[str, Any] = json.loads(printed.out)
        if ended.value.code:
            # an error is the same text for people on stderr, and nothing else
            assert set(answer) == {"error", "message"}
            assert printed.err.strip() == f"{answer['error']}: {answer['message']}"
        return int(ended.value.code or 0), answer

    yield run
    logging.getLogger().handlers[:] = handlers
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


@pytest.fixture(scope="session")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """Both servers as processes, with all small networks; started once."""
    from tests.e2e import networks
    from tests.e2e.parties import Deployment

    lungs = networks.lungs()
    hosted = {
        "lungs-1.9": lungs.offered_as("1.9"),
        "lungs-1.10": networks.lungs(seed=10).offered_as("1.10"),
        "findings": networks.findings(),
        "stack": networks.stack(),
        "wide": networks.wide(),
    }
    with Deployment(tmp_path_factory.mktemp("deployment"), hosted) as deployment:
        yield deployment


@pytest.fixture
def deployment(processes: Deployment) -> Deployment:
    """The same, running again where a test before has ended a server."""
    processes.ensure_running()
    return processes
