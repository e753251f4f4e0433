"""The command line of the clinic against real servers: documented keys, files and exit codes."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import numpy as np
import pytest
from pydicom.uid import MPEG2MPML

from data_owner import Client
from data_owner.images import read_image
from data_owner.preprocess import preprocess
from data_owner.results import probabilities
from radiopaque.certificates import Role
from radiopaque.engine.weights_file import write_compiled
from tests.conftest import Command
from tests.e2e.conftest import PATIENT, write_dicom
from tests.e2e.networks import lungs
from tests.e2e.parties import Clinic, Deployment, contents, process, radiopaque

RESULT_KEYS = {
    "format",
    "not_for_diagnosis",
    "image",
    "model",
    "version",
    "statement",
    "task",
    "classes",
    "probabilities",
    "logits",
    "warnings",
    "online_seconds",
    "prepare_seconds",
    "offline_seconds",
    "round_trips",
    "online_bytes",
    "offline_bytes",
    "plan_digest",
    "session_id",
    "created",
    "engine",
}
ONLINE_LINKS = {"data_owner_to_model_owner", "model_owner_to_data_owner"}
LINKS = ONLINE_LINKS | {
    "crypto_provider_to_model_owner",
    "model_owner_to_crypto_provider",
    "crypto_provider_to_data_owner",
    "data_owner_to_crypto_provider",
}


@pytest.fixture(scope="module")
def clinic(processes: Deployment) -> Clinic:
    return processes.clinic("command-line")


def test_from_preparing_to_reports(
    deployment: Deployment, clinic: Clinic, pictures: dict[str, str], tmp_path: Path
) -> None:
    network = deployment.networks["lungs-1.10"]
    digest = deployment.compiled["lungs-1.10"].key.id.plan_digest.hex()

    models = clinic.json("models")
    assert set(models) == {"models"}
    assert {"name": "lungs", "version": "1.10", "plan_digest": digest} in models["models"]
    assert len(models["models"]) == 5

    stocked = clinic.json("prepare", "--count", 2)
    assert set(stocked) == {"prepared", "stock", "setup_bytes"}
    assert stocked["stock"] == 2
    assert set(stocked["setup_bytes"]) == ONLINE_LINKS
    for item in stocked["prepared"]:
        assert set(item) == {"session", "seconds", "bytes", "opened"}
        assert set(item["bytes"]) == LINKS
        assert item["seconds"] > 0
        between = ("crypto_provider_to_data_owner", "data_owner_to_crypto_provider")
        assert sum(item["bytes"][link] for link in between) <= 1000

    output = tmp_path / "reports"
    paths = [pictures[kind] for kind in ("dcm", "png", "jpeg")]
    answer = clinic.json("submit", *paths, "--output", output)
    assert set(answer) == {"results", "setup_bytes"}
    assert [result["image"] for result in answer["results"]] == [Path(path).name for path in paths]
    sessions = [item["session"] for item in stocked["prepared"]]
    assert [result["session_id"] for result in answer["results"]][:2] == sessions
    for path, result in zip(paths, answer["results"], strict=True):
        assert set(result) == RESULT_KEYS
        assert (result["model"], result["version"]) == ("lungs", "1.10")
        assert (result["task"], result["plan_digest"]) == ("multiclass", digest)
        assert result["classes"] == ["normal", "bacterial", "viral"]
        assert set(result["online_bytes"]) == ONLINE_LINKS
        spec = network.plan.preprocessing
        assert spec is not None
        value, bound = network.plaintext(preprocess(read_image(Path(path)), spec)[np.newaxis])
        assert (np.abs(np.array(result["logits"]) - value[0]) <= bound[0]).all()
        expected = probabilities(np.array(result["logits"]), "multiclass")
        assert np.allclose(result["probabilities"], expected, atol=1e-12)
    prepared_before, made_on_the_way = answer["results"][:2], answer["results"][2]
    assert all(result["offline_bytes"] == {} for result in prepared_before)
    assert set(made_on_the_way["offline_bytes"]) == LINKS

    by_kind = dict(zip(("dcm", "png", "jpeg"), answer["results"], strict=True))
    assert by_kind["dcm"]["warnings"] == []
    assert len(by_kind["png"]["warnings"]) == len(by_kind["jpeg"]["warnings"]) == 1

    assert len(list(output.glob("*.html"))) == len(list(output.glob("*.json"))) == 3
    for report, data in contents([output]):
        assert stat.S_IMODE(report.stat().st_mode) == 0o600
        assert PATIENT.encode() not in data
        if report.suffix == ".json":
            assert json.loads(data) in answer["results"]
    # no patient field left the clinic, and nothing of the sessions is left
    assert PATIENT not in deployment.logs()
    deployment.assert_used_up(*(result["session_id"] for result in answer["results"]))


def test_output_for_people(
    deployment: Deployment, clinic: Clinic, pictures: dict[str, str], tmp_path: Path
) -> None:
    done = clinic.command("submit", pictures["jpeg"], "--output", tmp_path / "report")
    assert done.returncode == 0, done.stderr
    for expected in ("chest.jpeg", "lungs 1.10", "normal", "bacterial", "viral", "warning:"):
        assert expected in done.stdout
    assert "Not for diagnosis." in done.stdout
    assert f"report: {tmp_path / 'report' / 'chest.html'}" in done.stdout


BROKEN = (
    *("missing", "text", "not a DICOM", "cut"),
    *("folder", "no pixels", "two frames", "unknown syntax"),
)


def broken_images(folder: Path) -> dict[str, tuple[Path, str]]:
    """By case: a file that cannot be submitted, and the error that says so."""
    folder.mkdir()
    pixels = np.zeros((32, 32), np.uint8)
    whole = folder / "whole.dcm"
    write_dicom(whole, pixels)
    cases = {
        "missing": (folder / "missing.dcm", "ImageError"),
        "text": (folder / "notes.txt", "NotAnImageError"),
        "not a DICOM": (folder / "renamed.dcm", "NotDicomError"),
        "cut": (folder / "cut.dcm", "TruncatedPixelDataError"),
        "folder": (folder / "empty", "NotAnImageError"),
        "no pixels": (folder / "no-pixels.dcm", "NoPixelDataError"),
        "two frames": (folder / "two-frames.dcm", "MultiFrameError"),
        "unknown syntax": (folder / "video.dcm", "UnsupportedTransferSyntaxError"),
    }
    cases["folder"][0].mkdir()
    write_dicom(cases["no pixels"][0], pixels, PixelData=None)
    write_dicom(cases["two frames"][0], pixels, NumberOfFrames=2)
    write_dicom(cases["unknown syntax"][0], pixels, syntax=MPEG2MPML)
    cases["text"][0].write_text("the heart is on the left side")
    cases["not a DICOM"][0].write_bytes(b"\0" * 400)
    cases["cut"][0].write_bytes(whole.read_bytes()[:-100])
    return cases


@pytest.fixture(scope="module")
def bad_images(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, str]]:
    return broken_images(tmp_path_factory.mktemp("images") / "broken")


@pytest.mark.parametrize("case", BROKEN)
def test_an_image_that_cannot_be_used_costs_no_session(
    deployment: Deployment,
    clinic: Clinic,
    bad_images: dict[str, tuple[Path, str]],
    pictures: dict[str, str],
    command: Command,
    case: str,
) -> None:
    path, expected = bad_images[case]
    with Client.from_config(clinic.config) as client:
        client.prepare(max(0, 2 - client.stock()))
    before = clinic.sessions()
    code, error = command("data-owner", "submit", pictures["png"], path, "--config", clinic.config)
    assert code == 4
    assert error["error"] == expected
    assert str(path.name) in error["message"]
    assert clinic.sessions() == before


def test_reports_that_cannot_be_written_cost_no_session(
    clinic: Clinic, command: Command, pictures: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    before = clinic.sessions()
    code, error = command(
        "data-owner",
        "submit",
        pictures["png"],
        *("--output", tmp_path / "file" / "reports", "--config", clinic.config),
    )
    assert (code, error["error"]) == (8, "StoreError")
    assert "choose another" in error["message"]
    assert clinic.sessions() == before


def test_a_model_that_takes_no_images(
    deployment: Deployment, command: Command, pictures: dict[str, str]
) -> None:
    """The vendor did not say how an image becomes this model's input."""
    clinic = deployment.clinic("in-doubt", "wide")
    code, error = command("data-owner", "submit", pictures["png"], "--config", clinic.config)
    assert (code, error["error"]) == (3, "PlanError")
    assert "states no preprocessing" in error["message"]
    assert clinic.sessions() == {}


