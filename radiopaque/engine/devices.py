"""A party's device from its name in the configuration."""

from __future__ import annotations

from radiopaque.engine.names import DeviceName
from radiopaque.errors import ConfigError
from radiopaque.kernels.cpu import CPU, CpuDevice
from radiopaque.kernels.device import Device
from radiopaque.kernels.workers import Workers


def open_device(name: DeviceName, threads: int = 1) -> Device:
    """The device, ready to be used. PyTorch is loaded for a GPU alone.

    On the processor, ``threads`` share a convolution.

    Raises ConfigError where there is no PyTorch or no GPU, with what to install or change.
    """
    if name is DeviceName.CPU:
        return CPU if threads == 1 else CpuDevice(Workers(threads))
    try:
        from radiopaque.kernels.tensors.device import open_cuda
    except ImportError as error:
        raise ConfigError(
            f'device = "cuda" needs PyTorch, which cannot be loaded ({error}); install it with: '
            "pip install 'radiopaque[gpu]', or set device = \"cpu\""
        ) from error
    return open_cuda()
