"""``python -m radiopaque`` is the ``radiopaque`` command."""

from __future__ import annotations

from radiopaque.cli.main import main

if __name__ == "__main__":
    main()
