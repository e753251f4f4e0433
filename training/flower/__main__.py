"""`python -m training.flower`: what `radiopaque federation` starts."""

from __future__ import annotations

import signal
import sys

from training.flower.command import main

# A service is stopped like a person stops it: what is done is kept.
signal.signal(signal.SIGTERM, signal.default_int_handler)
sys.exit(main())
