"""The walls between the rooms (docs/architecture.md): who may import whom, and what that loads.

Once over the text of every module, so that an import inside a function counts too, and once over
what a fresh interpreter really has loaded, with everything that only an extra installs made
unimportable.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import radiopaque

ROOT = Path(__file__).parents[2]
PARTIES = ("crypto_provider", "model_owner", "data_owner")
CORE = "radiopaque"
COMMANDS = "radiopaque.cli"
COMPANIONS = ("training", "benchmarks", "supply_chain")
CRYPTEN_WORKER = "radiopaque.engine.crypten.worker"
TENSORS = "radiopaque.kernels.tensors"
DEVICES = "radiopaque.engine.devices"
POSTGRESQL = "radiopaque.ledger.postgresql"
MODEL_FRAMEWORKS = ("torch", "onnx", "onnxruntime")
IMAGE_READERS = ("pydicom", "PIL")
NETWORK = ("grpc", "radiopaque.transport", "radiopaque.wire.v1.services_pb2")
# Top-level modules of the extras: what they name and what comes with it.
EXTRAS = (
    "torch",
    "opacus",
    "flwr",
    "crypten",
    "omegaconf",
    "pandas",
    "scipy",
    "matplotlib",
    "psutil",
    "tensorboardX",
    "tensorboard",
    "optuna",
    "psycopg",
    "sqlalchemy",
    "alembic",
    "opentelemetry",
    "gdcm",
    "pylibjpeg",
    "openjpeg",
    "jpeg_ls",
    "onnxscript",
    "hypothesis",
    "pytest",
)


def within(module: str, names: tuple[str, ...]) -> bool:
    """Whether a module is one of the packages or lies in one of them."""
    return any(module == name or module.startswith(f"{name}.") for name in names)


def modules(package: str) -> dict[str, Path]:
    """Every module of a package, by its dotted name."""
    found = {}
    for path in sorted((ROOT / package.replace(".", "/")).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(module: str, path: Path) -> Iterator[tuple[int, str]]:
    """(line, module) of every import statement, wherever it stands."""
    yield from imported_by(ast.parse(path.read_text(), str(path)), module, path)


def imported_by(tree: ast.AST, module: str, path: Path) -> Iterator[tuple[int, str]]:
    """The same for a part of a module's text."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parent = module.split(".")
                parent = parent if path.name == "__init__.py" else parent[:-1]
                kept = parent[: len(parent) - node.level + 1]
                base = ".".join([*kept, *([base] if base else [])])
            yield node.lineno, base
            for alias in node.names:
                yield node.lineno, f"{base}.{alias.name}"


def trespasses(package: str, forbidden: tuple[str, ...], exempt: tuple[str, ...] = ()) -> list[str]:
    found = modules(package)
    assert found, f"there is no package {package}"
    return [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for module, path in found.items()
        if not within(module, exempt)
        for line, name in imported(module, path)
        if within(name, forbidden)
    ]


def test_the_core_imports_no_party_and_no_companion() -> None:
    assert trespasses(CORE, PARTIES + COMPANIONS, exempt=(COMMANDS,)) == []
    assert trespasses(COMMANDS, COMPANIONS) == []


@pytest.mark.parametrize("party", PARTIES)
def test_parties_import_the_core_alone(party: str) -> None:
    others = tuple(other for other in PARTIES if other != party)
    assert trespasses(party, (*others, *COMPANIONS, COMMANDS)) == []


def test_the_core_does_not_import_its_commands() -> None:
    exempt = (COMMANDS, "radiopaque.__main__")
    assert trespasses(CORE, (COMMANDS,), exempt=exempt) == []


def test_what_each_party_must_not_hold() -> None:
    assert trespasses("crypto_provider", MODEL_FRAMEWORKS + IMAGE_READERS) == []
    assert trespasses("model_owner", IMAGE_READERS) == []
    assert trespasses("data_owner", MODEL_FRAMEWORKS) == []


