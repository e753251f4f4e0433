"""What the tests of training share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.training.pictures import write_folder


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in the published layout that is only read."""
    return write_folder(tmp_path_factory.mktemp("xrays"))
