"""Three parties that are killed at random steps, over and over, and what must hold afterwards."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

from data_owner.images import read_image
from data_owner.preprocess import preprocess
from radiopaque.certificates import Role
from tests.e2e.networks import lungs
from tests.e2e.parties import Clinic, Deployment, Serving, ledger_on_disk

ROOT = Path(__file__).parents[2]
RUN = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from tests.faults.dying import main; main()"
LAST_STEP = {Role.CRYPTO_PROVIDER: 90, Role.MODEL_OWNER: 200, Role.DATA_OWNER: 190}
"""About the steps of two inferences with their preparation."""
INFERENCES = 2


class Dying(Serving):
    """A server that dies so many steps after it was told to."""

    record: Path

    def arm(self, fatal: int) -> None:
        Path(f"{self.record}.fatal").write_text(str(fatal))
        self._started().send_signal(signal.SIGUSR1)

    def _command(self) -> list[str]:
        words = super()._command()
        serve = words[words.index("radiopaque") + 1 :]
        return [sys.executable, "-c", RUN, str(self.record), "0", *serve]


class Soak:
    """Kills among one deployment's parties, drawn from a seed."""

    def __init__(self, folder: Path, seed: int) -> None:
        network = lungs(seed=10)
        self.deployment = Deployment(folder, {"lungs-1.10": network})
        self.network = network
        self.random = random.Random(seed)
        self.kills: Counter[Role] = Counter()
        self.folder = folder
        self.answers = folder / "answers"
        self.answers.mkdir()
        self.inferences = 0
        for party in self.servers:
            party.__class__ = Dying
            party.record = folder / f"{party.role}.sent"
        self.clinic: Clinic = self.deployment.clinic("soaked", deadline_seconds=10.0)
        retry = "[retry]\nattempts = 3\nfirst_seconds = 0.05\n"
        self.clinic.config.write_text(self.clinic.config.read_text() + retry)

    @property
    def servers(self) -> tuple[Dying, Dying]:
        return self.deployment.provider, self.deployment.owner  # type: ignore[return-value]

    def run(self, kills: int) -> None:
        """Until so many parties were killed, a random one at a random step at a time."""
        armed = {party.role: party for party in self.servers}
        try:
            while sum(self.kills.values()) < kills:
                self._start_servers()
                role = self.random.choice(list(LAST_STEP))
                fatal = self.random.randint(1, LAST_STEP[role])
                if role in armed:
                    armed[role].arm(fatal)
                self._submit(fatal if role not in armed else 0, certain=False)
                self._count_dead()
            self._start_servers()
            for party in self.servers:
                party.arm(0)
            self._submit(0, certain=True)
            self.check()
        finally:
            self.deployment.__exit__()

    def check(self) -> None:
        """The service answers, all answers are right, and no mask was used twice."""
        answered = {int(path.stem): np.load(path) for path in self.answers.glob("*[0-9].npy")}
        assert set(answered) >= set(range(self.inferences - INFERENCES, self.inferences))
        for number, logits in answered.items():
            value, bound = self._plaintext(number)
            assert (np.abs(logits - value) <= bound).all(), number
        sent = Counter(self.sent())
        twice = [line for line, times in sent.items() if times > 1 and " START " not in line]
        assert twice == []
        started = {line.split()[0] for line in sent if " IMAGE " in line}
        assert len(started) >= len(answered)
        stores = [self.clinic.store, *(party.store for party in self.servers)]
        for ledger in map(ledger_on_disk, stores):
            assert {ledger[bytes.fromhex(one)] for one in started} == {("BURNT", False)}

    def sent(self) -> list[str]:
        """All frames that any party was about to send, ever."""
        return [
            line
            for path in sorted(self.folder.glob("*.sent"))
            for line in path.read_text().splitlines()
        ]

    def _image(self, number: int) -> Path:
        path = self.folder / f"{number}.png"
        pixels = np.random.default_rng(number).integers(0, 256, (20, 20), np.uint8)
        Image.fromarray(pixels).save(path)
        return path

    def _plaintext(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        spec = self.network.plan.preprocessing
        assert spec is not None
        picture = preprocess(read_image(self.folder / f"{number}.png"), spec)
        value, bound = self.network.plaintext(picture[np.newaxis])
        return value[0], bound[0]

    def _start_servers(self) -> None:
        down = [party for party in self.servers if not party.running]
        for party in down:
            party.start()
        for party in down:
            party.wait()

    def _submit(self, fatal: int, certain: bool) -> None:
        record = self.folder / f"{Role.DATA_OWNER}.sent"
        images = [self._image(self.inferences + number) for number in range(INFERENCES)]
        words = ["clinic", self.clinic.config, self.answers, *images]
        self.inferences += INFERENCES
        done = subprocess.run(
            [sys.executable, "-c", RUN, *map(str, (record, fatal, *words))],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        if done.returncode == -9:
            self.kills[Role.DATA_OWNER] += 1
        elif certain and done.returncode:
            raise AssertionError(done.stderr)
        assert "Traceback" not in done.stderr, done.stderr

    def _count_dead(self) -> None:
        for party in self.servers:
            if not party.running:
                process = party._started()
                assert process.wait() == -9, party.log.read_text()[-2000:]
                party._reap(process)
                self.kills[party.role] += 1
