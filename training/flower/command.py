"""What `radiopaque federation` does.

Exit codes are those of `radiopaque`: 2 configuration, keys and data, 7 a limit (a privacy budget),
1 for other failures, 130 interrupted.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from training.errors import BudgetSpentError, CheckpointError, SettingsError, TrainingError
from training.progress import Bar, Watch

_NEEDED = ("torch", "opacus", "matplotlib", "pydantic", "cryptography", "onnx", "flwr")
# Flower reports usage, looks for updates and installs packages unless it is told not to.
_ENVIRONMENT = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
}

Report = Callable[[str], None]
Result = dict[str, Any]


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of `radiopaque federation`."""
    parser = argparse.ArgumentParser(
        prog="radiopaque federation",
        description=(
            "Train together from different machines: every hospital keeps its images, the "
            "coordinator learns the sum of the updates and nothing else. docs/training-flower.md "
            "tells all of it. In order: everybody runs keys; the coordinator runs list and sends "
            "the file around; everybody runs show and compares fingerprints; hospitals run join, "
            "the coordinator runs coordinate."
        ),
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_keys(commands)
    _add_list(commands)
    _add_coordinate(commands)
    _add_join(commands)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    options = build_parser().parse_args(arguments)
    as_json = bool(options.json)
    stream = sys.stderr if as_json else sys.stdout
    os.environ.update(_ENVIRONMENT)
    bar = Bar(shown=not as_json and sys.stderr.isatty())

    def report(line: str) -> None:
        bar.clear()
        print(line, file=stream, flush=True)

    try:
        missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
        if missing:
            raise SettingsError(
                f"this needs {', '.join(missing)}; install it with: "
                "pip install 'radiopaque[training,flower]'"
            )
        result = options.run(options, report, bar)
    except TrainingError as error:
        bar.clear()
        if as_json:
            print(json.dumps({"error": type(error).__name__, "message": str(error)}))
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        if isinstance(error, BudgetSpentError):
            return 7
        return 2 if isinstance(error, SettingsError | CheckpointError) else 1
    except KeyboardInterrupt:
        bar.clear()
        return 130
    bar.clear()
    if as_json:
        print(json.dumps(result))
    return 0


def _add_keys(commands: Any) -> None:
    parser = commands.add_parser(
        "keys",
        help="make the keys of a hospital, or of the coordinator",
        description=(
            "Make keys: for a hospital one that signs its messages (Ed25519) and one of Flower's "
            "node authentication (P-384); for the coordinator a TLS key and a certificate. Private "
            "keys get mode 0600 and are never shown. Send the file *.public.toml to the "
            "coordinator; the folder stays where it is."
        ),
    )
    _add_json(parser)
    who = parser.add_mutually_exclusive_group(required=True)
    who.add_argument("--site", metavar="NAME", help="a hospital of this name: a to z, 0 to 9, -")
    who.add_argument(
        "--coordinator", metavar="HOST:PORT", help="the coordinator, as hospitals reach it"
    )
    parser.add_argument("--output", type=Path, default=Path("keys"), help="(default: %(default)s)")
    parser.set_defaults(run=_keys)


def _keys(options: argparse.Namespace, report: Report, watch: Watch) -> Result:
    import re

    from training.flower.keys import make_coordinator_keys, make_site_keys
    from training.flower.members import NAME

    if options.site is None:
        public = make_coordinator_keys(options.output, options.coordinator)
    elif re.fullmatch(NAME, options.site):
        public = make_site_keys(options.output, options.site)
    else:
        raise SettingsError(f"{options.site!r} is not a name: small letters, digits and - only")
    report(f"wrote {options.output}; send {public} to the coordinator, and nothing else of it")
    return {"folder": str(options.output), "public": str(public)}


def _add_list(commands: Any) -> None:
    parser = commands.add_parser(
        "list",
        help="make the list of members out of what they sent (coordinator)",
        description="Join the files *.public.toml of all members into the list that all keep.",
    )
    _add_json(parser)
    parser.add_argument("name", help="of the federation")
    parser.add_argument(
        "files", type=Path, nargs="+", help="coordinator.public.toml and the sites'"
    )
    parser.add_argument(
        "--output", type=Path, default=Path("members.toml"), help="(default: %(default)s)"
    )
    parser.set_defaults(run=_list)
    parser = commands.add_parser(
        "show",
        help="show a list of members and its fingerprint, to be compared by telephone",
        description="Read a list of members; print who is in it, and its fingerprint.",
    )
    _add_json(parser)
    parser.add_argument("file", type=Path)
    parser.set_defaults(run=_show)


def _list(options: argparse.Namespace, report: Report, watch: Watch) -> Result:
    from training.files import write_atomically
    from training.flower.members import assemble, to_toml

    members = assemble(options.name, options.files)
    if options.output.exists():
        raise SettingsError(f"{options.output} is there already; choose another --output")
    try:
        write_atomically(options.output, to_toml(members).encode())
    except OSError as error:
        raise SettingsError(f"{options.output} cannot be written ({error.strerror})") from error
    report(f"wrote {options.output} with {len(members.sites)} sites; send it to all of them")
    report(f"fingerprint: {members.fingerprint()}")
    return {"output": str(options.output), "fingerprint": members.fingerprint()}


def _show(options: argparse.Namespace, report: Report, watch: Watch) -> Result:
    from training.flower.members import load_members

    members = load_members(options.file)
    report(f"{members.name}, coordinated from {members.coordinator.address}")
    for name, entry in sorted(members.sites.items()):
        report(f"  {name}  {entry.identity[:16]}")
    report(f"fingerprint: {members.fingerprint()}")
    return {"sites": sorted(members.sites), "fingerprint": members.fingerprint()}


def _add_coordinate(commands: Any) -> None:
    parser = commands.add_parser(
        "coordinate",
        help="lead a run (coordinator)",
        description=(
            "Serve the sites and lead a run to its end. Writes model.onnx, log.json, curves.png "
            "and checkpoint.pt. Always TLS, and only for the sites of the list. Stop it with "
            "Ctrl-C or SIGTERM at any time and go on with --resume."
        ),
        epilog="JSON keys: output, rounds, best_round, best_validation_auc, stopped, private.",
    )
    _add_json(parser)
    add = parser.add_argument
    add("--config", type=Path, required=True, help="the run that all agreed on")
    add("--members", type=Path, required=True, help="the list of members")
    add("--keys", type=Path, default=Path("keys"), help="folder of keys (default: %(default)s)")
    add("--output", type=Path, default=Path("runs/model"), help="folder (default: %(default)s)")
    add("--validation", type=Path, help="own images, in NORMAL and PNEUMONIA, to choose the round")
    add("--listen", metavar="HOST:PORT", help="(default: the port of the list, on all addresses)")
    add("--resume", action="store_true", help="go on after the last finished round")
    add(
        "--wait",
        type=float,
        default=300.0,
        metavar="S",
        help="for all sites at the beginning; "
        "then those that are there are enough, if they are as many as needed (default: 300)",
    )
    add(
        "--step-seconds",
        type=float,
        default=3600.0,
        metavar="S",
        help="longest training of a site in a round (default: 3600)",
    )
    add(
        "--give-up",
        type=float,
        metavar="S",
        help="end if a round cannot be finished for so long (default: never)",
    )
    _add_verbose(parser)
    parser.set_defaults(run=_coordinate)


def _coordinate(options: argparse.Namespace, report: Report, watch: Watch) -> Result:
    set_logging(options.verbose)
    from training.flower.coordinate import Request, coordinate
    from training.flower.finish import finish

    request = Request(
        options.config,
        options.members,
        options.keys,
        options.output,
        options.listen,
        options.validation,
        options.resume,
        options.wait,
        options.step_seconds,
        options.give_up,
    )
    try:
        result = coordinate(request, report, watch)
    except KeyboardInterrupt:
        report(f"interrupted; go on with --resume --output {options.output}")
        raise
    return finish(result.settings, result.outcome, result.validation, options.output, report)


def _add_join(commands: Any) -> None:
    parser = commands.add_parser(
        "join",
        help="take part in a run (hospital)",
        description=(
            "Take part in a run until it is over: train on the images of this hospital, and send "
            "masked updates to the coordinator. Needs a connection to the coordinator and opens no "
            "port. Waits for the coordinator, and for its return. Stop it with Ctrl-C or SIGTERM; "
            "start it again to take part in the next round."
        ),
    )
    _add_json(parser)
    parser.add_argument("--config", type=Path, required=True, help="this hospital's own file")
    parser.add_argument(
        "--check", action="store_true", help="look whether everything is in place, and stop"
    )
    _add_verbose(parser)
    parser.set_defaults(run=_join)


def _join(options: argparse.Namespace, report: Report, watch: Watch) -> Result:
    set_logging(options.verbose)
    from training.flower.join import join

    try:
        join(options.config, report, options.check, watch)
    except KeyboardInterrupt:
        report("interrupted; start it again to take part in the next round")
        raise
    return {"config": str(options.config)}


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object at the end, the rest on stderr"
    )


def _add_verbose(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--verbose", action="store_true", help="show what Flower logs, too")


def set_logging(verbose: bool) -> None:
    """Show what Flower logs, or nothing of it: it logs what strangers send, among other things."""
    from flwr.supercore.logger import FLOWER_LOGGER  # sets a level of its own when it is loaded

    FLOWER_LOGGER.setLevel(logging.INFO if verbose else logging.CRITICAL)
    FLOWER_LOGGER.propagate = False
