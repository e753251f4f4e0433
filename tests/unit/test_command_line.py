"""What the command line says where no command says it: help texts, and Ctrl-C."""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from rich.text import Text

from radiopaque.certificates import Role
from radiopaque.cli import main, usage
from radiopaque.cli.main import COMMANDS
from radiopaque.config import example


def help_texts() -> Iterator[str]:
    """Every docstring and every option's text in the modules of the commands."""
    for name in COMMANDS:
        module = importlib.import_module(f"radiopaque.cli.{name.replace('-', '_')}")
        for function in vars(module).values():
            if not inspect.isfunction(function) or function.__module__ != module.__name__:
                continue
            yield inspect.getdoc(function) or ""
            for parameter in inspect.signature(function).parameters.values():
                yield getattr(parameter.default, "help", None) or ""


def test_help_loses_nothing_to_markup() -> None:
    texts = list(help_texts())

    assert any("PKCS #10" in text for text in texts)
    for text in texts:
        assert Text.from_markup(text).plain == text


@pytest.mark.parametrize("command", ["attack", "federation", "train", "demo"])
def test_processes_import_nothing_from_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    """Neither those that a command becomes nor those that it starts."""
    (tmp_path / "json.py").write_text("print('of the current folder')\nraise SystemExit(0)\n")
    script = (
        "import json, sys; from radiopaque.cli import main, parties\n"
        "import subprocess\n"
        "if sys.argv[1] == 'demo':\n"
        "    subprocess.run([*parties.COMMAND, 'data-owner', '--help'])\n"
        "else:\n"
        "    main.main([sys.argv[1], '--help'])\n"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", script, command],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert "of the current folder" not in done.stdout
    assert "Usage" in done.stdout or "usage" in done.stdout, done.stderr


def test_an_interrupted_command_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(application: typer.Typer) -> None:
        @application.command("usage")
        def _usage() -> None:
            raise KeyboardInterrupt

    monkeypatch.setattr(usage, "register", interrupted)
    with pytest.raises(SystemExit) as ended:
        main.main(["usage"])
    printed = capsys.readouterr()
    assert (ended.value.code, printed.out, printed.err) == (130, "", "interrupted\n")


def test_a_command_that_ends_by_itself_is_not_interrupted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def over(application: typer.Typer) -> None:
        @application.command("usage")
        def _usage() -> None:
            raise typer.Exit(130)

    monkeypatch.setattr(usage, "register", over)
    with pytest.raises(SystemExit) as ended:
        main.main(["usage"])
    printed = capsys.readouterr()
    assert (ended.value.code, printed.err) == (130, "")


def test_days_in_the_wrong_order(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main.main(
            [
                "usage",
                "model-owner",
                "--config",
                "x.toml",
                "--first",
                "2026-11-21",
                "--last",
                "2026-11-20",
            ]
        )
    assert ended.value.code == 2
    assert "--last lies before --first" in capsys.readouterr().err


def test_no_file_name_is_broken_in_an_example() -> None:
    assert "docs/crypten-engine.md" in example(Role.DATA_OWNER)
