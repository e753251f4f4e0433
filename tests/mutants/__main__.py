"""``python -m tests.mutants``: take guards out, one by one, and see that their tests notice."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from tests.mutants.mutant import read
from tests.mutants.run import Tree, Verdict, judge_all


def main() -> int:
    """Exit code 1 where a guard was taken out and no test failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("promise", nargs="*", type=int, help="numbers of promises; default: all")
    parser.add_argument("--name", default="", help="only those with this in their name")
    parser.add_argument("--jobs", type=int, default=2, help="copies of the tree side by side")
    parser.add_argument("--json", type=Path, help="where to write the verdicts")
    options = parser.parse_args()
    mutants = [
        mutant
        for mutant in read()
        if mutant.promise in (options.promise or {mutant.promise}) and options.name in mutant.name
    ]
    if not mutants:
        parser.error("no such mutant")
    with tempfile.TemporaryDirectory(prefix="radiopaque-mutants-") as folder:
        names = sorted({name for mutant in mutants for name in mutant.tests})
        print(f"{len(mutants)} mutants, {len(names)} tests or files of them", flush=True)
        whole = Tree(Path(folder) / "whole").test(names, first=False)
        if whole.failed or whole.trouble or whole.skipped:
            print(f"the tree as it is: {whole}", file=sys.stderr)
            return 2
        verdicts = judge_all(mutants, Path(folder), options.jobs, _tell)
    missed = [verdict for verdict in verdicts if not verdict.noticed]
    print(f"{len(verdicts) - len(missed)} noticed, {len(missed)} not")
    if options.json:
        options.json.write_text(json.dumps([asdict(one) for one in verdicts], indent=1) + "\n")
    return 1 if missed else 0


def _tell(verdict: Verdict) -> None:
    said = "noticed" if verdict.noticed else "NOT NOTICED"
    print(
        f"{verdict.promise:2d}  {said}  {verdict.name}: {verdict.by} ({verdict.seconds:.0f} s)",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
