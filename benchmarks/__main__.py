"""`python -m benchmarks`, which `radiopaque bench` runs."""

from benchmarks.command import main

main()
