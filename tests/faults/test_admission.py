"""Who may do what: certificates, roles, other clinics' sessions, agreed plans, right tensors."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from cryptography import x509

from data_owner import Client
from radiopaque import certificates
from radiopaque.certificates import (
    CertificateFiles,
    Identity,
    Role,
    authority,
    init_directory,
    issue,
    revoke,
)
from radiopaque.errors import (
    AccessError,
    AuthenticationError,
    ConnectionLostError,
    PlanDigestError,
    RoleError,
    TensorError,
    UnknownModelError,
    UnknownSessionError,
)
from radiopaque.prg import SecretKey, new_id
from radiopaque.transport.channel import Counters
from radiopaque.transport.grpc_client import Peer
from radiopaque.transport.tls import grpc
from radiopaque.wire.v1 import services_pb2 as pb
from tests.conftest import Command
from tests.e2e.parties import Clinic, Deployment
from tests.faults.hand import SECONDS, Hand
from tests.unit.transport.test_grpc_rotation import presented

# Certificates and roles.

CALLS = {
    "ListModels": (pb.ListModelsRequest(), pb.ListModelsReply),
    "FetchPlan": (pb.FetchPlanRequest(name="lungs"), pb.FetchPlanReply),
    "Register": (pb.RegisterRequest(), pb.RegisterReply),
    "Reserve": (pb.ReserveRequest(), pb.ReserveReply),
}


def call(peer: Peer, method: str) -> None:
    request, reply = CALLS[method]
    peer.call(method, request, reply, Counters(), SECONDS)


@pytest.mark.parametrize("role", [Role.MODEL_OWNER, Role.CRYPTO_PROVIDER])
def test_a_model_owner_serves_clinics_alone(serving: Deployment, role: Role) -> None:
    with Peer(Role.MODEL_OWNER, serving.owner.address, serving.identity(role)) as peer:
        for method in ("ListModels", "FetchPlan"):
            with pytest.raises(RoleError, match="is for data-owner; this certificate is that of"):
                call(peer, method)
        weights = pb.FetchMaskedWeightsRequest(artefact=bytes(16))
        with pytest.raises(RoleError):
            list(peer.download("FetchMaskedWeights", weights, pb.Chunk, Counters(), SECONDS))
        with pytest.raises(RoleError):
            peer.upload("Prepare", [], pb.PrepareReply, Counters(), SECONDS)
        with pytest.raises(RoleError):
            peer.open("Infer", SECONDS).receive()


def test_a_crypto_provider_tells_clinics_from_model_owners(serving: Deployment) -> None:
    address = serving.provider.address
    with Peer(Role.CRYPTO_PROVIDER, address, serving.identity(Role.DATA_OWNER)) as clinic:
        with pytest.raises(RoleError, match="Register is for model-owner"):
            call(clinic, "Register")
        deal = pb.DealRequest(session=bytes(16), artefact=bytes(16), key_o=bytes(32))
        with pytest.raises(RoleError, match="Deal is for model-owner"):
            list(clinic.download_frames("Deal", deal, Counters(), SECONDS))
    with (
        Peer(Role.CRYPTO_PROVIDER, address, serving.identity(Role.MODEL_OWNER)) as vendor,
        pytest.raises(RoleError, match="Reserve is for data-owner"),
    ):
        call(vendor, "Reserve")


def test_a_server_in_another_role_is_not_talked_to(serving: Deployment, clinic: Clinic) -> None:
    """The clinic's configuration names the two servers the wrong way round."""
    text = clinic.config.read_text()
    owner, provider = serving.owner.address, serving.provider.address
    swapped = text.replace(owner, "?").replace(provider, owner).replace("?", provider)
    clinic.config.write_text(swapped)
    with (
        Client.from_config(clinic.config) as client,
        pytest.raises(AuthenticationError, match="that a model owner listens there"),
    ):
        client.models()