def test_usage_errors(clinic: Clinic, command: Command, tmp_path: Path) -> None:
    assert radiopaque("data-owner", "submit").returncode == 2
    code, error = command("data-owner", "models", "--config", tmp_path / "none.toml")
    assert (code, error["error"]) == (2, "ConfigError")
    assert "radiopaque config example data-owner" in error["message"]
    broken = tmp_path / "broken.toml"
    broken.write_text(clinic.config.read_text().replace("deadline_seconds", "deadline_secnds"))
    code, error = command("data-owner", "models", "--config", broken)
    assert (code, error["error"]) == (2, "ConfigError")
    assert "did you mean deadline_seconds?" in error["message"]


def test_unknown_model(deployment: Deployment, command: Command) -> None:
    clinic = deployment.clinic("hopeful", "hearts")
    code, error = command("data-owner", "prepare", "--config", clinic.config)
    assert (code, error["error"]) == (5, "UnknownModelError")
    assert "'hearts'" in error["message"]
    assert "lungs 1.10" in error["message"]


def test_second_process_on_one_store(
    deployment: Deployment, clinic: Clinic, command: Command
) -> None:
    script = (
        "import sys, time\n"
        "from data_owner import Client\n"
        "with Client.from_config(sys.argv[1]):\n"
        "    print('open'); sys.stdin.read()"
    )
    with process(script, clinic.config) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "open\n"
        code, error = command("data-owner", "models", "--config", clinic.config)
        assert (code, error["error"]) == (8, "StoreError")
        assert f"in use by process {holder.pid}" in error["message"]
    assert command("data-owner", "models", "--config", clinic.config)[0] == 0


