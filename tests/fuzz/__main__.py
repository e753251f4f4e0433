"""``python -m tests.fuzz``: run targets for long; ``python -m tests.fuzz seeds``: the corpus."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

from tests.fuzz import runner
from tests.fuzz.targets import TARGETS, clean

LONG = {
    "frame": 3_000_000,
    "control": 3_000_000,
    "plan": 2_000_000,
    "weights": 1_000_000,
    "versions": 500_000,
    "manifest": 500_000,
}
"""Executions of a whole run; of every other target 100,000."""


def main() -> int:
    """Exit code 1 where there was a defect."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("what", nargs="*", help=f"'seeds', or targets: {', '.join(TARGETS)}")
    parser.add_argument("--executions", type=int, help="of each target")
    parser.add_argument("--seconds", type=float, default=7200.0, help="most for each target")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--engine", choices=("mutations", "atheris"), default="mutations")
    parser.add_argument("--findings", type=Path, help="where inputs are kept that show a defect")
    options = parser.parse_args()
    if options.what == ["seeds"]:
        from tests.fuzz import seeds

        print(f"{seeds.write()} seeds")
        return 0
    unknown = set(options.what) - set(TARGETS)
    if unknown:
        parser.error(f"no such target: {', '.join(sorted(unknown))}")
    findings = options.findings or Path(tempfile.gettempdir()) / "radiopaque-fuzz"
    findings.mkdir(parents=True, exist_ok=True)
    defects = 0
    for name in options.what or TARGETS:
        # a process each: a crash or a limit of memory in one ends no other
        child = os.fork()
        if child == 0:
            code = 1
            try:
                code = _one(name, options, findings)
            finally:
                clean()
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        _, status = os.waitpid(child, 0)
        if status:
            print(f"{name}: ended with {os.waitstatus_to_exitcode(status)}", file=sys.stderr)
            defects += 1
    return 1 if defects else 0


def _one(name: str, options: argparse.Namespace, findings: Path) -> int:
    runner.limit()
    executions = options.executions or LONG.get(name, 100_000)
    arguments = (TARGETS[name], options.seed, executions, options.seconds, findings)
    if options.engine == "atheris":
        runner.atheris(*arguments)
        return 0
    outcome = runner.mutate(*arguments)
    print(runner.report(outcome), flush=True)
    return 1 if outcome.defects else 0


if __name__ == "__main__":
    sys.exit(main())
