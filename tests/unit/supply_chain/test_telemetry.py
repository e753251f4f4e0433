"""Libraries that report to their makers are kept from it before they are loaded."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
SILENCED = ("radiopaque", "training")
LOADS = """
import sys, {package}
import onnx, onnxruntime
from onnx import TensorProto, helper
value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", value[:1], value[1:])
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
"""


def run(program: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


@pytest.mark.parametrize("package", SILENCED)
def test_onnxruntime_reports_to_nobody(package: str, tmp_path: Path) -> None:
    """What it would send waits in a file beside an identifier of the machine: neither is there."""
    home = tmp_path / "home"
    home.mkdir()
    nothing = tmp_path / "no-authorities.pem"
    nothing.touch()
    # as on an operator's machine: variables of CI services would silence it, too
    environment = {
        **{name: value for name, value in os.environ.items() if name in ("PATH", "PYTHONPATH")},
        "HOME": str(home),
        "TMPDIR": str(home),
        "PYTHONDONTWRITEBYTECODE": "1",
        "SSL_CERT_FILE": str(nothing),  # should it report after all, it cannot connect
    }
    program = LOADS.format(package=package)
    done = run(program, environment)
    assert done.returncode == 0, done.stderr
    assert list(home.rglob("*")) == []


def test_nobody_else_loads_it() -> None:
    packages = ("radiopaque", "training", "benchmarks", "crypto_provider", "model_owner")
    for package in (*packages, "data_owner", "supply_chain"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Import):
                    names = [alias.name for alias in node.names]
                else:
                    names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                if any(name.partition(".")[0] == "onnxruntime" for name in names):
                    assert package in SILENCED, path


def test_flower_reports_to_nobody() -> None:
    """What its own module read when it was loaded, after a command had begun."""
    program = """
import sys
from training.flower.command import main
main(["show", "/nowhere"])
from flwr.supercore import telemetry
print(telemetry.FLWR_TELEMETRY_ENABLED)
"""
    environment = {name: value for name, value in os.environ.items() if "FLWR" not in name}
    done = run(program, environment)
    assert done.stdout.splitlines()[-1:] == ["0"], done.stderr
