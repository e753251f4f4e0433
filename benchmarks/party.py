"""A serving party whose spans are recorded: `radiopaque WORDS`, and a file of spans at its end.

python -m benchmarks.party FOLDER model-owner serve --config FILE --json
"""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks.spans import save
from radiopaque.cli.main import main as radiopaque
from radiopaque.telemetry import recorder


def main() -> None:
    """Serve until SIGTERM, then write FOLDER/ROLE.spans."""
    folder, *words = sys.argv[1:]
    spans = recorder.start()
    try:
        radiopaque(words)
    finally:
        save(Path(folder) / f"{words[0]}.spans", spans)


if __name__ == "__main__":
    main()
