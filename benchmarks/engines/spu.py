"""SPU with the ABY3 protocol, in its own three processes and its own virtual environment.

The environment is made when SPU is first asked for, because SPU needs numpy < 2. Its correlated
randomness comes from keys that pairs of parties share, while it runs: there is no offline phase.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.case import Case, Inputs, Tell
from benchmarks.engines import peer
from benchmarks.errors import NotAvailableError
from benchmarks.family import run_watched
from benchmarks.models import cache_folder
from benchmarks.peers import spu_parties
from benchmarks.record import Part
from radiopaque.graph.ir import Graph, Node
from radiopaque.graph.onnx_file import load_model
from radiopaque.graph.onnx_import import import_model
from radiopaque.graph.passes import prune, simplify

_PACKAGES = ("spu==0.9.5", "numpy<2")
_INSTALL_SECONDS = 900.0
_SAME = ("Relu", "Add", "Concat", "GlobalAveragePool", "Flatten")
Weights = dict[str, NDArray[np.float32]]


def measure(case: Case, inputs: Inputs, folder: Path, tell: Tell) -> Part:
    """See :class:`benchmarks.case.Engine`."""
    peer.check(
        case,
        "SPU",
        "its links among three parties are not relayed; measured on loopback",
        "measured for one image at a time, one by one",
    )
    program, weights = translate(inputs.source.onnx)
    python = _environment(tell)
    numbers = peer.give_images(case, inputs, folder)
    np.savez(folder / "weights.npz", **weights)  # type: ignore[arg-type]
    (folder / "program.json").write_text(json.dumps(program))
    tell(f"{case.inferences} inferences after a first one, in three processes")
    command = [str(python), str(Path(spu_parties.__file__)), str(folder)]
    # its own packages, not those of the environment that this runs in
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    watched = run_watched([*command, "--threads", str(case.threads)], environment)
    return peer.part(case, inputs, numbers, json.loads(watched.output), watched, {})


def _environment(tell: Tell) -> Path:
    """The Python of SPU's environment, made where there is none. Raises NotAvailableError."""
    folder = cache_folder() / "spu-0.9.5"
    python = folder / "bin" / "python"
    done = folder / "complete"
    if done.exists():
        return python
    tell(f"installing SPU (1 GB, once; kept in {folder})")
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        for command in (
            [sys.executable, "-m", "venv", str(folder)],
            [str(python), "-m", "pip", "install", "--quiet", *_PACKAGES],
        ):
            subprocess.run(
                command, check=True, capture_output=True, text=True, timeout=_INSTALL_SECONDS
            )
    except (OSError, subprocess.SubprocessError) as error:
        shutil.rmtree(folder, ignore_errors=True)
        said = str(getattr(error, "stderr", "") or error).strip().splitlines()
        raise NotAvailableError(f"SPU cannot be installed here: {said[-1]}") from None
    done.touch()
    return python


def translate(model: Path) -> tuple[dict[str, Any], Weights]:
    """An ONNX file as a list of operations for :mod:`benchmarks.peers.spu_parties`, and weights.

    Raises NotAvailableError for an operator that it has not.
    """
    graph = simplify(prune(import_model(load_model(model), None).graph)).graph
    weights: Weights = {}
    nodes = [_node(graph, node, weights) for node in graph.nodes]
    return {"input": graph.input, "output": graph.output, "nodes": nodes}, weights


def _node(graph: Graph, node: Node, weights: Weights) -> dict[str, Any]:
    op, names, attributes = node.op, [name for name in node.inputs if name], {}
    if op in ("Conv", "MaxPool", "AveragePool"):
        attributes = _window(node)
    elif op == "Clip":
        low, high = (graph.reals(name) for name in node.inputs[1:3])
        if low is None or high is None:
            raise NotAvailableError("a Clip without constant bounds is not translated for SPU")
        names, attributes = names[:1], {"low": float(low), "high": float(high)}
    elif op == "Pad":
        amounts = graph.integers(node.input(1)) or ()
        half = len(amounts) // 2
        pads = [[amounts[axis], amounts[axis + half]] for axis in range(half)]
        names, attributes = names[:1], {"pads": pads}
    elif op == "BatchNormalization":
        op, names = "Scale", [names[0], *_folded(graph, node, weights)]
    elif op == "Gemm":
        op = "Product"
        matrix = _constant(graph, names[1])
        weights[names[1]] = matrix.T if node.integer("transB", 0) else matrix
    elif op == "Concat":
        attributes = {"axis": node.integer("axis", 0)}
    elif op not in _SAME:
        raise NotAvailableError(f"{op} is not translated for SPU")
    for name in names:
        if name in graph.constants and name not in weights:
            weights[name] = _constant(graph, name)
    return {"op": op, "inputs": names, "output": node.output, "attributes": attributes}


def _window(node: Node) -> dict[str, Any]:
    pads = node.integers("pads") or (0, 0, 0, 0)
    padded = any(pads)
    plain = (
        node.text("auto_pad", "NOTSET") == "NOTSET"
        and set(node.integers("dilations") or (1,)) == {1}
        and not node.integer("ceil_mode", 0)
        and not (node.op == "AveragePool" and padded and not node.integer("count_include_pad", 0))
    )
    if not plain:
        raise NotAvailableError(f"{node.label}: this {node.op} is not translated for SPU")
    return {
        "kernel_shape": node.integers("kernel_shape"),
        "strides": node.integers("strides") or (1, 1),
        "pads": [[pads[0], pads[2]], [pads[1], pads[3]]],
        "group": node.integer("group", 1),
    }


def _folded(graph: Graph, node: Node, weights: Weights) -> tuple[str, str]:
    """Names of a batch norm's factor and summand, [1, c, 1, 1]."""
    gamma, beta, mean, variance = (_constant(graph, name) for name in node.inputs[1:5])
    factor = gamma / np.sqrt(variance + node.real("epsilon", 1e-5))
    names = f"{node.output}/factor", f"{node.output}/summand"
    for name, value in zip(names, (factor, beta - mean * factor), strict=True):
        weights[name] = value.astype(np.float32).reshape(1, -1, 1, 1)
    return names


def _constant(graph: Graph, name: str) -> NDArray[np.float32]:
    return np.asarray(graph.constants[name], np.float32)
