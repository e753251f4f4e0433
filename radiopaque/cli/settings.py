"""A serving party's configuration, for commands that work on either of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from radiopaque.certificates import Role

if TYPE_CHECKING:
    from radiopaque.config import CryptoProviderConfig, ModelOwnerConfig


def serving_settings(role: Role, path: Path) -> CryptoProviderConfig | ModelOwnerConfig:
    """Read it. Raises ConfigError, also for a data owner, which serves nothing."""
    from radiopaque.config import load_crypto_provider, load_model_owner
    from radiopaque.errors import ConfigError

    if role is Role.CRYPTO_PROVIDER:
        return load_crypto_provider(path)
    if role is Role.MODEL_OWNER:
        return load_model_owner(path)
    raise ConfigError(
        "a data owner serves nothing and has no metrics or meter of its own; "
        "name crypto-provider or model-owner"
    )
