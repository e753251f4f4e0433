"""What the three parties share: the plan, the gates, the kernels, the wire. It knows no party."""

from __future__ import annotations

__version__ = "0.2.0"
