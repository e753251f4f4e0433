"""Training of the shipped models.

A companion of the product: what it hands over is an ONNX file and a JSON manifest, nothing else.
It imports neither the core nor a party, and they do not import it.
"""

from __future__ import annotations

import os

# else onnxruntime tells its maker about the models that it loads
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
