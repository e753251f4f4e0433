"""CrypTen as it comes: its own two processes, its own communicator, its default provider.

    python benchmarks/peers/crypten_stock.py MODEL.onnx [--images FILE.npy] [--threads N]

prints one JSON object; :func:`run` returns it. The default provider ("TFP") lets rank 0 draw every
Beaver triple: it knows all masks, and the time of dealing lies inside the online time. Label its
figures "dealing in the clear".

``bytes`` is what both processes put on the wire, by CrypTen's own counters (sum of both parties,
halved, because each counts what it sends and what it receives); ``rounds`` are its counted
collectives. Both leave out the dealing, which sends nothing because rank 0 knows everything.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

ENGINE = "crypten-stock"
_PARTIES = 2


def run(
    model: Path,
    images: NDArray[np.float32] | None = None,
    *,
    threads: int = 1,
    front_end: str = "radiopaque",
    timeout_seconds: float = 3600.0,
) -> dict[str, Any]:
    """Run each of ``images`` [count, c, h, w] through the model as one inference of batch 1.

    Without images one deterministic pattern is used. ``front_end``: "radiopaque" (any model that
    `radiopaque compile --engine crypten` takes) or "crypten" (crypten.nn.from_onnx). Returns a
    dictionary that json can write; ``runs`` has one entry an image, the first of which is cold.
    Raises RuntimeError with the processes' messages where one fails.
    """
    with tempfile.TemporaryDirectory(prefix="crypten-stock-") as folder:
        at = Path(folder)
        if images is not None:
            np.save(at / "images.npy", np.asarray(images, np.float32))
        environment = {
            **os.environ,
            "WORLD_SIZE": str(_PARTIES),
            "RENDEZVOUS": f"file://{at / 'rendezvous'}",
            "DISTRIBUTED_BACKEND": "gloo",
            "OMP_NUM_THREADS": str(threads),
        }
        command = [sys.executable, str(Path(__file__).resolve()), str(model), "--folder", folder]
        command += ["--front-end", front_end]
        parties = [
            subprocess.Popen(
                command,
                env={**environment, "RANK": str(rank)},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in range(_PARTIES)
        ]
        try:
            errors = [party.communicate(timeout=timeout_seconds)[1] for party in parties]
        finally:
            for party in parties:
                party.kill()
                party.wait()
        if any(party.returncode for party in parties):
            raise RuntimeError("CrypTen's processes failed:\n" + "\n".join(errors)[-4000:])
        own = [json.loads((at / f"{rank}.json").read_text()) for rank in range(_PARTIES)]
    return _joined(own, model, threads, front_end)


def _joined(own: list[dict[str, Any]], model: Path, threads: int, front_end: str) -> dict[str, Any]:
    runs = [
        {
            # at the party that has the image and learns the logits
            "online_seconds": both[1]["online_seconds"],
            # both compute the product of every triple, each while the other does
            "dealing_seconds": max(one["dealing_seconds"] for one in both),
            "bytes": sum(one["bytes"] for one in both) // 2,
            "rounds": both[0]["rounds"],
            "cpu_seconds": sum(one["cpu_seconds"] for one in both),
            "logits": both[1]["logits"],
        }
        for both in zip(*(one["runs"] for one in own), strict=True)
    ]
    return {
        "engine": ENGINE,
        "provider": "TFP: rank 0 deals in the clear",
        "model": model.stem,
        "front_end": front_end,
        "threads": threads,
        "input_shape": own[0]["input_shape"],
        "versions": own[0]["versions"],
        "setup_seconds": max(one["setup_seconds"] for one in own),
        "peak_rss_bytes": [one["peak_rss_bytes"] for one in own],
        "runs": runs,
    }


def _party(model: Path, folder: Path, front_end: str) -> None:
    """One of the two processes: rank 0 owns the model, rank 1 the images and the result."""
    from radiopaque.engine.crypten.worker.compatibility import crypten, torch

    started = time.perf_counter()
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    crypten.init()
    crypten.cfg.communicator.verbose = True
    rank = crypten.communicator.get().get_rank()
    dealing = _timed_provider()
    with crypten.no_grad():
        shape, infer = (_own_front_end if front_end == "crypten" else _front_end)(model, rank)
        images = _images(folder, shape)
        setup = time.perf_counter() - started
        runs = [_one(infer, image, rank, dealing) for image in images]
    report = {
        "input_shape": list(shape),
        "versions": {"crypten": crypten.__version__, "torch": torch.__version__},
        "setup_seconds": setup,
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "runs": runs,
    }
    (folder / f"{rank}.json").write_text(json.dumps(report))
    crypten.communicator.get().barrier()
    # gloo's threads outlive its objects: an orderly end would abort the process now and then
    os._exit(0)


def _front_end(model: Path, rank: int) -> tuple[tuple[int, ...], Any]:
    from radiopaque.engine.crypten.frontend import translate
    from radiopaque.engine.crypten.worker.compatibility import crypten, torch
    from radiopaque.engine.crypten.worker.interpreter import evaluate

    translated = translate(model)
    constants = {
        number: crypten.cryptensor(
            torch.from_numpy(array) if rank == 0 else torch.zeros(array.shape), src=0
        )
        for number, array in translated.constants.items()
    }
    program = translated.program
    return program.input_shape, lambda image: evaluate(program, image, constants)


def _own_front_end(model: Path, rank: int) -> tuple[tuple[int, ...], Any]:
    import onnx

    from radiopaque.engine.crypten.worker.compatibility import crypten

    graph = onnx.load(str(model)).graph
    shape = tuple(d.dim_value or 1 for d in graph.input[0].type.tensor_type.shape.dim)
    with model.open("rb") as file:
        network = crypten.nn.from_onnx(file)
    network.eval()
    return shape, network.encrypt(src=0)


def _images(folder: Path, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """The images to run, [count, *shape]."""
    given = folder / "images.npy"
    if given.exists():
        images: NDArray[np.float32] = np.load(given, allow_pickle=False).reshape(-1, *shape)
        return images
    size = int(np.prod(shape))
    made: NDArray[np.float32] = np.sin(np.arange(size, dtype=np.float32) * 0.01)
    return made.reshape(1, *shape)


def _one(infer: Any, image: NDArray[np.float32], rank: int, dealing: list[float]) -> dict[str, Any]:
    """From the image in the clear at rank 1 to the logits in the clear at rank 1."""
    from radiopaque.engine.crypten.worker.compatibility import crypten, torch

    communicator = crypten.communicator.get()
    communicator.barrier()
    communicator.reset_communication_stats()
    dealing.clear()
    cpu = time.process_time()
    began = time.perf_counter()
    plain = torch.from_numpy(image) if rank == 1 else torch.zeros(image.shape)
    output = infer(crypten.cryptensor(plain, src=1)).get_plain_text(dst=1)
    seconds = time.perf_counter() - began
    counted = communicator.get_communication_stats()
    return {
        "online_seconds": seconds,
        "cpu_seconds": time.process_time() - cpu,
        "dealing_seconds": sum(dealing),
        "bytes": int(counted["bytes"]),
        "rounds": counted["rounds"],
        "logits": output.reshape(-1).tolist() if rank == 1 else [],
    }


def _timed_provider() -> list[float]:
    """Seconds of every call of the default provider, appended as they happen."""
    from radiopaque.engine.crypten.worker.compatibility import crypten

    seconds: list[float] = []
    provider = type(crypten.mpc.get_default_provider())
    for name in ("generate_additive_triple", "square", "generate_binary_triple", "B2A_rng"):
        original = getattr(provider, name)

        def timed(*args: Any, _original: Any = original, **kwargs: Any) -> Any:
            began = time.perf_counter()
            try:
                return _original(*args, **kwargs)
            finally:
                seconds.append(time.perf_counter() - began)

        setattr(provider, name, timed)
    return seconds


def main() -> None:
    """The command, and each of the two processes that it starts."""
    parser = argparse.ArgumentParser(description="Run CrypTen's own two processes on a model.")
    parser.add_argument("model", type=Path)
    parser.add_argument("--images", type=Path, help=".npy file, float32 [count, c, h, w]")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--front-end", choices=("radiopaque", "crypten"), default="radiopaque")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.folder is not None:
        _party(given.model, given.folder, given.front_end)
        return
    images = np.load(given.images, allow_pickle=False) if given.images else None
    report = run(given.model, images, threads=given.threads, front_end=given.front_end)
    print(json.dumps(report))


if __name__ == "__main__":
    main()
