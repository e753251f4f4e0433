"""SPU with the ABY3 protocol: three processes of its own that compute a model; prints one JSON.

    VENV/bin/python benchmarks/peers/spu_parties.py FOLDER [--threads N]

FOLDER has program.json, weights.npz and images.npy (:mod:`benchmarks.engines.spu` writes them). It
runs in the virtual environment that SPU needs, so it imports numpy, jax and spu alone. Rank 0 has
the images and learns the logits, rank 1 has the weights. Bytes are those that SPU's own profile
reports as sent, of all three, and those of sharing the image and the result.
"""

from __future__ import annotations

import argparse
import importlib
import json
import re
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

PARTIES = 3
_SENT = re.compile(r"Link details: total send bytes (\d+)")
_WAIT_MS = 3_600_000
_CLINIC, _VENDOR = 0, 1


def start(folder: Path, threads: int) -> dict[str, Any]:
    """Run the three processes and put together what they report."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(PARTIES)]
    addresses = ",".join(f"127.0.0.1:{one.getsockname()[1]}" for one in sockets)
    for one in sockets:
        one.close()
    command = [sys.executable, str(Path(__file__).resolve()), str(folder)]
    command += ["--threads", str(threads), "--addresses", addresses]
    parties = [
        subprocess.Popen(
            [*command, "--rank", str(rank)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(PARTIES)
    ]
    outputs = [party.communicate() for party in parties]
    if any(party.returncode for party in parties):
        raise SystemExit("\n".join(said[1][-1000:] for said in outputs))
    own = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(PARTIES)]
    profiled = [[int(size) for size in _SENT.findall(said[0])] for said in outputs]
    runs = []
    for number, run in enumerate(own[_CLINIC]["runs"]):
        sent = sum(sizes[number] for sizes in profiled)
        shared = sum(one["runs"][number]["shared_bytes"] for one in own)
        cpu = sum(one["runs"][number]["cpu_seconds"] for one in own)
        runs.append({**run, "bytes": sent + shared, "cpu_seconds": cpu})
    setup = max(one["setup_seconds"] for one in own)
    return {"version": own[_CLINIC]["version"], "setup_seconds": setup, "runs": runs}


class Party:
    """One of the three processes."""

    def __init__(self, rank: int, addresses: list[str], threads: int) -> None:
        # typed as Any: SPU is not installed where types are checked
        self.spu: Any = importlib.import_module("spu")
        library = self.spu.libspu
        self.rank = rank
        self.secret = library.Visibility.VIS_SECRET
        description = library.link.Desc()
        description.recv_timeout_ms = description.http_timeout_ms = _WAIT_MS
        for number, address in enumerate(addresses):
            description.add_party(f"party {number}", address)
        self.link = library.link.create_brpc(description, rank)
        config = library.RuntimeConfig(
            protocol=library.ProtocolKind.ABY3, field=library.FieldType.FM64
        )
        config.max_concurrency = threads
        config.enable_pphlo_profile = True
        self.io = self.spu.Io(PARTIES, config)
        self.runtime = self.spu.Runtime(self.link, config)
        self.shared_bytes = 0

    def share(self, name: str, array: Any, owner: int) -> None:
        """Set a variable whose value its owner has; the others need its shape alone."""
        if self.rank == owner:
            shares = self.io.make_shares(array, self.secret)
            for other in range(PARTIES):
                if other != owner:
                    self._send(other, shares[other])
            own = shares[owner]
        else:
            own = self._receive(owner)
        self.runtime.set_var(name, own)

    def reveal(self, name: str, reader: int) -> Any:
        """A variable's value at one party, None at the others."""
        own = self.runtime.get_var(name)
        if self.rank != reader:
            self._send(reader, own)
            return None
        shares = [own if rank == reader else self._receive(rank) for rank in range(PARTIES)]
        return self.io.reconstruct(shares)

    def _send(self, other: int, share: Any) -> None:
        for part in (share.meta, len(share.share_chunks).to_bytes(4, "big"), *share.share_chunks):
            self.link.send(other, part)
            self.shared_bytes += len(part)

    def _receive(self, other: int) -> Any:
        share = self.spu.libspu.Share()
        share.meta = self.link.recv(other)
        count = int.from_bytes(self.link.recv(other), "big")
        share.share_chunks = [self.link.recv(other) for _ in range(count)]
        return share


