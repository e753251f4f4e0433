"""Entry point: finds the sub-command, loads it alone, and turns expected failures into exit codes.

Exit codes: 0 success; 1 internal error; 2 usage or configuration; 3 model, plan or weights; 4 image
or tensor; 5 protocol or session; 6 certificates and roles; 7 connection, deadline or limit; 8 disk;
9 the doctor found a failure; 10 a crypto provider that dealt wrongly; 130 interrupted.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Sequence

import typer

import radiopaque
from radiopaque.errors import RadiopaqueError
from radiopaque.heap import keep_freed_memory, leave_no_core_dump

COMMANDS = {
    "demo": "See a real X-ray classified by three processes, none of which sees it all.",
    "compile": "Turn an ONNX model into a public plan and private weights.",
    "calibrate": "Measure a model's value ranges on images and store them in its manifest.",
    "evaluate": "Compare secure inference with onnxruntime on a folder of images.",
    "train": "Train a model, alone or as several sites, with or without differential privacy.",
    "federation": "Train together from different machines; images stay where they are.",
    "attack": "Attack our own training: gradient inversion and a privacy audit.",
    "bench": "Measure speed, traffic and fidelity, side by side with other tools.",
    "crypto-provider": "Deal correlated randomness.",
    "model-owner": "Host compiled models.",
    "data-owner": "Submit images, prepare sessions, list models.",
    "certs": "Certificates: requests for an authority of your own, or ones for development.",
    "audit": "Check a party's audit log.",
    "config": "Print commented configuration files.",
    "doctor": "Check a deployment: certificates, peers, clocks, disks, ledgers.",
    "top": "Watch a serving party: sessions, calls, latencies, bytes.",
    "usage": "What each clinic used: inferences, bytes, CPU seconds.",
}
PARTIES = frozenset({"crypto-provider", "model-owner", "data-owner"})


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line. Exits with one of the codes above."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words[:1] and words[0] in PARTIES:
        keep_freed_memory()
    # the keys of a model and the images of a calibration are secrets as well
    leave_no_core_dump()
    try:
        _application(words)(args=words, prog_name="radiopaque")
    except RadiopaqueError as error:
        _report(error, "--json" in words)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except SystemExit as ended:
        # typer makes an exit of Ctrl-C, without a word
        if isinstance(getattr(ended.__context__, "__cause__", None), KeyboardInterrupt):
            print("interrupted", file=sys.stderr)
        raise


def _application(words: Sequence[str]) -> typer.Typer:
    application = typer.Typer(
        help="Private inference on medical images.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    application.callback()(_root)
    wanted = next((word for word in words if not word.startswith("-")), None)
    for name, text in COMMANDS.items():
        if name == wanted:
            module = importlib.import_module(f"radiopaque.cli.{name.replace('-', '_')}")
            register: Callable[[typer.Typer], None] = module.register
            register(application)
        else:
            application.command(name, help=text)(_unloaded)
    return application


def _print_version(asked: bool) -> None:
    if asked:
        print(radiopaque.__version__)
        raise typer.Exit


def _root(
    version: bool = typer.Option(
        False, "--version", help="Print the version.", is_eager=True, callback=_print_version
    ),
) -> None:
    """Holds the options of no command."""


def _unloaded() -> None:
    """Stands for a sub-command in the overview; the one that is called is loaded instead."""


def _report(error: RadiopaqueError, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"error": type(error).__name__, "message": str(error)}))
    print(f"{type(error).__name__}: {error}", file=sys.stderr)
