"""The doctor on a configuration: a vendor's models and metrics, a clinic's model and vendor."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from model_owner.policy import Policy, Rules
from radiopaque.certificates import CertificateFiles, Identity, Role
from radiopaque.engine.weights_file import WEIGHTS_FILE, write_compiled
from radiopaque.operations.doctor.findings import Finding, Level
from radiopaque.operations.doctor.run import examine
from radiopaque.wire.v1 import services_pb2 as pb
from tests.e2e.networks import lungs
from tests.unit.transport.conftest import Host


@pytest.fixture
def compiled(tmp_path: Path) -> Path:
    network = lungs()
    write_compiled(tmp_path / "compiled", network.plan, network.weights)
    return tmp_path / "compiled"


@pytest.fixture
def config(compiled: Path, certificate_files: dict[Role, CertificateFiles], tmp_path: Path) -> Path:
    files = certificate_files[Role.MODEL_OWNER]
    path = tmp_path / "o.toml"
    path.write_text(
        f'listen = "127.0.0.1:7302"\nstore = "store"\n'
        f'[tls]\ncertificate = "{files.certificate}"\nkey = "{files.key}"\nca = "{files.ca}"\n'
        f'[crypto_provider]\naddress = "localhost:7301"\n'
        f'[[models]]\npath = "{compiled}"\n'
    )
    return path


def models(config: Path) -> Finding:
    _, one = examine(Role.MODEL_OWNER, config, ["models"])
    return one


def test_weights_that_others_can_read(config: Path, compiled: Path) -> None:
    assert models(config).level is Level.PASS
    (compiled / WEIGHTS_FILE).chmod(0o644)
    one = models(config)
    assert (one.level, one.remedy) == (Level.FAIL, f"run: chmod 600 {compiled / WEIGHTS_FILE}")


def test_weights_that_are_not_there(config: Path, compiled: Path) -> None:
    (compiled / WEIGHTS_FILE).unlink()
    one = models(config)
    assert (one.level, one.remedy) == (Level.FAIL, "run radiopaque compile")


@pytest.mark.parametrize(
    ("policy", "said"),
    [
        ("labels_only = true", "reveals scores, the policy allows labels alone"),
        ("output_bits = 8", "reveals 16 bits of each output, the policy allows 8"),
    ],
)
def test_a_model_that_reveals_more_than_the_policy_allows(
    config: Path, policy: str, said: str
) -> None:
    """What the start refuses."""
    text = config.read_text()
    config.write_text(f"{text}[policy]\noutput_bits = 16\n")
    assert models(config).level is Level.PASS
    config.write_text(f"{text}[policy]\n{policy}\n")
    one = models(config)
    assert (one.level, said in one.text) == (Level.FAIL, True)
    assert one.remedy == "compile it again, or change the policy in the configuration"


def test_metrics_that_nobody_serves(config: Path) -> None:
    config.write_text('metrics = "127.0.0.1:1"\n' + config.read_text())
    _, one = examine(Role.MODEL_OWNER, config, ["metrics"])
    assert one.level is Level.FAIL
    assert one.text == "no metrics of the model-owner at 127.0.0.1:1: Connection refused"


@pytest.fixture
def clinic(
    certificate_files: dict[Role, CertificateFiles],
    identities: dict[Role, Identity],
    tmp_path: Path,
) -> Iterator[tuple[Host, Path]]:
    """A vendor with two models, and the configuration of a clinic up to `model`."""
    files = certificate_files[Role.DATA_OWNER]
    host = Host(identities)
    offered = [pb.ModelEntry(name="lungs", version=version) for version in ("1.9", "1.10")]
    host.functions["ListModels"] = lambda *_: pb.ListModelsReply(models=offered)
    path = tmp_path / "d.toml"
    path.write_text(
        f'store = "store"\n[model_owner]\naddress = "{host.address}"\n'
        f'[crypto_provider]\naddress = "localhost:7301"\n'
        f'[tls]\ncertificate = "{files.certificate}"\nkey = "{files.key}"\nca = "{files.ca}"\n'
    )
    yield host, path
    host.close()


def offer(clinic: tuple[Host, Path], wanted: str) -> Finding:
    path = clinic[1].with_name("wanted.toml")
    path.write_text(f"{wanted}\n{clinic[1].read_text()}")
    _, one = examine(Role.DATA_OWNER, path, ["model"])
    return one


@pytest.mark.parametrize("version", ["", "version = '1.9'"])
def test_a_model_that_is_offered(clinic: tuple[Host, Path], version: str) -> None:
    one = offer(clinic, f"model = 'lungs'\n{version}")
    assert (one.level, one.text[:5]) == (Level.PASS, "lungs")


@pytest.mark.parametrize("wanted", ["model = 'lung'", "model = 'lungs'\nversion = '2'"])
def test_a_model_that_nobody_offers(clinic: tuple[Host, Path], wanted: str) -> None:
    one = offer(clinic, wanted)
    assert one.level is Level.FAIL
    assert "offers: lungs 1.9, lungs 1.10" in one.text
    assert one.remedy.startswith("correct `model`")


def test_a_clinic_that_is_not_on_the_vendors_list(clinic: tuple[Host, Path]) -> None:
    policy = Policy(Rules(clinics=("another",)))
    clinic[0].functions["ListModels"] = lambda request, call: policy.admit(call.peer)
    one = offer(clinic, "model = 'lungs'")
    assert one.level is Level.FAIL
    assert "is not on this model owner's list" in one.text
    assert one.remedy.startswith("ask the vendor to admit it")
