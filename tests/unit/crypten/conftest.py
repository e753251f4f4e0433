"""CrypTen comes by itself (`make test` installs it); without it, what runs it is skipped."""

from __future__ import annotations

import importlib.util

import pytest

from radiopaque.engine.crypten.process import INSTALL


@pytest.fixture(scope="session")
def crypten() -> None:
    """Ask for this where CrypTen is needed."""
    if importlib.util.find_spec("crypten") is None:
        pytest.skip(f"CrypTen is not installed; run: {INSTALL}")
