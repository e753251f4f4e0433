"""The certificates of the transport's tests."""

from tests.unit.transport.conftest import certificate_files, identities

__all__ = ["certificate_files", "identities"]
