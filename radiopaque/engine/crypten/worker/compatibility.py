"""What has to be changed before CrypTen 0.4.1 runs on torch 2.13, each with its reason.

Import this module instead of ``crypten``: ``from ...compatibility import crypten``.
"""

from __future__ import annotations

import sys

import torch
from torch.onnx._internal.torchscript_exporter import registration

# CrypTen's ONNX front end, which is not used here, imports torch.onnx._internal.registration at
# once; since torch 2.9 that module lives under torchscript_exporter.
sys.modules.setdefault("torch.onnx._internal.registration", registration)

import crypten  # noqa: E402 - the alias must be there first

__all__ = ["crypten", "torch"]
