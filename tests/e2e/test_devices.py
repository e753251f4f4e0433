"""All three parties on torch tensors over gRPC, with ledgers and sealed material on disk.

The device is the processor under the name of a GPU: the same code, and no GPU is needed.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from data_owner import Client
from radiopaque.kernels.tensors.device import TensorDevice
from tests.e2e.networks import Network, findings, lungs
from tests.faults.inside import Inside


@pytest.mark.parametrize("network", [lungs(), findings()], ids=["lungs", "findings"])
def test_parties_on_tensors(
    network: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = TensorDevice(torch.device("cpu"))
    opened: list[TensorDevice] = []

    def open_cuda() -> TensorDevice:
        opened.append(tensors)
        return tensors

    monkeypatch.setattr("radiopaque.kernels.tensors.device.open_cuda", open_cuda)
    with Inside(tmp_path, network, tensors) as inside:
        config = inside.clinic()
        config.write_text(f'device = "cuda"\n{config.read_text()}')
        with Client.from_config(config) as client:
            client.prepare()
            images = network.images()
            outputs = client.infer_tensor(images).outputs
    assert opened == [tensors]
    value, bound = network.plaintext(images)
    assert (np.abs(outputs - value) <= bound).all()
