"""The data owner (clinic): reads images, keeps them, and asks for diagnoses.

    from data_owner import Client

    with Client.from_config("data-owner.toml") as client:
        result = client.infer("chest.dcm")

Importing this package loads no model framework and no image decoder.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from data_owner.client import Client as Client
    from data_owner.report import InferenceReport as InferenceReport

__all__ = ["Client", "InferenceReport"]


def __getattr__(name: str) -> Any:
    if name == "Client":
        from data_owner.client import Client

        return Client
    if name == "InferenceReport":
        from data_owner.report import InferenceReport

        return InferenceReport
    raise AttributeError(f"module 'data_owner' has no attribute {name!r}")
