"""No result is lost: submissions that are broken off, batches that go on where they stopped."""

from __future__ import annotations

import json
import shutil
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data_owner import Client
from data_owner.images import read_image
from data_owner.preprocess import preprocess
from data_owner.sessions import Sessions
from data_owner.submission import Wish
from radiopaque.errors import (
    MessageOrderError,
    PeerUnavailableError,
    SessionStateError,
    StoreError,
    TransportError,
)
from radiopaque.transport.grpc_client import GrpcChannel
from radiopaque.wire.frames import Frame, Kind
from tests.e2e.networks import lungs
from tests.e2e.parties import Clinic, Deployment, process, radiopaque
from tests.faults.inside import Inside, rewriting

NETWORK = "lungs-1.10"
HURRY = "[retry]\nattempts = {attempts}\nfirst_seconds = 0.05\nlongest_seconds = {longest}\n"


def hurried(clinic: Clinic, attempts: int = 4, longest: float = 2.0) -> Clinic:
    text = clinic.config.read_text()
    clinic.config.write_text(text + HURRY.format(attempts=attempts, longest=longest))
    return clinic


def pictures_in(folder: Path, count: int, seed: int = 1) -> list[Path]:
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(seed)
    paths = [folder / f"chest-{number}.png" for number in range(count)]
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (24, 24), np.uint8)).save(path)
    return paths


def assert_right(deployment: Deployment, path: Path, logits: Iterable[float]) -> None:
    network = deployment.networks[NETWORK]
    spec = network.plan.preprocessing
    assert spec is not None
    value, bound = network.plaintext(preprocess(read_image(path), spec)[np.newaxis])
    assert (np.abs(np.array(list(logits)) - value[0]) <= bound[0]).all()


def submit(clinic: Clinic, *arguments: object) -> tuple[int, dict[str, Any]]:
    done = radiopaque("data-owner", "submit", *arguments, "--config", clinic.config, "--json")
    return done.returncode, json.loads(done.stdout)


def test_a_folder_is_done_once(serving: Deployment, clinic: Clinic, tmp_path: Path) -> None:
    folder, output = tmp_path / "images", tmp_path / "reports"
    paths = pictures_in(folder, 3)
    (folder / "chest-1b.png").write_text("no picture")
    (folder / ".hidden").write_text("left out")
    code, first = submit(clinic, folder, "--output", output)
    assert code == 4
    assert [result["image"] for result in first["results"]] == [path.name for path in paths]
    for path, result in zip(paths, first["results"], strict=True):
        assert_right(serving, path, result["logits"])
    (failure,) = first["failures"]
    assert failure["image"] == str(folder / "chest-1b.png")
    assert failure["error"] == "NotAnImageError"
    assert (output / "journal.jsonl").stat().st_mode & 0o777 == 0o600

    # all of it again: the same results, no session; a report that is lost is written again
    served = clinic.sessions()
    reports = {path: path.read_bytes() for path in output.iterdir()}
    for suffix in (".json", ".html"):
        (output / "chest-2").with_suffix(suffix).unlink()
    (folder / "chest-1b.png").unlink()
    code, again = submit(clinic, folder, "--output", output)
    assert (code, again["results"]) == (0, first["results"])
    assert clinic.sessions() == served
    assert {path: path.read_bytes() for path in output.iterdir()} == reports

    # a new picture, one with other bytes, and all that were asked for again
    sessions = [result["session_id"] for result in first["results"]]
    paths[1].write_bytes(pictures_in(tmp_path / "other", 1, seed=3)[0].read_bytes())
    pictures_in(folder / "more", 1, seed=2)
    code, second = submit(clinic, folder, "--output", output)
    known = [result["session_id"] in sessions for result in second["results"]]
    assert (code, known) == (0, [True, False, True, False])
    code, third = submit(clinic, folder, "--output", output, "--again")
    seen = sessions + [result["session_id"] for result in second["results"]]
    assert not {result["session_id"] for result in third["results"]} & set(seen)


