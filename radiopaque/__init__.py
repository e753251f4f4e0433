"""What the three parties share: the plan, the gates, the kernels, the wire. It knows no party."""

from __future__ import annotations

import os

__version__ = "0.2.0"

# From 1.29 on onnxruntime tells its maker about the models that it loads: names of files and of
# graphs, digests of weights. It looks for this once, when it is imported.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
