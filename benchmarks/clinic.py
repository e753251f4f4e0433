"""The data owner of a benchmark as a process of its own: one JSON command a line, one answer each.

    {"do": "fetch"}                      -> {"seconds", "bytes"}: plan and masked weights
    {"do": "prepare"}                    -> {"seconds", "bytes"}: one session's material
    {"do": "run", "count", "workers"}    -> {"seconds", "runs": [...]}
    {"do": "infer"}                      -> a run on the session that "prepare" has made
    {"do": "leave"}                      -> {}, after FOLDER/data-owner.spans is written

A run is an inference with the making of its material before it. Of a single worker it also says how
much processor time every party used for either.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.processes import cpu_seconds
from benchmarks.spans import save
from data_owner import Client
from radiopaque.certificates import Role
from radiopaque.cli.data_owner import setup_bytes
from radiopaque.errors import TransportError
from radiopaque.heap import keep_freed_memory
from radiopaque.telemetry import recorder

_ATTEMPTS = 5


@dataclass
class Clinic:
    """A client with its images, float32 [count, c, h, w], and the processes to account for."""

    client: Client
    images: NDArray[np.float32]
    processes: Mapping[str, int]

    def fetch(self) -> dict[str, Any]:
        """Fetch the model."""
        began = time.perf_counter()
        self.client.model()
        return {"seconds": time.perf_counter() - began, "bytes": setup_bytes(self.client)}

    def prepare(self) -> dict[str, Any]:
        """Make one session's material."""
        (prepared,) = self.client.prepare()
        return {"seconds": prepared.seconds, "bytes": prepared.bytes}

    def run(self, inferences: int, workers: int) -> dict[str, Any]:
        """So many inferences by so many threads, each with its preparation."""
        numbers = count()
        taking = threading.Lock()
        runs: list[dict[str, Any]] = []

        def work() -> None:
            while True:
                with taking:
                    number = next(numbers)
                if number >= inferences:
                    return
                runs.append(self._insist(number, alone=workers == 1))

        began = time.perf_counter()
        with ThreadPoolExecutor(workers) as pool:
            for done in [pool.submit(work) for _ in range(workers)]:
                done.result()
        return {"seconds": time.perf_counter() - began, "runs": runs}

    def infer(self) -> dict[str, Any]:
        """An inference with a session in stock."""
        return self._infer(0, dict, alone=True)

    def _insist(self, number: int, alone: bool) -> dict[str, Any]:
        """A run, anew where the connection breaks."""
        broken = 0
        while True:
            try:
                return {**self._infer(number, self.prepare, alone), "broken": broken}
            except TransportError:
                broken += 1
                if broken == _ATTEMPTS:
                    raise

    def _infer(
        self, number: int, prepare: Callable[[], dict[str, Any]], alone: bool
    ) -> dict[str, Any]:
        batch = self.client.model().offer.plan.batch
        chosen = np.arange(number * batch, (number + 1) * batch) % len(self.images)
        times = [time.perf_counter_ns()]
        cpu = [self._cpu(alone)]
        offline = prepare()
        times.append(time.perf_counter_ns())
        cpu.append(self._cpu(alone))
        answer = self.client.infer_tensor(self.images[chosen])
        times.append(time.perf_counter_ns())
        cpu.append(self._cpu(alone))
        return {
            "times": times,
            "cpu": cpu,
            "offline": offline,
            "load_seconds": answer.prepare_seconds,
            "online_seconds": answer.online_seconds,
            "round_trips": answer.round_trips,
            "online_bytes": answer.online_bytes,
            "images": chosen.tolist(),
            "outputs": answer.outputs.reshape(len(chosen), -1).tolist(),
        }

    def _cpu(self, alone: bool) -> dict[str, float]:
        if not alone:
            return {}
        return {name: cpu_seconds(process) for name, process in self.processes.items()}


def main() -> None:
    """Serve commands from standard input until told to leave, or until it ends."""
    parser = argparse.ArgumentParser(description="The data owner of a benchmark.")
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--processes", required=True, help="JSON: process numbers by party")
    parser.add_argument("--folder", type=Path, required=True, help="images.npy, and spans")
    given = parser.parse_args()
    keep_freed_memory()  # as `radiopaque data-owner` does
    images = np.load(given.folder / "images.npy", allow_pickle=False)
    spans = recorder.start()
    with Client.from_config(given.config) as client:
        processes = {**json.loads(given.processes), str(Role.DATA_OWNER): os.getpid()}
        clinic = Clinic(client, images, processes)
        for line in sys.stdin:
            command = json.loads(line)
            answer: dict[str, Any] = {}
            if command["do"] == "fetch":
                answer = clinic.fetch()
            elif command["do"] == "prepare":
                answer = clinic.prepare()
            elif command["do"] == "infer":
                answer = clinic.infer()
            elif command["do"] == "run":
                answer = clinic.run(command["count"], command["workers"])
            elif command["do"] == "leave":
                save(given.folder / "data-owner.spans", spans)
            print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
