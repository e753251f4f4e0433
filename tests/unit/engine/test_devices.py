"""`device = "cuda"` in a party's configuration: opened at its start, or refused with the remedy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_owner import Client
from radiopaque import config
from radiopaque.certificates import Role
from radiopaque.cli import crypto_provider, model_owner
from radiopaque.engine.devices import open_device
from radiopaque.engine.names import DeviceName
from radiopaque.errors import ConfigError
from radiopaque.kernels.cpu import CPU

START: dict[Role, Callable[[Path], object]] = {
    Role.CRYPTO_PROVIDER: lambda path: crypto_provider._serve(config=path, as_json=True),
    Role.MODEL_OWNER: lambda path: model_owner._serve(config=path, as_json=True),
    Role.DATA_OWNER: Client.from_config,
}
LOAD: dict[Role, Callable[[Path], Any]] = {
    Role.CRYPTO_PROVIDER: config.load_crypto_provider,
    Role.MODEL_OWNER: config.load_model_owner,
    Role.DATA_OWNER: config.load_data_owner,
}


def written(folder: Path, role: Role, device: str) -> Path:
    """The example with another device."""
    text = config.example(role)
    assert text.count('device = "cpu"\n') == 1
    path = folder / "party.toml"
    path.write_text(text.replace('device = "cpu"\n', f'device = "{device}"\n'))
    return path


def test_the_processor_is_the_default() -> None:
    assert open_device(DeviceName.CPU) is CPU


@pytest.mark.parametrize("role", Role)
def test_each_party_chooses_for_itself(tmp_path: Path, role: Role) -> None:
    for device in DeviceName:
        assert LOAD[role](written(tmp_path, role, device)).device is device
    with pytest.raises(ConfigError, match=r"device: input should be 'cpu' or 'cuda'.*'tpu'"):
        LOAD[role](written(tmp_path, role, "tpu"))


@pytest.mark.parametrize("role", Role)
def test_a_party_without_its_gpu_does_not_start(
    tmp_path: Path, role: Role, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before it reads certificates, makes a store or listens."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    path = written(tmp_path, role, "cuda")
    with pytest.raises(ConfigError, match=r"finds no CUDA GPU.*driver.*device = .cpu."):
        START[role](path)
    assert list(tmp_path.iterdir()) == [path]
