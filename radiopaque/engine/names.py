"""Engines and devices by name, as options and configuration files write them."""

from __future__ import annotations

from enum import StrEnum


class EngineName(StrEnum):
    """Which program computes a model: the project's own gates, or CrypTen."""

    COMPILED = "compiled"
    CRYPTEN = "crypten"


class DeviceName(StrEnum):
    """Where a party computes gates: on the processor, or on a GPU through PyTorch."""

    CPU = "cpu"
    CUDA = "cuda"