def test_another_model_is_asked_anew(serving: Deployment, clinic: Clinic, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    (path,) = pictures_in(folder, 1)
    older = serving.clinic("asks-two-models", version="1.9")
    code, answer = submit(older, folder)
    assert (code, answer["results"][0]["version"]) == (0, "1.9")
    # nor does a session of the other one serve
    assert older.command("prepare").returncode == 0
    text = older.config.read_text()
    older.config.write_text(text.replace('version = "1.9"', 'version = "1.10"'))
    code, answer = submit(older, folder)
    assert (code, answer["results"][0]["version"]) == (0, "1.10")
    assert_right(serving, path, answer["results"][0]["logits"])


DYING = """
import os, signal, sys
from radiopaque.cli.main import main
from radiopaque.transport.grpc_client import GrpcChannel
from radiopaque.wire.frames import Kind

config, folder, output, most = sys.argv[1:]
send, images = GrpcChannel.send, []

def sending(channel, frame):
    if frame.kind is Kind.IMAGE:
        images.append(frame.session)
        if len(images) > int(most):
            os.kill(os.getpid(), signal.SIGKILL)
    send(channel, frame)

GrpcChannel.send = sending
main(["data-owner", "submit", folder, "--output", output, "--config", config])
"""


def test_a_killed_batch_goes_on_where_it_stopped(
    serving: Deployment, clinic: Clinic, tmp_path: Path
) -> None:
    folder, output = tmp_path / "images", tmp_path / "reports"
    paths = pictures_in(folder, 4)
    with process(DYING, clinic.config, folder, output, 2) as dying:
        assert dying.wait(60) == -signal.SIGKILL
    lines = (output / "journal.jsonl").read_text().splitlines()
    kept = [json.loads(line)["session"] for line in lines]
    assert len(kept) == 2
    code, answer = submit(clinic, folder, "--output", output)
    assert code == 0
    assert [result["session_id"] for result in answer["results"]][:2] == kept
    for path, result in zip(paths, answer["results"], strict=True):
        assert_right(serving, path, result["logits"])
    assert len(list(output.glob("*.html"))) == 4


def at_first(monkeypatch: pytest.MonkeyPatch, kind: Kind, act: Callable[[], None]) -> list[bytes]:
    """``act`` as the first frame of a kind leaves. Returns the sessions of all images sent."""
    send = GrpcChannel.send
    acted: list[bool] = []
    sent: list[bytes] = []

    def sending(channel: GrpcChannel, frame: Frame) -> None:
        if frame.kind is Kind.IMAGE:
            sent.append(frame.session)
        if frame.kind is kind and not acted:
            acted.append(True)
            act()
        send(channel, frame)

    monkeypatch.setattr(GrpcChannel, "send", sending)
    return sent


@pytest.mark.parametrize("kind", [Kind.START, Kind.IMAGE, Kind.RERANDOMISED])
def test_a_vendor_that_dies_and_comes_back(
    serving: Deployment,
    clinic: Clinic,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: Kind,
) -> None:
    paths = pictures_in(tmp_path / "images", 2)
    back = threading.Thread(target=serving.owner.restart)

    def die() -> None:
        serving.owner.kill()
        back.start()

    told: list[str] = []
    sent = at_first(monkeypatch, kind, die)
    hurried(clinic, attempts=12)
    with Client.from_config(clinic.config) as client:
        reports = client.infer_many(paths, told.append)
    back.join()
    for path, report in zip(paths, reports, strict=True):
        assert_right(serving, path, report.logits)
    # an image that had left is masked anew
    assert len(sent) == len(set(sent)) == (2 if kind is Kind.START else 3)
    assert {report.session_id for report in reports} <= {session.hex() for session in sent}
    assert any("trying again on fresh material" in line for line in told)


def test_a_vendor_that_is_silent_for_longer_than_the_deadline(
    serving: Deployment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (path,) = pictures_in(tmp_path / "images", 1)
    clinic = hurried(serving.clinic("in-a-hurry", deadline_seconds=2.0), attempts=12)

    def fall_silent() -> None:
        serving.owner.pause()
        threading.Timer(2.5, serving.owner.resume).start()

    with Client.from_config(clinic.config) as client:
        client.model()
        sent = at_first(monkeypatch, Kind.IMAGE, fall_silent)
        report = client.infer(path)
    assert_right(serving, path, report.logits)
    assert len(sent) == len(set(sent)) == 2
    assert report.session_id == sent[1].hex()


def test_a_vendor_that_stays_away(
    serving: Deployment, clinic: Clinic, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The results until then are there, and the error; the attempts are bounded."""
    paths = pictures_in(tmp_path / "images", 3)
    hurried(clinic, attempts=3, longest=0.1)
    waits: list[float] = []
    monkeypatch.setattr(Sessions, "pause", lambda _, wait: waits.append(wait))
    with Client.from_config(clinic.config) as client:
        client.prepare(3)
        outcomes = client.submit(paths[:1], Wish())
        first: Any = next(outcomes)
        assert_right(serving, paths[0], first.logits)
        serving.owner.kill()
        with pytest.raises(TransportError):
            client.infer_many(paths[1:])
        assert len(waits) == 2
        assert 0.025 <= waits[0] <= 0.05 <= waits[1] <= 0.1
    done = clinic.command("submit", paths[0], "--json")
    assert (done.returncode, json.loads(done.stdout)["error"]) == (7, "PeerUnavailableError")
    assert "submission broken off" in done.stderr


KILLING = """
import json, sys
from radiopaque.cli.main import main
from radiopaque.transport.grpc_client import GrpcChannel
from radiopaque.wire.frames import Kind

config, pid, *images = sys.argv[1:]
import os, signal
send, sent = GrpcChannel.send, []

def sending(channel, frame):
    if frame.kind is Kind.IMAGE:
        sent.append(frame.session)
        if len(sent) == 2:
            os.kill(int(pid), signal.SIGKILL)
    send(channel, frame)

GrpcChannel.send = sending
main(["data-owner", "submit", *images, "--config", config, "--json"])
"""


def test_partial_results_are_given(serving: Deployment, clinic: Clinic, tmp_path: Path) -> None:
    paths = pictures_in(tmp_path / "images", 3)
    hurried(clinic, attempts=2, longest=0.1)
    owner = serving.owner._started().pid
    with process(KILLING, clinic.config, owner, *paths) as submitting:
        printed, complaint = submitting.communicate(timeout=60)
    assert submitting.returncode == 7
    answer = json.loads(printed)
    assert [result["image"] for result in answer["results"]] == [paths[0].name]
    assert_right(serving, paths[0], answer["results"][0]["logits"])
    assert answer["error"] in ("ConnectionLostError", "PeerUnavailableError")
    assert answer["error"] in complaint


@pytest.fixture
def inside(tmp_path: Path) -> Iterator[Inside]:
    with Inside(tmp_path, lungs()) as inside:
        yield inside


def test_what_another_attempt_cannot_cure_is_not_tried_again(
    inside: Inside, tmp_path: Path
) -> None:
    (path,) = pictures_in(tmp_path / "images", 1)
    asked: list[Any] = []
    inside.lies["Infer"] = rewriting(
        lambda frame: [frame, frame] if frame.kind is Kind.OPENING else [frame], asked
    )
    with Client.from_config(inside.clinic()) as client, pytest.raises(MessageOrderError):
        client.infer(path)
    assert len(asked) == 1


def test_sessions_that_the_vendor_has_lost_are_replaced(
    serving: Deployment, clinic: Clinic, tmp_path: Path
) -> None:
    """Whoever holds a tensor is told; for a file, fresh material is made."""
    (path,) = pictures_in(tmp_path / "images", 1)
    hurried(clinic)
    with Client.from_config(clinic.config) as client:
        client.prepare(2)
        serving.owner.kill()
        shutil.rmtree(serving.owner.store)
        serving.owner.restart()
        report = client.infer(path)
        assert_right(serving, path, report.logits)
        client.prepare(1)
    serving.owner.kill()
    shutil.rmtree(serving.owner.store)
    serving.owner.restart()
    with (
        Client.from_config(clinic.config) as client,
        pytest.raises(SessionStateError, match="refused every prepared session"),
    ):
        client.infer_tensor(serving.networks[NETWORK].images())


def test_two_submissions_with_one_journal(clinic: Clinic, tmp_path: Path) -> None:
    with (
        Client.from_config(clinic.config) as client,
        client.journal(tmp_path),
        pytest.raises(StoreError, match="another process submits with the journal"),
    ):
        client.journal(tmp_path)


def test_nobody_there(serving: Deployment, clinic: Clinic, tmp_path: Path) -> None:
    hurried(clinic, attempts=1)
    (path,) = pictures_in(tmp_path / "images", 1)
    serving.provider.kill()
    with (
        Client.from_config(clinic.config) as client,
        pytest.raises(PeerUnavailableError, match="cannot reach the crypto provider"),
    ):
        client.infer(path)