@pytest.mark.parametrize("role", [Role.CRYPTO_PROVIDER, Role.MODEL_OWNER])
def test_servers_refuse_unknown_keys(
    deployment: Deployment, command: Command, tmp_path: Path, role: Role
) -> None:
    party = deployment.provider if role is Role.CRYPTO_PROVIDER else deployment.owner
    config = tmp_path / "config.toml"
    config.write_text('lisen = "0.0.0.0:1"\n' + party.config.read_text())
    code, error = command(role, "serve", "--config", config)
    assert (code, error["error"]) == (2, "ConfigError")
    assert "lisen is not a known key; did you mean listen?" in error["message"]


def test_servers_on_a_store_in_use_and_on_one_of_another_role(
    deployment: Deployment, command: Command, tmp_path: Path
) -> None:
    code, error = command("model-owner", "serve", "--config", deployment.owner.config)
    assert (code, error["error"]) == (8, "StoreError")
    assert "in use by process" in error["message"]
    deployment.provider.stop()
    config = tmp_path / "config.toml"
    text = deployment.owner.config.read_text()
    config.write_text(text.replace(str(deployment.owner.store), str(deployment.provider.store)))
    code, error = command("model-owner", "serve", "--config", config)
    assert (code, error["error"]) == (8, "StoreError")
    assert "is that of a crypto provider, not of a model owner" in error["message"]


@pytest.mark.parametrize("damage", ["weights", "plan", "other plan", "missing"])
def test_a_server_refuses_a_damaged_compiled_model(
    deployment: Deployment, command: Command, tmp_path: Path, damage: str
) -> None:
    compiled = tmp_path / "compiled"
    network = lungs()
    write_compiled(compiled, network.plan, network.weights)
    weights, plan = compiled / "weights.bin", compiled / "plan.pb"
    if damage == "weights":
        data = bytearray(weights.read_bytes())
        data[100] ^= 1
        weights.write_bytes(data)
    elif damage == "plan":
        plan.write_bytes(plan.read_bytes()[:-1])
    elif damage == "other plan":
        write_compiled(tmp_path / "other", network.offered_as("2").plan, network.weights)
        plan.write_bytes((tmp_path / "other" / "plan.pb").read_bytes())
    else:
        weights.unlink()
    config = tmp_path / "config.toml"
    text = deployment.owner.config.read_text().partition("[[models]]")[0]
    text = text.replace(str(deployment.owner.store), str(tmp_path / "store"))
    config.write_text(f'{text}[[models]]\npath = "{compiled}"\n')
    code, error = command("model-owner", "serve", "--config", config)
    assert code == 3
    expected = {
        "weights": ("WeightsFileError", "is damaged; compile the model again"),
        "plan": ("PlanError", str(plan)),
        "other plan": ("PlanDigestError", "belong to different models"),
        "missing": ("WeightsFileError", "run radiopaque compile"),
    }
    assert error["error"] == expected[damage][0]
    assert expected[damage][1] in error["message"]
