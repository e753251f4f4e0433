"""Fixtures that several groups of tests share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.e2e.parties import Deployment


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
