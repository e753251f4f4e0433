"""`python -m training.flower`: what `radiopaque federation` starts."""

from __future__ import annotations

import sys

from training.flower.command import main

sys.exit(main())
