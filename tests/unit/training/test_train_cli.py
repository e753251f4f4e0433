"""`radiopaque train` from outside: two processes that behave as one, and ranges at the end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("opacus")

from radiopaque.cli import train as front
from radiopaque.errors import ImageError
from radiopaque.graph.compile import compile_model
from radiopaque.graph.manifest import Manifest
from tests.unit.training.pictures import private_settings
from training.accounting import Steps, rdp_epsilon

REPOSITORY = Path(__file__).resolve().parents[3]
CONFIG = """
threads = 1
[data]
image_size = 32
[model]
options = {{ width = 2 }}
[training]
rounds = {rounds}
local_steps = 1
[output]
name = "lungs"
"""


def started(*words: object, **options: Any) -> subprocess.Popen[str]:
    line = [sys.executable, "-m", "radiopaque", "train", *map(str, words)]
    return subprocess.Popen(
        line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=REPOSITORY, **options
    )


def config_of(tmp_path: Path, rounds: int = 1) -> Path:
    path = tmp_path / "config.toml"
    path.write_text(CONFIG.format(rounds=rounds))
    return path


def test_what_is_trained_compiles_at_once(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    words = ("--config", config_of(tmp_path), "--data", folder, "--output", output)
    process = started(*words, "--json")
    printed, told = process.communicate()
    assert process.returncode == 0, told
    result = json.loads(printed)  # one object and nothing else
    manifest = Manifest.load(output)
    assert result["ranges"] == len(manifest.ranges) > 10
    assert result["private"] is False
    assert result["test_auc"] is None
    assert "calibration" not in result
    assert "validation images; compile it" in told
    assert manifest.ranges["image"][0] == pytest.approx((0.0 - 0.5) / 0.25, abs=0.1)
    assert compile_model(manifest.onnx_path, manifest=manifest).report.calibrated

    # Once more after it is done: everything is written again, and people read it on stdout.
    process = started(*words, "--resume", "--calibrate", REPOSITORY / "samples" / "labelled")
    printed, told = process.communicate()
    assert (process.returncode, told) == (0, "")
    assert "resumed after round 1" in printed
    assert "validation: " in printed
    assert "from 24 images" in printed  # those of the folder
    assert Manifest.load(output).ranges != manifest.ranges


def test_a_private_model_is_not_calibrated_on_the_images_of_its_sites(
    folder: Path, tmp_path: Path
) -> None:
    """Its budget allows the one round; going on afterwards publishes again and spends nothing."""
    # A round is two steps; the second one would make it four.
    epsilon = rdp_epsilon((Steps(1.0, 0.2, 3),), 1e-5)
    settings = private_settings(
        tmp_path / "budgets", training={"rounds": 1}, privacy={"epsilon": epsilon}
    )
    config = tmp_path / "config.toml"
    config.write_text(toml_of(settings.model_dump(mode="json", exclude_unset=True)))
    output = tmp_path / "run"
    words = ("--config", config, "--data", folder, "--output", output, "--json")
    for more in ((), ("--resume",)):
        process = started(*words, *more)
        printed, told = process.communicate()
        assert process.returncode == 0, told
        result = json.loads(printed)
        assert result["private"] is True
        assert "validation images; compile it" in told
        manifest = Manifest.load(output)
        assert manifest.training["sites"][0]["privacy"]["steps"] == 2
        assert result["ranges"] == len(manifest.ranges)
    assert "does not allow one more round" in told


def toml_of(values: dict[str, Any], prefix: str = "") -> str:
    """Tables of plain values as TOML."""
    lines = [
        f"{key} = {json.dumps(value)}"
        for key, value in values.items()
        if not isinstance(value, dict)
    ]
    for key, value in values.items():
        if isinstance(value, dict):
            lines += [f"[{prefix}{key}]", toml_of(value, f"{prefix}{key}.")]
    return "\n".join(lines)


def wait_for(process: subprocess.Popen[str], text: str) -> list[str]:
    """Read stdout up to a line that starts with `text`."""
    assert process.stdout is not None
    lines: list[str] = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith(text):
            return lines
    raise AssertionError(f"no {text!r} in {lines}")


def to_the_group(process: subprocess.Popen[str]) -> None:
    """What a terminal does at Ctrl-C: every process of the group gets it."""
    os.killpg(process.pid, signal.SIGINT)


def twice_to_the_command(process: subprocess.Popen[str]) -> None:
    """What a supervisor, and then an impatient person, do."""
    process.send_signal(signal.SIGINT)
    time.sleep(0.02)
    process.send_signal(signal.SIGINT)


@pytest.fixture
def interruptible() -> Iterator[None]:
    """What is started can be interrupted, even where the tests themselves run in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("interrupt", [to_the_group, twice_to_the_command])
def test_an_interrupt_ends_both_processes_in_good_order(
    interrupt: Callable[[subprocess.Popen[str]], None], folder: Path, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    config = config_of(tmp_path, rounds=5000)
    process = started(
        "--config", config, "--data", folder, "--output", output, start_new_session=True
    )
    wait_for(process, "round 2/")
    interrupt(process)
    printed, told = process.communicate(timeout=60)
    assert process.returncode == 130
    assert printed.count("interrupted; go on with --resume") == 1
    assert told == ""
    assert (output / "checkpoint.pt").exists()
    assert not (output / "manifest.json").exists()
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)  # nobody of the group is left


def test_a_termination_reaches_the_training_itself(folder: Path, tmp_path: Path) -> None:
    config = config_of(tmp_path, rounds=5000)
    process = started(
        "--config", config, "--data", folder, "--output", tmp_path / "run", start_new_session=True
    )
    wait_for(process, "round 1/")
    process.terminate()
    process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)


def test_a_calibration_folder_is_looked_for_before_training(folder: Path, tmp_path: Path) -> None:
    words = ("--config", config_of(tmp_path), "--data", folder, "--output", tmp_path / "run")
    process = started(*words, "--calibrate", tmp_path / "nowhere", "--json")
    printed, told = process.communicate()
    assert process.returncode == 2
    assert json.loads(printed)["error"] == "SettingsError"
    assert "nowhere" in told
    assert not (tmp_path / "run").exists()


def test_the_exit_code_of_the_companion_is_ours() -> None:
    code = "import sys; sys.exit(7)"
    assert front._run([sys.executable, "-c", code]) == 7
    killed = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    assert front._run([sys.executable, "-c", killed]) == 128 + signal.SIGKILL


def test_a_signal_that_is_ignored_stays_ignored() -> None:
    """As under nohup, which must outlive its terminal."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        code = "import signal, sys; sys.exit(signal.getsignal(signal.SIGHUP) == signal.SIG_IGN)"
        assert front._run([sys.executable, "-c", code]) == 1
    finally:
        signal.signal(signal.SIGHUP, before)


def test_handlers_are_put_back() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    front._run([sys.executable, "-c", ""])
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_images_that_cannot_be_used_do_not_hide_that_the_model_is_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ImageError):
        front._calibrate(tmp_path / "model", [tmp_path / "empty"], as_json=True)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "is complete, but has no value ranges yet" in printed.err