def test_graph_knows_no_transport_and_no_gate() -> None:
    forbidden = (*NETWORK, "radiopaque.gates", "radiopaque.engine", "radiopaque.prg")
    assert trespasses("radiopaque.graph", forbidden) == []


@pytest.mark.parametrize("room", ["gates", "kernels", "engine", "wire"])
def test_the_protocol_knows_no_network_library(room: str) -> None:
    assert trespasses(f"radiopaque.{room}", ("grpc", "radiopaque.transport.tls")) == []


def test_only_tensors_and_the_worker_process_of_crypten_import_a_framework() -> None:
    frameworks = ("torch", "crypten", CRYPTEN_WORKER)
    assert trespasses(CORE, frameworks, exempt=(CRYPTEN_WORKER, TENSORS)) == []
    for party in PARTIES:
        assert trespasses(party, (*frameworks, TENSORS)) == []


def test_only_who_asks_for_a_gpu_loads_its_kernels() -> None:
    assert trespasses(CORE, (TENSORS,), exempt=(TENSORS, DEVICES)) == []
    names = loaded(
        f"import {DEVICES} as d; from radiopaque.engine.names import DeviceName\n"
        "d.open_device(DeviceName.CPU)"
    )
    assert hits(names, (TENSORS, "torch")) == []


NO_TORCH = """
from radiopaque.engine.devices import open_device
from radiopaque.engine.names import DeviceName
from radiopaque.errors import ConfigError
try:
    open_device(DeviceName.CUDA)
except ConfigError as error:
    assert "pip install 'radiopaque[gpu]'" in str(error) and 'device = "cpu"' in str(error), error
else:
    raise SystemExit("a GPU without PyTorch")
"""


def test_without_the_extra_a_gpu_is_a_configuration_error() -> None:
    loaded(NO_TORCH)


def test_training_and_core_do_not_import_each_other() -> None:
    assert trespasses("training", (CORE, *PARTIES)) == []
    assert trespasses(CORE, ("training",)) == []


def test_trespasses_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check sees imports in functions, under TYPE_CHECKING, relative ones and submodules."""
    room = tmp_path / "room"
    (room / "deep").mkdir(parents=True)
    (room / "__init__.py").write_text("from . import deep\n")
    (room / "deep" / "__init__.py").write_text("def f():\n    import onnx.helper\n")
    (room / "deep" / "one.py").write_text("from ..other import thing\n")
    (room / "two.py").write_text("if TYPE_CHECKING:\n    from radiopaque import transport\n")
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    assert trespasses("room", ("onnx",)) == ["room/deep/__init__.py:2 imports onnx.helper"]
    assert trespasses("room", ("radiopaque.transport",)) == [
        "room/two.py:2 imports radiopaque.transport"
    ]
    assert len(trespasses("room", ("room.other",))) == 2
    assert trespasses("room", ("room.deep",)) == ["room/__init__.py:1 imports room.deep"]


WATCH = """
import importlib, json, sys

class Extras:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in set({extras!r}):
            raise ModuleNotFoundError(f"{{name}} comes with an extra", name=name)
        return None