def take_part(rank: int, folder: Path, addresses: list[str], threads: int) -> None:
    """Compute every image, and write down what it took."""
    began = time.perf_counter()
    program = json.loads((folder / "program.json").read_text())
    weights = dict(np.load(folder / "weights.npz"))
    images = np.load(folder / "images.npy")
    party = Party(rank, addresses, threads)
    names = [*weights, program["input"]]
    frontend: Any = importlib.import_module("spu.utils.frontend")
    executable, _ = frontend.compile(
        frontend.Kind.JAX,
        lambda *values: evaluate(program, dict(zip(names, values, strict=True))),
        [*weights.values(), images[:1]],
        {},
        names,
        [party.secret] * len(names),
        lambda outputs: [f"result {number}" for number in range(len(outputs))],
    )
    for name, array in weights.items():
        party.share(name, array, _VENDOR)
    setup = time.perf_counter() - began
    runs = []
    for image in images:
        party.link.barrier()
        party.shared_bytes = 0
        cpu, start = time.process_time(), time.perf_counter()
        party.share(program["input"], image[np.newaxis], _CLINIC)
        party.runtime.run(executable)
        logits = party.reveal("result 0", _CLINIC)
        runs.append(
            {
                "online_seconds": time.perf_counter() - start,
                "cpu_seconds": time.process_time() - cpu,
                "shared_bytes": party.shared_bytes,
                "logits": [] if logits is None else logits.reshape(-1).tolist(),
            }
        )
    party.link.barrier()
    report = {"version": party.spu.__version__, "setup_seconds": setup, "runs": runs}
    (folder / f"{rank}.json").write_text(json.dumps(report))


def evaluate(program: dict[str, Any], values: dict[str, Any]) -> Any:
    """The network in JAX: ``values`` are its weights and input by name."""
    for node in program["nodes"]:
        operands = [values[name] for name in node["inputs"]]
        values[node["output"]] = _apply(node["op"], operands, node["attributes"])
    return values[program["output"]]


def _apply(op: str, x: list[Any], attributes: dict[str, Any]) -> Any:
    jnp: Any = importlib.import_module("jax.numpy")
    if op == "Conv":
        return _convolution(x, attributes)
    if op in ("MaxPool", "AveragePool"):
        return _pool(op, x[0], attributes)
    if op == "Relu":
        return jnp.maximum(x[0], 0.0)
    if op == "Clip":
        return jnp.clip(x[0], attributes["low"], attributes["high"])
    if op == "Add":
        return x[0] + x[1]
    if op == "Concat":
        return jnp.concatenate(x, attributes["axis"])
    if op == "Pad":
        return jnp.pad(x[0], attributes["pads"])
    if op == "Scale":
        return x[0] * x[1] + x[2]
    if op == "GlobalAveragePool":
        return jnp.mean(x[0], (2, 3), keepdims=True)
    if op == "Flatten":
        return x[0].reshape(x[0].shape[0], -1)
    if op == "Product":
        return x[0] @ x[1] + x[2]
    raise SystemExit(f"no operator {op}")


def _convolution(x: list[Any], attributes: dict[str, Any]) -> Any:
    lax: Any = importlib.import_module("jax.lax")
    result = lax.conv_general_dilated(
        x[0],
        x[1],
        attributes["strides"],
        attributes["pads"],
        feature_group_count=attributes["group"],
    )
    return result + x[2].reshape(1, -1, 1, 1) if len(x) > 2 else result


def _pool(op: str, x: Any, attributes: dict[str, Any]) -> Any:
    lax: Any = importlib.import_module("jax.lax")
    kernel = (1, 1, *attributes["kernel_shape"])
    strides = (1, 1, *attributes["strides"])
    pads = ((0, 0), (0, 0), *map(tuple, attributes["pads"]))
    if op == "MaxPool":
        return lax.reduce_window(x, -np.inf, lax.max, kernel, strides, pads)
    return lax.reduce_window(x, 0.0, lax.add, kernel, strides, pads) / np.prod(kernel)


def main() -> None:
    """The command, and each of the three processes that it starts."""
    parser = argparse.ArgumentParser(description="Run a model under SPU in three processes.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--addresses", default="", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.rank is None:
        print(json.dumps(start(given.folder, given.threads)))
    else:
        take_part(given.rank, given.folder, given.addresses.split(","), given.threads)


if __name__ == "__main__":
    main()