def identity_of(files: CertificateFiles, name: str) -> Identity:
    """What a party holds that does not look at its own certificate first."""
    certificate = files.certificate.read_bytes()
    parsed = x509.load_pem_x509_certificate(certificate)
    return Identity(
        Role.DATA_OWNER,
        name,
        parsed.not_valid_after_utc,
        certificate,
        files.key.read_bytes(),
        files.ca.read_bytes(),
    )


@pytest.fixture
def expired(
    deployment: Deployment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> CertificateFiles:
    monkeypatch.setattr(authority, "_VALIDITY", timedelta(minutes=-1))
    return issue(deployment.folder / "certificates", Role.DATA_OWNER, "late", output=tmp_path)


@pytest.fixture
def strange(deployment: Deployment, tmp_path: Path) -> CertificateFiles:
    """Of an authority that the servers do not know, though it has the same name."""
    files = init_directory(tmp_path / "elsewhere")[Role.DATA_OWNER]
    return CertificateFiles(
        files.certificate, files.key, deployment.certificates[Role.DATA_OWNER].ca
    )


@pytest.mark.parametrize("case", ["expired", "strange"])
def test_servers_refuse_certificates_that_do_not_hold(
    serving: Deployment, case: str, request: pytest.FixtureRequest
) -> None:
    files: CertificateFiles = request.getfixturevalue(case)
    for role, party, method in (
        (Role.MODEL_OWNER, serving.owner, "ListModels"),
        (Role.CRYPTO_PROVIDER, serving.provider, "Reserve"),
    ):
        with (
            Peer(role, party.address, identity_of(files, case)) as peer,
            # in TLS 1.3 the client may learn of it after the handshake, as a closed connection
            pytest.raises((AuthenticationError, ConnectionLostError)),
        ):
            call(peer, method)


@pytest.mark.parametrize(
    ("role", "method"),
    [
        (Role.MODEL_OWNER, "/radiopaque.v1.ModelOwner/ListModels"),
        (Role.CRYPTO_PROVIDER, "/radiopaque.v1.CryptoProvider/Reserve"),
    ],
)
def test_servers_refuse_callers_without_a_certificate(
    serving: Deployment, role: Role, method: str
) -> None:
    address = (serving.owner if role is Role.MODEL_OWNER else serving.provider).address
    ca = serving.certificates[Role.DATA_OWNER].ca.read_bytes()
    options = [("grpc.ssl_target_name_override", role.server_name)]
    for channel in (
        grpc.secure_channel(address, grpc.ssl_channel_credentials(ca), options),
        grpc.insecure_channel(address),
    ):
        with channel, pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary(method)(b"", timeout=SECONDS)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize(
    ("case", "expected", "text"),
    [
        ("expired", "AuthenticationError", "expired on"),
        ("strange", "AuthenticationError", "was not issued by the authority"),
        ("wrong role", "RoleError", "is for the role model-owner, this party is the data-owner"),
        ("open key", "ConfigError", "chmod 600"),
    ],
)
def test_a_party_looks_at_its_own_certificate_first(
    deployment: Deployment,
    clinic: Clinic,
    command: Command,
    request: pytest.FixtureRequest,
    case: str,
    expected: str,
    text: str,
) -> None:
    if case == "wrong role":
        files = deployment.certificates[Role.MODEL_OWNER]
    elif case == "open key":
        files = clinic.files
        files.key.chmod(0o644)
    else:
        files = request.getfixturevalue(case)
    clinic.config.write_text(deployment.clinic_config(clinic.store, files))
    code, error = command("data-owner", "models", "--config", clinic.config)
    assert (code, error["error"]) == (2 if case == "open key" else 6, expected)
    assert text in error["message"]


def test_a_server_looks_at_its_own_certificate_first(
    deployment: Deployment, command: Command, tmp_path: Path
) -> None:
    config = tmp_path / "config.toml"
    text = deployment.owner.config.read_text()
    for kind in ("crt", "key"):
        text = text.replace(f"/model-owner.{kind}", f"/crypto-provider.{kind}")
    config.write_text(text)
    code, error = command("model-owner", "serve", "--config", config)
    assert (code, error["error"]) == (6, "RoleError")
    assert "is for the role crypto-provider, this party is the model-owner" in error["message"]


def test_a_clinic_with_a_revocation_list(
    deployment: Deployment, clinic: Clinic, command: Command, tmp_path: Path
) -> None:
    """From its configuration: good servers are called, one that was revoked is not."""
    authority = tmp_path / "authority"
    authority.mkdir()
    for name in ("ca.crt", "ca.key"):
        (authority / name).write_bytes((deployment.folder / "certificates" / name).read_bytes())
    other = issue(authority, Role.DATA_OWNER, "other")
    crl = revoke(authority, other.certificate)
    text = clinic.config.read_text()
    clinic.config.write_text(text.replace("[tls]\n", f'[tls]\ncrl = "{crl}"\n'))
    code, answer = command("data-owner", "models", "--config", clinic.config)
    assert (code, list(answer)) == (0, ["models"])
    revoke(authority, deployment.certificates[Role.MODEL_OWNER].certificate)
    code, answer = command("data-owner", "models", "--config", clinic.config)
    assert (code, answer["error"]) == (6, "AuthenticationError")
    assert "model-owner 'model-owner' was revoked by" in answer["message"]
    crl.unlink()
    code, answer = command("data-owner", "models", "--config", clinic.config)
    assert (code, answer["error"]) == (2, "ConfigError")


@pytest.mark.parametrize("role", [Role.MODEL_OWNER, Role.CRYPTO_PROVIDER])
def test_a_running_server_takes_over_a_new_certificate(
    serving: Deployment, clinic: Clinic, tmp_path: Path, role: Role
) -> None:
    """A process, whose files are replaced; a clinic and the other server go on with it."""
    party = serving.owner if role is Role.MODEL_OWNER else serving.provider
    old = serving.certificates[role]
    new = issue(serving.folder / "certificates", role, str(role), output=tmp_path)
    wanted = x509.load_pem_x509_certificate(new.certificate.read_bytes()).serial_number
    assert presented(party.port, old.ca, role.server_name).serial_number != wanted
    new.key.replace(old.key)
    new.certificate.replace(old.certificate)
    assert presented(party.port, old.ca, role.server_name).serial_number == wanted
    with Client.from_config(clinic.config) as client:
        client.infer_tensor(serving.networks["lungs-1.10"].images())


# Whose session, which model, which tensor.


def test_a_session_of_another_clinic(serving: Deployment, hand: Hand, clinic: Clinic) -> None:
    """It is answered like a session that never was, and remains as good as it is."""
    hand.prepare()
    texts = []
    for session in (hand.session, new_id()):
        with (
            Hand(serving, clinic, session=session) as other,
            pytest.raises(UnknownSessionError) as caught,
        ):
            other.start()
        texts.append(str(caught.value).replace(session.hex()[:8], "ID"))
    assert texts[0] == texts[1]
    hand.infer()


@pytest.mark.parametrize(
    ("changes", "expected", "text"),
    [
        ({"plan_digest": bytes(32)}, PlanDigestError, "is not that of lungs 1.10"),
        ({"binding": bytes(32)}, PlanDigestError, "bound to other masked weights"),
        ({"artefact": bytes(16)}, UnknownModelError, "not hosted here"),
    ],
)
def test_a_clinic_that_means_another_model(
    serving: Deployment,
    hand: Hand,
    changes: dict[str, bytes],
    expected: type[Exception],
    text: str,
) -> None:
    hand.reserve()
    with pytest.raises(expected, match=text):
        hand.upload([hand.header(**changes), *list(hand.requests())[1:]])
    assert hand.session not in serving.owner.sessions()
    # nothing was begun, so the session is as good as before
    hand.upload()
    hand.infer()


def test_a_clinic_that_means_another_version_of_the_model(
    serving: Deployment, identity: Identity
) -> None:
    """Plan and artefact of one version, weights of another: F1 and F2 never meet one session."""
    with Hand(serving, identity, "lungs-1.9") as older, Hand(serving, identity) as hand:
        hand.reserve()
        binding = older.header().header.binding
        with pytest.raises(PlanDigestError, match="bound to other masked weights"):
            hand.upload([hand.header(binding=binding), *list(hand.requests())[1:]])
        with pytest.raises(PlanDigestError, match=r"is not that of lungs 1\.9"):
            hand.upload([hand.header(artefact=older.artefact.artefact)])


def test_a_reservation_for_another_model(serving: Deployment, hand: Hand) -> None:
    hand.reserve(artefact=new_id())
    with pytest.raises(AccessError, match="was reserved for another model"):
        hand.upload()
    assert serving.owner.sessions()[hand.session] == ("BURNT", False)
    assert serving.provider.sessions()[hand.session][0] == "RESERVED"


def test_artefacts_belong_to_the_model_owner_that_registered_them(
    serving: Deployment, hand: Hand, tmp_path: Path
) -> None:
    hand.prepare()
    files = issue(
        serving.folder / "certificates", Role.MODEL_OWNER, "other-vendor", output=tmp_path
    )
    vendor = certificates.load_identity(files.certificate, files.key, files.ca, Role.MODEL_OWNER)
    artefact = hand.artefact.artefact
    with Peer(Role.CRYPTO_PROVIDER, serving.provider.address, vendor) as peer:
        deal = pb.DealRequest(
            session=new_id(), artefact=artefact, key_o=SecretKey.generate().reveal()
        )
        with pytest.raises(AccessError, match="belongs to another model owner"):
            list(peer.download_frames("Deal", deal, Counters(), SECONDS))
        unknown = pb.DealRequest(session=new_id(), artefact=new_id(), key_o=bytes(32))
        with pytest.raises(UnknownModelError, match="is not registered"):
            list(peer.download_frames("Deal", unknown, Counters(), SECONDS))
        fields = {
            "plan": hand.compiled.plan_bytes,
            "plan_digest": hand.artefact.plan_digest,
            "artefact": artefact,
        }
        for key in (hand.compiled.key.key_b, SecretKey.generate()):
            request = pb.RegisterRequest(**fields, key_b=key.reveal())
            with pytest.raises(AccessError, match="registered with other contents"):
                peer.call("Register", request, pb.RegisterReply, Counters(), SECONDS)
        lying = pb.RegisterRequest(**(fields | {"plan_digest": bytes(32), "artefact": new_id()}))
        lying.key_b = bytes(32)
        with pytest.raises(PlanDigestError):
            peer.call("Register", lying, pb.RegisterReply, Counters(), SECONDS)


BAD_TENSORS: dict[str, tuple[Callable[[np.ndarray], np.ndarray], str]] = {
    "of another shape": (lambda good: good[:, :, :-1], "takes a tensor of shape"),
    "without the batch": (lambda good: good[0], "takes a tensor of shape"),
    "twice the batch": (lambda good: np.concatenate([good, good]), "takes a tensor of shape"),
    "NaN": (lambda good: np.where(np.arange(16) == 3, np.nan, good), "NaN or infinity"),
    "infinite": (lambda good: np.where(np.arange(16) == 3, -np.inf, good), "NaN or infinity"),
    "too large": (lambda good: good * 10, "more than the 4 that this model was compiled for"),
}


@pytest.mark.parametrize("fault", BAD_TENSORS)
def test_a_bad_tensor_is_refused_before_anything_is_sent(
    serving: Deployment, clinic: Clinic, fault: str
) -> None:
    change, text = BAD_TENSORS[fault]
    good = serving.networks["lungs-1.10"].images()
    with Client.from_config(clinic.config) as client:
        with pytest.raises(TensorError, match=text):
            client.infer_tensor(change(good))
        assert clinic.sessions() == {}
        client.prepare()
        before = clinic.sessions()
        with pytest.raises(TensorError, match=text):
            client.infer_tensor(change(good))
        assert clinic.sessions() == before