sys.meta_path.insert(0, Extras())
{code}
print(json.dumps(sorted(sys.modules)))
"""


def loaded(code: str) -> list[str]:
    """All modules of a fresh interpreter without the extras, after running ``code``."""
    done = subprocess.run(
        [sys.executable, "-c", WATCH.format(extras=EXTRAS, code=code)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    names: list[str] = json.loads(done.stdout.splitlines()[-1])
    return names


def import_all(*packages: str) -> str:
    names = [name for package in packages for name in modules(package)]
    return f"for name in {names!r}: importlib.import_module(name)"


def hits(names: list[str], forbidden: tuple[str, ...]) -> list[str]:
    return [name for name in names if within(name, forbidden)]


def test_crypto_provider_loads_nothing_that_could_hold_an_image_or_a_model() -> None:
    names = loaded(import_all("crypto_provider"))
    assert "crypto_provider.service" in names
    others = ("model_owner", "data_owner", COMMANDS)
    assert hits(names, MODEL_FRAMEWORKS + IMAGE_READERS + others) == []


def test_model_owner_loads_no_image_reader_and_no_framework() -> None:
    names = loaded(import_all("model_owner"))
    assert "model_owner.service" in names
    others = ("crypto_provider", "data_owner", COMMANDS)
    assert hits(names, MODEL_FRAMEWORKS + IMAGE_READERS + others) == []


def test_data_owner_loads_no_framework() -> None:
    names = loaded(import_all("data_owner"))
    assert "data_owner.client" in names
    others = ("crypto_provider", "model_owner", COMMANDS)
    assert hits(names, MODEL_FRAMEWORKS + others) == []


def test_the_client_alone_loads_no_image_reader() -> None:
    """Files are decoded when there is one: until then nothing that parses them is loaded."""
    assert hits(loaded("import data_owner"), ("numpy", "grpc", "numba", "pydicom")) == []
    names = loaded("from data_owner import Client")
    assert "data_owner.client" in names
    assert hits(names, (*MODEL_FRAMEWORKS, "pydicom", "PIL.Image")) == []


def test_reading_a_plan_loads_no_onnx_and_no_network() -> None:
    names = loaded("import radiopaque.wire.plans, radiopaque.graph.validate")
    assert hits(names, MODEL_FRAMEWORKS + IMAGE_READERS + ("grpc", "numba", *PARTIES)) == []


def test_the_compiler_loads_no_transport() -> None:
    names = loaded(import_all("radiopaque.graph"))
    assert hits(names, (*NETWORK, *PARTIES, COMMANDS)) == []


def test_one_module_speaks_to_postgresql() -> None:
    for package in (CORE, *PARTIES):
        assert trespasses(package, ("psycopg",), exempt=(POSTGRESQL,)) == []


def test_the_whole_core_imports_without_extras() -> None:
    apart = (COMMANDS, "radiopaque.__main__", CRYPTEN_WORKER, TENSORS, POSTGRESQL)
    names = [name for name in modules(CORE) if not within(name, apart)]
    code = f"for name in {names!r}: importlib.import_module(name)"
    assert hits(loaded(code), (*PARTIES, *COMPANIONS, COMMANDS)) == []


RUN = """
from radiopaque.cli.main import main
try:
    main({words!r})
except SystemExit as ended:
    assert not ended.code, ended.code
"""


def test_the_overview_of_commands_loads_none_of_them() -> None:
    names = loaded(RUN.format(words=["--help"]))
    heavy = ("numba", "numpy", "grpc", "pydicom", "pydantic", *MODEL_FRAMEWORKS, *PARTIES)
    assert hits(names, heavy) == []
    assert hits(names, (COMMANDS,)) == [COMMANDS, "radiopaque.cli.main"]


@pytest.mark.parametrize("command", ["crypto-provider", "model-owner", "data-owner", "certs"])
def test_a_command_loads_itself_alone(command: str) -> None:
    names = loaded(RUN.format(words=[command, "--help"]))
    own = f"radiopaque.cli.{command.replace('-', '_')}"
    assert hits(names, (COMMANDS,)) == sorted([COMMANDS, own, "radiopaque.cli.main"])
    assert hits(names, ("numba", "grpc", *MODEL_FRAMEWORKS, *PARTIES)) == []


def test_commands_load_parties_and_libraries_only_when_they_are_used() -> None:
    at_once = [
        f"{module} imports {name}"
        for module, path in modules(COMMANDS).items()
        for statement in ast.parse(path.read_text()).body
        if isinstance(statement, ast.Import | ast.ImportFrom)
        for _, name in imported_by(statement, module, path)
        if within(name, (*PARTIES, *MODEL_FRAMEWORKS, *IMAGE_READERS, "grpc", "numba"))
    ]
    assert at_once == []
    assert trespasses(COMMANDS, EXTRAS) == []


def test_the_version_is_printed_without_a_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "radiopaque", "--version"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=60,
        check=True,
    )
    assert done.stdout == f"{radiopaque.__version__}\n"
